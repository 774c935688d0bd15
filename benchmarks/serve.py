"""Our server beside `transformers serve` and llama.cpp's, on the same weights: tokens a second, and their times.

    python benchmarks/serve.py saved_models/quickstart --servers kerasllm transformers llama.cpp --clients 1 4 16 64
    python benchmarks/serve.py saved_models/quickstart --rate 2        # Poisson arrivals, 2 requests a second
    python benchmarks/serve.py saved_models/quickstart --abuse 10000   # our server alone: malformed bodies, and memory

All servers run one after the other, each alone, with the same prompts and lengths (uniform in 1..128, from one seed),
and are asked by the same client over `/v1/completions`. `transformers-cb` is theirs with `--continuous-batching`.
llama.cpp reads the GGUF file given with `--gguf`, which must have a vocabulary. Tokens are those that the server
counts, or else the pieces that it sends. What ours writes for many clients must be what it writes for one, to the byte.
"""

import argparse
import asyncio
import collections
import contextlib
import json
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import psutil
import report

PROMPT = "The function returns a list of the names of all the files that are in the given directory, and "
WRONG = [b"", b'"', b"\\ud800", b"{", b"9" * 30, b"\x00", b"null", b"\xff"]  # what comes into a body
ROUTE = "/v1/completions"
WAITS = ("first", "between")  # until the first token, and from one to the next
SERVERS = ("kerasllm", "transformers", "transformers-cb", "llama.cpp")


def command_of(server: str, directory: Path, port: int, gguf: Path | None, backend: str) -> list[str]:
    """What starts a server."""
    if server == "kerasllm":
        options = ["--port", str(port), "--backend", backend]
        return [sys.executable, "-m", "kerasllm", "serve", str(directory), *options]
    if server.startswith("transformers"):
        options = ["--continuous-batching"] if server.endswith("-cb") else []
        program = str(Path(sys.executable).with_name("transformers"))
        return [program, "serve", "--port", str(port), *options, str(directory)]
    if gguf is None:
        raise SystemExit("llama.cpp needs --gguf FILE, with a vocabulary.")
    options = ["--model", str(gguf), "--port", str(port), "--n_ctx", "1024", "--interrupt_requests", "false"]
    return [sys.executable, "-m", "llama_cpp.server", *options]


@contextlib.contextmanager
def started(command: list[str], port: int, log: Path, limit: float = 300.0):
    """A server's process, once it answers; told to stop at the end."""
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    try:
        end = time.monotonic() + limit
        while True:
            with contextlib.suppress(httpx.TransportError):
                status = httpx.get(f"http://127.0.0.1:{port}/health").status_code
                if status in (200, 404):  # llama.cpp's server has no such route, and listens when it is ready.
                    break
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"The server did not get ready, see {log}")
            time.sleep(0.2)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


async def ask(http: httpx.AsyncClient, model: str, number: int, size: int) -> tuple[int, list[float], str]:
    """One streamed request: its tokens, after how many seconds each piece came, and the text."""
    prompt = f"{number}: {PROMPT * (1 + number % 3)}"
    body = {"model": model, "max_tokens": size, "temperature": 0, "stream": True, "prompt": prompt}
    body |= {"stream_options": {"include_usage": True}}
    began, times, pieces, counted = time.perf_counter(), [], [], None
    async with http.stream("POST", ROUTE, json=body) as answer:
        if answer.status_code != 200:
            raise RuntimeError((await answer.aread()).decode()[:300])
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            if chunk.get("choices"):
                times.append(time.perf_counter() - began)
                pieces.append(chunk["choices"][0].get("text") or "")
            if chunk.get("usage"):
                counted = chunk["usage"]["completion_tokens"]
    return (len(times) if counted is None else counted), times, "".join(pieces)


