"""Load generators for a running service, cheap enough to share two cores with it.

`run_callers` runs closed loops: each caller sends a file, waits for the response and sends the next. `run_probes` runs
open loops: requests are sent at a fixed rate regardless of earlier ones, and latency counts from when each was due.
`Crowd` runs both, each in its own process. Request bodies are prepared before the clock starts.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import multiprocessing
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
import uvloop

from benchmarks.common import Tape, encode

CALLS = ("detect", "clips", "embed")
_TAG = "0123456789abcdef"  # a tag of each file, replaced in every request so that no two are equal
_BOUNDARY = "finelap-benchmark"
_REPEATED = ("dog barking", "rain", "a door slams", "thunder")
_WORDS = (
    ("quiet", "loud", "distant", "metallic", "wooden", "heavy", "soft", "sudden", "muffled", "sharp"),
    ("dog", "door", "bell", "engine", "bird", "crowd", "river", "hammer", "horse", "machine", "footstep", "storm"),
    ("in a hall", "at night", "in the rain", "nearby", "far away", "under a bridge", "in a kitchen", "on gravel"),
)


@dataclass(frozen=True)
class Caller:
    """One closed loop that sends `seconds` of audio per request to `call`; `kind` is its group in the report."""

    kind: str
    seconds: float
    call: str = "detect"
    seed: int = 0
    files: int = 2  # distinct files, sent in turn
    rounds: int | None = None  # successful responses after which it stops; None: runs until the phase ends


@dataclass(frozen=True)
class Probe:
    """One open loop of `rate` requests per second; `kind` is "search", "search again" or "live"."""

    kind: str
    rate: float


@dataclass(frozen=True)
class Outcome:
    """The outcome of a request. Times are time.monotonic(); `status` is 0 without a response, and `error` has why."""

    kind: str
    caller: int
    began: float
    ended: float
    status: int
    retry_after: str = ""
    error: str = ""
    audio_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        return self.ended - self.began


class Body:
    """A multipart body with one file and the fields of `call`; each `next()` has a different tag inside the file."""

    def __init__(self, call: str, seconds: float, seed: int, kind: str) -> None:
        samples = Tape(seed).read(round(seconds * 16_000))
        audio = encode(samples, kind, tag=_TAG)
        if audio.count(_TAG.encode()) != 1:
            raise ValueError(f"the {kind} file does not contain the tag")
        fields = {"phrases": "dog barking"} if call == "detect" else {}
        name = "file" if call == "detect" else "files"
        head = b"".join(
            f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n'.encode()
            for k, v in fields.items()
        )
        filename = f"{seed}-{seconds:g}.{kind.lower()}"
        head += f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"; filename="{filename}"\r\n'.encode()
        head += b"Content-Type: application/octet-stream\r\n\r\n"
        whole = head + audio + f"\r\n--{_BOUNDARY}--\r\n".encode()
        at = whole.index(_TAG.encode(), len(head))
        self._before, self._after = whole[:at], whole[at + len(_TAG) :]

    def next(self) -> list[bytes]:
        """Returns the body with a new tag, in pieces."""
        return [self._before, uuid.uuid4().hex[: len(_TAG)].encode(), self._after]


def run_callers(
    address: str, callers: Sequence[Caller], seconds: float, timeout: float, ready: Callable[[], object] = int
) -> list[Outcome]:
    """Runs all callers for `seconds`, then waits up to `timeout` seconds for requests in flight.

    A caller that gets 429 waits for Retry-After and retries the same request. `ready` is called when all bodies are
    prepared; the clock starts when it returns.
    """
    bodies = [
        [Body(c.call, c.seconds, 1000 * c.seed + n, ("WAV", "FLAC")[(c.seed + n) % 2]) for n in range(c.files)]
        for c in callers
    ]
    ready()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_callers(address, callers, bodies, time.monotonic() + seconds, timeout))


async def _callers(
    address: str, callers: Sequence[Caller], bodies: list[list[Body]], end: float, timeout: float
) -> list[Outcome]:
    outcomes: list[Outcome] = []

    async def one(number: int, caller: Caller) -> None:
        connection, done = _Connection(address, caller.call), 0
        for body in itertools.cycle(bodies[number]):
            while True:
                if time.monotonic() >= end or done == caller.rounds:
                    connection.close()
                    return
                outcome = await _send(connection, caller, number, body.next(), timeout)
                outcomes.append(outcome)
                if outcome.status != 429:
                    done += outcome.status in (200, 201)
                    break
                await asyncio.sleep(float(outcome.retry_after or 1))

    await asyncio.gather(*(one(i, caller) for i, caller in enumerate(callers)))
    return outcomes


class _Connection:
    """A keep-alive connection for POST /`call`; responses must have a length. httpx takes six times as long."""

    def __init__(self, address: str, call: str) -> None:
        parts = urlsplit(address)
        self._host, self._port = parts.hostname, parts.port or 80
        self._head = (
            f"POST /{call} HTTP/1.1\r\nHost: {parts.netloc}\r\n"
            f"Content-Type: multipart/form-data; boundary={_BOUNDARY}\r\nContent-Length: "
        )
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, body: list[bytes]) -> tuple[int, dict[str, str], bytes]:
        """Returns status, headers (lower case) and body. Raises OSError, EOFError; the next call reconnects."""
        try:
            if self._streams is None:
                self._streams = await asyncio.open_connection(self._host, self._port)
            reader, writer = self._streams
            writer.writelines([f"{self._head}{sum(map(len, body))}\r\n\r\n".encode(), *body])
            lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
            content = await reader.readexactly(int(headers["content-length"]))
        except BaseException:
            self.close()
            raise
        if headers.get("connection") == "close":
            self.close()
        return int(lines[0].split()[1]), headers, content

    def close(self) -> None:
        """Closes the connection."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def _send(connection: _Connection, caller: Caller, number: int, body: list[bytes], timeout: float) -> Outcome:
    began = time.monotonic()
    try:
        async with asyncio.timeout(timeout):
            status, headers, content = await connection.post(body)
    except (OSError, EOFError) as error:
        return Outcome(caller.kind, number, began, time.monotonic(), 0, error=repr(error))
    ended = time.monotonic()
    error = "" if status in (200, 201) else content[:300].decode()
    if not error and abs(_duration(caller.call, content) - caller.seconds) > 0.01:
        error = f"wrong response: {content[:300].decode()}"
    seconds = 0.0 if error else caller.seconds
    return Outcome(caller.kind, number, began, ended, status, headers.get("retry-after", ""), error, seconds)


