"""Callers of a running service, lean enough to share two cores with it: bodies are made before the clock starts.

`run_callers` are closed loops: each caller sends a file, waits for the answer, sends the next. `run_probes` are open
loops: requests leave at a fixed rate whatever became of the ones before, and time counts from when each was due.
`Crowd` runs both, each in a process of its own.
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
_MARK = "0123456789abcdef"  # a tag of each file, rewritten for every request, so that no two requests are alike
_BOUNDARY = "finelap-benchmark"
_REPEATED = ("dog barking", "rain", "a door slams", "thunder")
_WORDS = (
    ("quiet", "loud", "distant", "metallic", "wooden", "heavy", "soft", "sudden", "muffled", "sharp"),
    ("dog", "door", "bell", "engine", "bird", "crowd", "river", "hammer", "horse", "machine", "footstep", "storm"),
    ("in a hall", "at night", "in the rain", "nearby", "far away", "under a bridge", "in a kitchen", "on gravel"),
)


@dataclass(frozen=True)
class Caller:
    """One closed loop: `seconds` of audio a request, sent to `call`. `kind`: its group in the report."""

    kind: str
    seconds: float
    call: str = "detect"
    seed: int = 0
    files: int = 2  # different ones, in turn
    rounds: int | None = None  # answers with 200 after which it is done; None: goes on until the phase ends


@dataclass(frozen=True)
class Probe:
    """One open loop: `kind` is search, search again or live; `rate` requests a second."""

    kind: str
    rate: float


@dataclass(frozen=True)
class Answer:
    """What became of a request. Times are of time.monotonic(); `status` 0: no answer, `fault` says why."""

    kind: str
    caller: int
    began: float
    ended: float
    status: int
    retry_after: str = ""
    fault: str = ""
    audio_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        return self.ended - self.began


class Body:
    """A multipart body with one file and the fields of `call`; every `next()` differs in a tag inside the file."""

    def __init__(self, call: str, seconds: float, seed: int, kind: str) -> None:
        samples = Tape(seed).read(round(seconds * 16_000))
        audio = encode(samples, kind, tag=_MARK)
        if audio.count(_MARK.encode()) != 1:
            raise ValueError(f"the tag is not in the {kind} file")
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
        at = whole.index(_MARK.encode(), len(head))
        self._before, self._after = whole[:at], whole[at + len(_MARK) :]

    def next(self) -> list[bytes]:
        """The body with a new tag, in pieces."""
        return [self._before, uuid.uuid4().hex[: len(_MARK)].encode(), self._after]


def run_callers(
    address: str, callers: Sequence[Caller], seconds: float, patience: float, ready: Callable[[], object] = int
) -> list[Answer]:
    """All callers for `seconds`; what is under way then is waited for, `patience` seconds.

    A caller that is refused with 429 waits for as long as Retry-After says and tries the same again. `ready` is called
    when all bodies are made; the clock starts when it returns.
    """
    bodies = [
        [Body(c.call, c.seconds, 1000 * c.seed + n, ("WAV", "FLAC")[(c.seed + n) % 2]) for n in range(c.files)]
        for c in callers
    ]
    ready()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_callers(address, callers, bodies, time.monotonic() + seconds, patience))


async def _callers(
    address: str, callers: Sequence[Caller], bodies: list[list[Body]], end: float, patience: float
) -> list[Answer]:
    answers: list[Answer] = []

    async def one(number: int, caller: Caller) -> None:
        line, done = _Line(address, caller.call), 0
        for body in itertools.cycle(bodies[number]):
            while True:
                if time.monotonic() >= end or done == caller.rounds:
                    line.close()
                    return
                answer = await _ask(line, caller, number, body.next(), patience)
                answers.append(answer)
                if answer.status != 429:
                    done += answer.status in (200, 201)
                    break
                await asyncio.sleep(float(answer.retry_after or 1))

    await asyncio.gather(*(one(i, caller) for i, caller in enumerate(callers)))
    return answers


class _Line:
    """A connection that is kept, for POST /`call`; answers have a length. httpx takes six times as much time."""

    def __init__(self, address: str, call: str) -> None:
        parts = urlsplit(address)
        self._host, self._port = parts.hostname, parts.port or 80
        self._head = (
            f"POST /{call} HTTP/1.1\r\nHost: {parts.netloc}\r\n"
            f"Content-Type: multipart/form-data; boundary={_BOUNDARY}\r\nContent-Length: "
        )
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, body: list[bytes]) -> tuple[int, dict[str, str], bytes]:
        """Status, headers (lower case) and body. Raises OSError, EOFError; the connection is then a new one."""
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
        """Ends the connection."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def _ask(line: _Line, caller: Caller, number: int, body: list[bytes], patience: float) -> Answer:
    began = time.monotonic()
    try:
        async with asyncio.timeout(patience):
            status, headers, content = await line.post(body)
    except (OSError, EOFError) as error:
        return Answer(caller.kind, number, began, time.monotonic(), 0, fault=repr(error))
    ended = time.monotonic()
    fault = "" if status in (200, 201) else content[:300].decode()
    if not fault and abs(_duration(caller.call, content) - caller.seconds) > 0.01:
        fault = f"a wrong answer: {content[:300].decode()}"
    heard = 0.0 if fault else caller.seconds
    return Answer(caller.kind, number, began, ended, status, headers.get("retry-after", ""), fault, heard)


