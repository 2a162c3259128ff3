"""Callers of a running service, lean enough to share two cores with it: bodies are made before the clock starts.

`run_callers` are closed loops: each caller sends a file, waits for the answer, sends the next. `run_probes` are open
loops: requests leave at a fixed rate whatever became of the ones before, and time counts from when each was due.
Both are meant to run in processes of their own, `in_process`.
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

import httpx

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

    def next(self) -> bytes:
        """The body with a new tag."""
        return b"".join([self._before, uuid.uuid4().hex[: len(_MARK)].encode(), self._after])


def run_callers(address: str, callers: Sequence[Caller], start: float, end: float, patience: float) -> list[Answer]:
    """All callers from `start` to `end` (time.monotonic()); what is under way then is waited for `patience` seconds.

    A caller that is refused with 429 waits for as long as Retry-After says and tries the same again.
    """
    bodies = [
        [Body(c.call, c.seconds, 1000 * c.seed + n, ("WAV", "FLAC")[(c.seed + n) % 2]) for n in range(c.files)]
        for c in callers
    ]
    if time.monotonic() > start:
        raise RuntimeError("the recordings were not ready in time; give more time before the start")
    return asyncio.run(_callers(address, callers, bodies, start, end, patience))


async def _callers(
    address: str, callers: Sequence[Caller], bodies: list[list[Body]], start: float, end: float, patience: float
) -> list[Answer]:
    answers: list[Answer] = []

    async def one(number: int, caller: Caller, client: httpx.AsyncClient) -> None:
        headers = {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}
        done = 0
        for body in itertools.cycle(bodies[number]):
            while True:
                if time.monotonic() >= end or done == caller.rounds:
                    return
                answer = await _ask(client, caller, number, body.next(), headers)
                answers.append(answer)
                if answer.status != 429:
                    done += answer.status in (200, 201)
                    break
                await asyncio.sleep(float(answer.retry_after or 1))

    limits = httpx.Limits(max_connections=None, max_keepalive_connections=len(callers))
    async with httpx.AsyncClient(base_url=address, timeout=patience, limits=limits, trust_env=False) as client:
        await asyncio.sleep(max(0.0, start - time.monotonic()))
        await asyncio.gather(*(one(i, caller, client) for i, caller in enumerate(callers)))
    return answers


async def _ask(client: httpx.AsyncClient, caller: Caller, number: int, body: bytes, headers: dict[str, str]) -> Answer:
    began = time.monotonic()
    try:
        response = await client.post(f"/{caller.call}", content=body, headers=headers)
    except httpx.HTTPError as error:
        return Answer(caller.kind, number, began, time.monotonic(), 0, fault=repr(error))
    ended, status = time.monotonic(), response.status_code
    fault = "" if status in (200, 201) else response.text[:300]
    if not fault and abs(_duration(caller.call, response.content) - caller.seconds) > 0.01:
        fault = f"a wrong answer: {response.text[:300]}"
    heard = 0.0 if fault else caller.seconds
    return Answer(caller.kind, number, began, ended, status, response.headers.get("retry-after", ""), fault, heard)


def _duration(call: str, content: bytes) -> float:
    answer = json.loads(content)
    item = {"detect": lambda: answer, "clips": lambda: answer["clips"][0], "embed": lambda: answer["audio"][0]}[call]()
    return float(item["duration"])


def run_probes(address: str, probes: Sequence[Probe], start: float, end: float, patience: float) -> list[Answer]:
    """All probes from `start` to `end`; `began` of an answer is when its request was due."""
    return asyncio.run(_probes(address, probes, start, end, patience))


async def _probes(address: str, probes: Sequence[Probe], start: float, end: float, patience: float) -> list[Answer]:
    answers: list[Answer] = []

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
            if due >= end:
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


def in_process(function: Callable[..., list[Answer]], *arguments: Any) -> Callable[[], tuple[list[Answer], float]]:
    """Starts `function(*arguments)` in a process of its own; calling the result waits: (answers, processor seconds)."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(theirs, function, arguments))
    process.start()
    theirs.close()

    def result() -> tuple[list[Answer], float]:
        try:
            answers, seconds = mine.recv()
        except EOFError:
            raise RuntimeError(f"{function.__name__} failed; its traceback is above") from None
        finally:
            process.join()
        return answers, seconds

    return result


def _report(pipe: Any, function: Callable[..., list[Answer]], arguments: tuple[Any, ...]) -> None:
    answers = function(*arguments)
    pipe.send((answers, time.process_time()))
