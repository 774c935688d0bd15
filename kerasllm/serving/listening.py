"""Sockets to listen at, opened before anything that takes long: what is wrong with an address is said at once."""

import contextlib
import errno
import os
import socket

BACKLOG = 2048


def listen(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen at every address of a host; of `localhost` there are often two.

    Args:
        host: a name or an address of this machine.
        port: from 1 to 65535; any free one when 0.

    Raises:
        ValueError: no such port, or a host that has no address.
        OSError: the port is taken, not allowed, or the address is not this machine's.

    Example:

    ```python
    [listening, *_] = listen("127.0.0.1", 0)
    print(listening.getsockname()[1])
    ```
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"A port is a number from 1 to 65535, or 0 for any free one. Received: port={port}")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise ValueError(f"The host has no address: {why}. Received: host={host!r}") from None
    sockets = []
    with contextlib.ExitStack() as opened:
        for family, _, _, _, address in dict.fromkeys(found):
            listening = opened.enter_context(socket.socket(family, socket.SOCK_STREAM))
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:  # Its IPv4 twin is a socket of its own.
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if sockets:  # The port that the first has got.
                address = (address[0], sockets[0].getsockname()[1], *address[2:])
            try:
                listening.bind(address)
                listening.listen(BACKLOG)
            except OSError as error:
                if sockets and error.errno == errno.EADDRNOTAVAIL:  # such as ::1 where there is no IPv6
                    continue
                raise OSError(error.errno, _explained(error, host, port)) from None
            listening.setblocking(False)
            sockets.append(listening)
        opened.pop_all()
    return sockets


def _explained(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"The port is taken. Choose another with --port. Received: host={host!r}, port={port}"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"The address is not this machine's. Choose another with --host. Received: host={host!r}"
    if error.errno == errno.EACCES:
        return f"Ports below 1024 need an administrator's rights. Choose another with --port. Received: port={port}"
    return f"Cannot listen: {os.strerror(error.errno or 0)}. Received: host={host!r}, port={port}"