def _duration(call: str, content: bytes) -> float:
    answer = json.loads(content)
    item = {"detect": lambda: answer, "clips": lambda: answer["clips"][0], "embed": lambda: answer["audio"][0]}[call]()
    return float(item["duration"])


def run_probes(
    address: str, probes: Sequence[Probe], seconds: float, patience: float, ready: Callable[[], object] = int
) -> list[Answer]:
    """All probes for `seconds`; `began` of an answer is when its request was due. `ready` as in `run_callers`."""
    ready()
    return asyncio.run(_probes(address, probes, seconds, patience))


async def _probes(address: str, probes: Sequence[Probe], seconds: float, patience: float) -> list[Answer]:
    answers: list[Answer] = []
    start = time.monotonic()

    async def ask(client: httpx.AsyncClient, kind: str, number: int, due: float) -> None:
        path, params = _question(kind, number)
        status, fault = 0, ""
        try:
            response = await client.get(path, params=params)
            status = response.status_code
            if status != 200:
                fault = response.text[:300]
        except httpx.HTTPError as error:
            fault = repr(error)
        answers.append(Answer(kind, number, due, time.monotonic(), status, fault=fault))

    async def loop(client: httpx.AsyncClient, probe: Probe, tasks: asyncio.TaskGroup) -> None:
        for number in itertools.count():
            due = start + (number + 0.5) / probe.rate
            if due >= start + seconds:
                return
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            tasks.create_task(ask(client, probe.kind, number, due))

    limits = httpx.Limits(max_connections=None)
    async with (
        httpx.AsyncClient(base_url=address, timeout=patience, limits=limits, trust_env=False) as client,
        asyncio.TaskGroup() as tasks,
    ):
        for probe in probes:
            tasks.create_task(loop(client, probe, tasks))
    return answers


def _question(kind: str, number: int) -> tuple[str, dict[str, Any]]:
    if kind == "live":
        return "/health/live", {}
    if kind == "search again":
        return "/search", {"q": _REPEATED[number % len(_REPEATED)]}
    words = [group[number // (7**i) % len(group)] for i, group in enumerate(_WORDS)]
    return "/search", {"q": f"a {' '.join(words)} {uuid.uuid4().hex[:6]}"}  # the last word is in no cache


class Crowd:
    """Callers and probes against one server, each group in a process of its own; they start together.

    `start` waits until all are ready and starts them; `answers` waits for the end. `cpu_seconds` is what they took from
    start to end, known after that; so is `took`, in seconds. `began`, of time.monotonic(), is when they started.
    """

    def __init__(
        self, address: str, callers: Sequence[Caller], probes: Sequence[Probe], seconds: float, patience: float = 300.0
    ) -> None:
        self.cpu_seconds, self.took, self.began = 0.0, 0.0, 0.0
        context = multiprocessing.get_context("spawn")
        groups = [(run_callers, callers), *([(run_probes, probes)] if probes else [])]
        self._gate = context.Barrier(len(groups) + 1)
        self._running = []
        for function, group in groups:
            mine, theirs = context.Pipe(duplex=False)
            process = context.Process(
                target=_report, args=(theirs, self._gate, function, (address, group, seconds, patience)), daemon=True
            )
            process.start()
            theirs.close()
            self._running.append((process, mine))

    def start(self) -> None:
        """Lets them go."""
        self._gate.wait(120)
        self.began = time.monotonic()

    def answers(self) -> list[Answer]:
        """What became of every request."""
        found: list[Answer] = []
        for process, pipe in self._running:
            try:
                answers, cpu = pipe.recv()
            except EOFError:
                raise RuntimeError("a process of callers failed; its traceback is above") from None
            found += answers
            self.cpu_seconds += cpu
            process.join()
        self.took = time.monotonic() - self.began
        return found


def _report(pipe: Any, gate: Any, function: Callable[..., list[Answer]], arguments: tuple[Any, ...]) -> None:
    began = 0.0

    def ready() -> None:
        nonlocal began
        gate.wait(120)
        began = time.process_time()

    answers = function(*arguments, ready)
    pipe.send((answers, time.process_time() - began))
