"""A client's connection: cut when its request does not come, or when it does not take its answer."""

import asyncio
import contextlib
import math
import socket
import struct

from uvicorn.protocols.http.h11_impl import H11Protocol


class Connection(H11Protocol):
    """uvicorn's protocol, with limits on how long a client may do nothing.

    Without them, a client that reads nothing keeps its request, its slot, and a server that is told to stop, for ever.

    Args:
        patience: seconds that the head of a request may take, and that a client may take nothing of what is written.
        arguments: uvicorn's.
    """

    def __init__(self, *arguments, patience: float, **options):
        super().__init__(*arguments, **options)
        self.patience = patience
        self._head: asyncio.TimerHandle | None = None  # while a request's head is awaited
        self._unread: asyncio.TimerHandle | None = None  # while something is written and not taken

    def connection_made(self, transport):
        super().connection_made(transport)
        # `pause_writing` then means that something is not taken. (With 0, asyncio's TLS would pause without anything.)
        transport.set_write_buffer_limits(high=1, low=0)
        self._head = self.loop.call_later(self.patience, transport.abort)

    def data_received(self, data):
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._head = _cancelled(self._head)
        elif self._head is None:  # The next request has begun, and its head is not whole yet.
            self._head = self.loop.call_later(self.patience, self.transport.abort)

    def connection_lost(self, exc):
        self._head, self._unread = _cancelled(self._head), _cancelled(self._unread)
        super().connection_lost(exc)

    def pause_writing(self):
        super().pause_writing()
        self._look(-math.inf)

    def resume_writing(self):
        self._unread = _cancelled(self._unread)
        super().resume_writing()

    def _look(self, before: float) -> None:
        """Cuts the connection if it has taken nothing since the last look."""
        taken = _taken(self.transport)
        if taken <= before:
            self.transport.abort()
        else:
            self._unread = self.loop.call_later(self.patience / 2, self._look, taken)


def _taken(transport) -> int:
    """How much a client has taken: bytes it has acknowledged, where the system says so, as Linux does. The buffers of
    asyncio alone do not tell: the system's own hold megabytes, which a slow client takes minutes for."""
    with contextlib.suppress(OSError, AttributeError, struct.error):
        info = transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 128)
        return struct.unpack_from("=Q", info, 120)[0]  # tcpi_bytes_acked
    return -transport.get_write_buffer_size()


def _cancelled(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