async def load(
    url: str, model: str, clients: int, rate: float | None, requests: int
) -> tuple[dict[str, float], dict[int, str]]:
    """Figures and texts. Closed loop: each client asks again once it is answered. Open loop: Poisson arrivals."""
    draw = random.Random(0)
    sizes = [draw.randint(1, 128) for _ in range(requests)]
    numbers, results, failed = iter(range(requests)), {}, 0
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as http:

        async def one(number: int) -> None:
            nonlocal failed
            try:
                results[number] = await ask(http, model, number, sizes[number])
            except (RuntimeError, httpx.HTTPError) as error:
                failed += 1
                print(f"  failed: {error}", file=sys.stderr)

        async def client() -> None:
            for number in numbers:
                await one(number)

        began = time.perf_counter()
        if rate is None:
            await asyncio.gather(*(client() for _ in range(clients)))
        else:
            tasks = []
            for number in numbers:
                tasks.append(asyncio.create_task(one(number)))
                await asyncio.sleep(draw.expovariate(rate))
            await asyncio.gather(*tasks)
        seconds = time.perf_counter() - began
    if not results:
        raise RuntimeError("No request was answered")
    tokens = sum(size for size, _, _ in results.values())
    first = sorted(times[0] for _, times, _ in results.values() if times)
    between = sorted((times[-1] - times[0]) / (size - 1) for size, times, _ in results.values() if size > 1 and times)
    figures = {"tokens_per_second": tokens / seconds, "failed": failed}
    for name, values in (("first", first), ("between", between)):
        for percent in (50, 95, 99):
            figures[f"{name}_p{percent}_ms"] = 1000 * values[min(len(values) - 1, len(values) * percent // 100)]
    return figures, {number: text for number, (_, _, text) in results.items()}


def memory(process: psutil.Process) -> str:
    """Megabytes of the server, and of its models' processes."""
    held = [f"{one.memory_info().rss / 2**20:.1f}" for one in [process, *process.children()]]
    return f"server {held[0]} MB, models {' '.join(held[1:])} MB"


async def abuse(url: str, model: str, requests: int) -> dict[str, int]:
    """Sends malformed bodies from 8 clients, while one more asks as it should; returns how often each status came."""
    draw, statuses, numbers = random.Random(0), collections.Counter(), iter(range(requests))
    valid = {"model": model, "prompt": "To be", "max_tokens": 2, "temperature": 0}
    text, ended = json.dumps(valid).encode(), asyncio.Event()
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:

        async def client() -> None:
            for _ in numbers:
                body = bytearray(text)
                for _ in range(draw.randint(1, 6)):
                    place = draw.randrange(len(body))
                    body[place : place + draw.randint(0, 3)] = draw.choice(WRONG)
                kind = {"Content-Type": draw.choice(["application/json", "text/plain"])}
                answer = await http.post("/v1/completions", content=bytes(body), headers=kind)
                statuses[str(answer.status_code)] += 1

        async def other() -> None:
            while not ended.is_set():
                statuses[f"valid {(await http.post('/v1/completions', json=valid)).status_code}"] += 1

        beside = asyncio.create_task(other())
        await asyncio.gather(*(client() for _ in range(8)))
        ended.set()
        await beside
        gauges = (await http.get("/metrics")).text.splitlines()
    print("  " + ", ".join(g for g in gauges if re.match(r"kerasllm_(running|waiting|pending|restarts_total)", g)))
    return dict(sorted(statuses.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--servers", nargs="+", default=["kerasllm"], choices=SERVERS)
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 4, 16, 64])
    parser.add_argument("--rate", type=float, help="Requests a second, in place of clients.")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--abuse", type=int, metavar="N", help="Malformed bodies, to our server, in place of a load.")
    parser.add_argument("--backend", default=os.environ.get("KERAS_BACKEND", "jax"))
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--save", action="store_true", help="Write benchmarks/results/.")
    arguments = parser.parse_args()
    figures: dict[str, dict[str, dict[str, float]]] = {}
    bars: list[list[str]] = []
    for server in arguments.servers:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        model = arguments.directory.resolve()
        command = command_of(server, model, port, arguments.gguf, arguments.backend)
        name = model.name if server == "kerasllm" else str(model)
        with started(command, port, Path(tempfile.gettempdir()) / f"serve-{server}.log") as process:
            runs = [("open", 0, arguments.rate)] if arguments.rate else [(f"{n}", n, None) for n in arguments.clients]
            url = f"http://127.0.0.1:{port}"
            if arguments.abuse:
                for count in (arguments.abuse // 10, arguments.abuse, arguments.abuse):  # A leak would be in both.
                    print(memory(psutil.Process(process.pid)))
                    print(f"  {count} malformed bodies:", asyncio.run(abuse(url, name, count)))
                print(memory(psutil.Process(process.pid)))
                continue
            for _ in range(2):  # Compiles: the second time, prompts are known.
                asyncio.run(load(url, name, 16, None, 32))
            texts: dict[str, dict[int, str]] = {}
            for label, clients, rate in runs:
                made, texts[label] = asyncio.run(load(url, name, clients, rate, arguments.requests))
                figures.setdefault(label, {})[server] = made
                print(f"{label:>5} {server:>15} " + "  ".join(f"{k} {v:.1f}" for k, v in made.items()), flush=True)
            if server == "kerasllm" and "1" in texts:
                same = sum(found == texts["1"] for found in texts.values())
                figure = f"{same} of {len(texts)} loads"
                bars.append(["answers under load are those alone", figure, "all", _verdict(same == len(texts))])
    if not figures:
        return
    if {"1", "16"} <= figures.keys() and "kerasllm" in arguments.servers:
        one, many = (figures[label]["kerasllm"]["tokens_per_second"] for label in ("1", "16"))
        bars.append(["16 clients ÷ 1 client", f"{many / one:.2f}", ">= 3", _verdict(many >= 3 * one)])
    for label, row in figures.items():
        for peer in [s for s in row if s != "kerasllm"] if "kerasllm" in row else []:
            ratio = row["kerasllm"]["tokens_per_second"] / row[peer]["tokens_per_second"]
            asked = label == "16" and peer.startswith("transformers")
            verdict = _verdict(ratio >= 2) if asked else ""
            bars.append([f"{label} clients: ours ÷ {peer}", f"{ratio:.2f}", ">= 2" if asked else "", verdict])
    columns = ("clients", "server", "tokens/s", "failed", *(f"{w} p{p}, ms" for w in WAITS for p in (50, 95, 99)))
    rows = [
        [label, server, f"{found['tokens_per_second']:.1f}", str(found["failed"])]
        + [f"{value:.0f}" for key, value in found.items() if key.endswith("_ms")]
        for label, row in figures.items()
        for server, found in row.items()
    ]
    title = f"{arguments.directory.name}, {arguments.backend}, {arguments.requests} requests of 1 to 128 tokens"
    tables = [(title, columns, rows), ("Ratios", ("what", "ratio", "bar", ""), bars)]
    for table in tables:
        report.show(*table)
    if arguments.save:
        name = f"serve-{arguments.directory.name}-{arguments.backend}"
        report.write(name, "Servers side by side", tables, {"figures": figures})


def _verdict(met: bool) -> str:
    return "met" if met else "missed"


if __name__ == "__main__":
    main()