def _duration(call: str, content: bytes) -> float:
    body = json.loads(content)
    item = {"detect": lambda: body, "clips": lambda: body["clips"][0], "embed": lambda: body["audio"][0]}[call]()
    return float(item["duration"])


def run_probes(
    address: str, probes: Sequence[Probe], seconds: float, timeout: float, ready: Callable[[], object] = int
) -> list[Outcome]:
    """Runs all probes for `seconds`; an outcome's `began` is when its request was due. `ready` as in `run_callers`."""
    ready()
    return asyncio.run(_probes(address, probes, seconds, timeout))


async def _probes(address: str, probes: Sequence[Probe], seconds: float, timeout: float) -> list[Outcome]:
    outcomes: list[Outcome] = []
    start = time.monotonic()

    async def ask(client: httpx.AsyncClient, kind: str, number: int, due: float) -> None:
        path, params = _request(kind, number)
        status, error = 0, ""
        try:
            response = await client.get(path, params=params)
            status = response.status_code
            if status != 200:
                error = response.text[:300]
        except httpx.HTTPError as failure:
            error = repr(failure)
        outcomes.append(Outcome(kind, number, due, time.monotonic(), status, error=error))

    async def loop(client: httpx.AsyncClient, probe: Probe, tasks: asyncio.TaskGroup) -> None:
        for number in itertools.count():
            due = start + (number + 0.5) / probe.rate
            if due >= start + seconds:
                return
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            tasks.create_task(ask(client, probe.kind, number, due))

    limits = httpx.Limits(max_connections=None)
    async with (
        httpx.AsyncClient(base_url=address, timeout=timeout, limits=limits, trust_env=False) as client,
        asyncio.TaskGroup() as tasks,
    ):
        for probe in probes:
            tasks.create_task(loop(client, probe, tasks))
    return outcomes


def _request(kind: str, number: int) -> tuple[str, dict[str, Any]]:
    if kind == "live":
        return "/health/live", {}
    if kind == "search again":
        return "/search", {"q": _REPEATED[number % len(_REPEATED)]}
    words = [group[number // (7**i) % len(group)] for i, group in enumerate(_WORDS)]
    return "/search", {"q": f"a {' '.join(words)} {uuid.uuid4().hex[:6]}"}  # the last word prevents cache hits


class Crowd:
    """Callers and probes against one server, each group in its own process, started together.

    `start` waits until all are ready and starts them; `outcomes` waits for the end and then sets `cpu_seconds`, their
    processor time, and `took`, in seconds. `began` is when they started (time.monotonic()).
    """

    def __init__(
        self, address: str, callers: Sequence[Caller], probes: Sequence[Probe], seconds: float, timeout: float = 300.0
    ) -> None:
        self.cpu_seconds, self.took, self.began = 0.0, 0.0, 0.0
        context = multiprocessing.get_context("spawn")
        groups = [(run_callers, callers), *([(run_probes, probes)] if probes else [])]
        self._barrier = context.Barrier(len(groups) + 1)
        self._running = []
        for function, group in groups:
            mine, theirs = context.Pipe(duplex=False)
            process = context.Process(
                target=_report, args=(theirs, self._barrier, function, (address, group, seconds, timeout)), daemon=True
            )
            process.start()
            theirs.close()
            self._running.append((process, mine))

    def start(self) -> None:
        """Starts all groups."""
        self._barrier.wait(120)
        self.began = time.monotonic()

    def outcomes(self) -> list[Outcome]:
        """Waits for the end and returns the outcome of every request."""
        found: list[Outcome] = []
        for process, pipe in self._running:
            try:
                outcomes, cpu = pipe.recv()
            except EOFError:
                raise RuntimeError("a load process failed; its traceback is above") from None
            found += outcomes
            self.cpu_seconds += cpu
            process.join()
        self.took = time.monotonic() - self.began
        return found


def _report(pipe: Any, barrier: Any, function: Callable[..., list[Outcome]], arguments: tuple[Any, ...]) -> None:
    began = 0.0

    def ready() -> None:
        nonlocal began
        barrier.wait(120)
        began = time.process_time()

    outcomes = function(*arguments, ready)
    pipe.send((outcomes, time.process_time() - began))
