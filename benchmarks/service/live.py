"""WS /stream under load: how soon events are told, whether they equal /detect's, and whether memory stays flat.

    python -m benchmarks.service.live [--streams 1 4 16] [--events 100] [--memory-minutes 3]
    python -m benchmarks.service.live --streams --events 0 --memory-minutes 0 --real-minutes 60

First it prints the delays that the rules of the quick pass cause by themselves, in seconds of sound. Then it starts a
service with the bundled checkpoint and sends real sounds of the library, in faint noise, in real time over several
streams at once. For every event of POST /detect it looks for the first message about it, and for the first that closed
it. An event begins before its score reaches the threshold, and can be told only afterwards, so "risen" counts from the
first frame that reaches it. Events that /detect has and the quick pass has not are reported as told late. Then one
stream is sent as fast as the service takes it, while the memory of its process is read. The last measurement is one
stream in real time, of sounds over noise of changing level: memory and open files each minute, and equality with
/detect at the end. The load comes from this machine too.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import itertools
import json
import time
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import psutil
import soundfile
import soxr

from app.client.live import LiveSocket
from benchmarks.common import SOUNDS, Server
from model.detection import DetectionSettings, median_smooth
from model.live.cutter import LiveCutter
from model.live.track import LiveTrack, State

RATE = 16_000
CHUNK = 0.1  # seconds
TOLERANCE = 0.2  # seconds
PHRASES = {
    "dog barking": "dog-barking-bd8430",
    "breaking glass": "glass-shattering-cd90fe",
    "birds singing": "birds-singing-53ac0e",
    "door slamming": "door-slam-2adaa4",
    "crow cawing": "crow-5da38b",
}
THRESHOLD = 0.5
Events = list[tuple[str, float, float, float]]  # phrase, onset, offset, and where the score reaches the threshold


@dataclass
class Told:
    """What one stream told: seconds to the first message from the onset and from where the score reaches the threshold,
    and from the offset to the first message that closed the event."""

    opened: list[float] = field(default_factory=list)
    risen: list[float] = field(default_factory=list)
    closed: list[float] = field(default_factory=list)
    late: int = 0  # events that were told only when the settled pass had found them
    equal: int = 0
    differing: int = 0
    revised: int = 0


def scene(seed: int, events: int) -> np.ndarray:
    """Sounds of the library, two to four seconds apart, in faint noise (n,)."""
    rng = np.random.default_rng(seed)
    parts = [np.zeros(RATE)]
    names = list(PHRASES.values())
    for _ in range(events):
        sound, rate = soundfile.read(SOUNDS / f"{names[rng.integers(len(names))]}.ogg", dtype="float32", always_2d=True)
        mono = soxr.resample(sound.mean(axis=1), rate, RATE)[: int(3 * RATE)]
        parts += [mono * np.minimum(1, np.arange(len(mono), 0, -1) / 800), np.zeros(int(rng.uniform(2, 4) * RATE))]
    samples = np.concatenate(parts) + rng.normal(0, 0.0005, sum(map(len, parts)))
    return np.clip(samples, -1, 1).astype(np.float32)


def pcm(samples: np.ndarray) -> bytes:
    """Samples as 16-bit integers."""
    return (samples * 32767).astype("<i2").tobytes()


async def detect(server: Server, samples: np.ndarray) -> Events:
    """What POST /detect says of the same samples."""
    file = io.BytesIO()
    soundfile.write(file, np.frombuffer(pcm(samples), "<i2"), RATE, format="WAV", subtype="PCM_16")
    form = {"phrases": list(PHRASES), "threshold": THRESHOLD, "frames": "true"}
    async with httpx.AsyncClient(base_url=server.address, timeout=600, trust_env=False) as client:
        answer = (await client.post("/detect", files={"file": ("a.wav", file)}, data=form)).raise_for_status().json()
    hop, found = answer["frame_hop"], []
    for phrase in answer["phrases"]:
        scores = np.array(phrase["frame_scores"], np.float32)
        for event in phrase["events"]:
            onset, offset = event["onset"], event["offset"]
            found.append((phrase["phrase"], onset, offset, min(offset, reached(scores, onset, hop))))
    return found


async def listen(server: Server, samples: np.ndarray, delay: float) -> list[tuple[float, dict[str, Any]]]:
    """Sends samples in real time; the messages with the seconds since the first sample."""
    await asyncio.sleep(delay)
    data, step = pcm(samples), 2 * int(CHUNK * RATE)
    start = {"phrases": list(PHRASES), "sample_rate": RATE, "encoding": "pcm_s16le"}
    async with LiveSocket.open(server.address, None, start) as socket:
        messages = aiter(socket.messages())
        await anext(messages)
        began = time.monotonic()

        async def send() -> None:
            for number, at in enumerate(range(0, len(data), step)):
                await asyncio.sleep(max(0.0, began + (number + 1) * CHUNK - time.monotonic()))
                await socket.send(data[at : at + step])
            await socket.end()

        sending = asyncio.create_task(send())
        told = [(time.monotonic() - began, message) async for message in messages]
        await sending
    return told


def judge(truth: Events, told: list[tuple[float, dict[str, Any]]]) -> Told:
    """Compares what was told with what /detect says."""
    result = Told()
    news = [(at, m) for at, m in told if m["type"] in ("event", "retraction")]
    last = {m["id"]: m for _, m in news}
    standing = [(m["phrase"], m["onset"], m["offset"]) for m in last.values() if m["type"] == "event"]
    result.revised = len({m["id"] for _, m in news if m.get("revised") or m["type"] == "retraction"})
    for phrase, onset, offset, risen in truth:
        near = [
            s for s in standing if s[0] == phrase and max(abs(s[1] - onset), abs(s[2] - offset)) <= TOLERANCE + 2e-3
        ]
        result.equal += bool(near)
        about = [(at, m) for at, m in news if m["phrase"] == phrase and m["onset"] < offset and m["offset"] > onset]
        quick = [(at, m) for at, m in about if not m.get("revised")]
        if not quick or at_most(quick) - onset > 5:
            result.late += 1
            continue
        result.opened.append(at_most(quick) - onset)
        result.risen.append(at_most(quick) - risen)
        ends = [
            at - offset for at, m in about if not m.get("open", True) and abs(m["offset"] - offset) <= TOLERANCE + 2e-3
        ]
        if ends:
            result.closed.append(max(0.0, min(ends)))
    result.differing = len(truth) - result.equal + max(0, len(standing) - len(truth))
    return result


def at_most(news: list[tuple[float, dict[str, Any]]]) -> float:
    """When the first of these messages came."""
    return min(at for at, _ in news)


async def latency(server: Server, streams: int, events: int) -> None:
    """Prints a row of the table of latencies."""
    scenes = [scene(seed, -(-events // streams) + 1) for seed in range(streams)]
    truths = [await detect(server, samples) for samples in scenes]
    before, began = cpu_seconds(server), time.monotonic()
    told = await asyncio.gather(*(listen(server, s, 0.13 * n) for n, s in enumerate(scenes)))
    cores = (cpu_seconds(server) - before) / (time.monotonic() - began)
    results = [judge(truth, messages) for truth, messages in zip(truths, told, strict=True)]
    row: dict[str, object] = {"streams": streams, "events": sum(map(len, truths))}
    row |= quantiles(results)
    row |= {
        "late": sum(r.late for r in results),
        "revised": sum(r.revised for r in results),
        "differing": sum(r.differing for r in results),
        "cores": round(cores, 2),  # that the service kept busy
        "load": round(psutil.getloadavg()[0], 1),
    }
    print(json.dumps(row), flush=True)


def quantiles(results: list[Told]) -> dict[str, float | None]:
    """The delays of all streams: median and 95th percentile, and the share within 1.5 s."""
    row: dict[str, float | None] = {}
    for name, field_name in (("open", "opened"), ("risen", "risen"), ("close", "closed")):
        values = [each for result in results for each in getattr(result, field_name)]
        row |= {f"{name}_p50": quantile(values, 50), f"{name}_p95": quantile(values, 95)}
        row[f"{name}_within_1.5"] = round(float(np.mean(np.array(values) <= 1.5)), 3) if values else None
    return row


def cpu_seconds(server: Server) -> float:
    """CPU time of the service's process so far."""
    times = psutil.Process(server.process.pid).cpu_times()
    return float(times.user + times.system)


def quantile(values: list[float], q: float) -> float | None:
    """Seconds, rounded."""
    return round(float(np.percentile(values, q)), 2) if values else None


def delays(events: int) -> None:
    """Prints the delays of the quick pass in seconds of sound: what is left on a machine that takes no time."""
    import torch

    from model import FineLAP

    torch.set_num_threads(2)
    model, samples = FineLAP.from_pretrained("checkpoints/finelap-small"), scene(0, events)
    texts, cutter, numbers = model.encode_text(list(PHRASES)), LiveCutter(model.config.windows), itertools.count()
    tracks = {phrase: LiveTrack(DetectionSettings(), model.frame_hop, numbers) for phrase in PHRASES}
    told, heard_scores = Told(), {phrase: np.empty(0, np.float32) for phrase in PHRASES}
    numbers_told: set[int] = set()
    for at in range(0, len(samples), int(CHUNK * RATE)):
        cutter.push(samples[at : at + int(CHUNK * RATE)])
        heard = min(len(samples), at + int(CHUNK * RATE)) / RATE
        while (cut := cutter.take()) is not None:
            ((_, frames),) = model.encode_windows([cut[1]])
            scores = np.asarray(model.frame_score(np.asarray(frames)[cut[0].keep], np.asarray(texts)), np.float32)
            for (phrase, track), own in zip(tracks.items(), scores, strict=True):
                heard_scores[phrase] = np.concatenate([heard_scores[phrase], own])
                for news in track.push_quick(own):
                    if news.state is State.OPEN and news.number not in numbers_told:
                        numbers_told.add(news.number)
                        told.opened.append(heard - news.event.onset)
                        told.risen.append(heard - reached(heard_scores[phrase], news.event.onset, model.frame_hop))
                    elif news.state is State.CLOSED and not news.revised:
                        told.closed.append(heard - news.event.offset)
    row = {"events": len(told.closed), **quantiles([told])}
    print(json.dumps({"in_sound": row}), flush=True)


def reached(scores: np.ndarray, onset: float, hop: float) -> float:
    """Where scores (t,) reach the threshold first after an onset, in seconds."""
    smooth = median_smooth(scores, DetectionSettings().median_filter, hop)
    certain = hop * np.flatnonzero(smooth >= THRESHOLD)
    return float(certain[certain >= onset - 1e-3].min(initial=hop * len(scores)))


async def memory(server: Server, minutes: float) -> None:
    """Sends one stream as fast as the service takes it, and prints the memory of its process meanwhile."""
    process = psutil.Process(server.process.pid)
    block = pcm(scene(1, 20))
    start = {"phrases": list(PHRASES), "sample_rate": RATE, "encoding": "pcm_s16le"}
    async with LiveSocket.open(server.address, None, start) as socket:
        until, sent = time.monotonic() + 60 * minutes, 0

        async def send() -> None:
            nonlocal sent
            while time.monotonic() < until:
                for at in range(0, len(block), 32_000):
                    await socket.send(block[at : at + 32_000])
                    sent += len(block[at : at + 32_000]) // 2
            await socket.end()

        async def watch() -> None:
            while True:
                row = {"heard_s": round(sent / RATE), "rss_mb": round(process.memory_info().rss / 1e6)}
                print(json.dumps(row), flush=True)
                await asyncio.sleep(max(5.0, 6 * minutes))

        watching, sending = asyncio.create_task(watch()), asyncio.create_task(send())
        count = 0
        async for message in socket.messages():
            count += message["type"] == "event"
        await sending
        watching.cancel()
    print(json.dumps({"heard_s": round(sent / RATE), "events": count}), flush=True)


async def endure(server: Server, minutes: float) -> None:
    """Sends one stream in real time, prints memory and open files of the service each minute, and judges the events."""
    process, samples = psutil.Process(server.process.pid), noisy(2, minutes)
    began = time.monotonic()

    async def watch() -> None:
        for minute in itertools.count():
            await asyncio.sleep(max(0.0, began + 60 * minute - time.monotonic()))
            row = {"minute": minute, "rss_mb": round(process.memory_info().rss / 1e6, 1), "files": process.num_fds()}
            print(json.dumps(row), flush=True)

    watching = asyncio.create_task(watch())
    told = await listen(server, samples, 0.0)
    watching.cancel()
    truth = await detect(server, samples)
    result = judge(truth, told)
    row = {"minutes": minutes, "events": len(truth), "differing": result.differing, "revised": result.revised}
    print(json.dumps(row | {"late": result.late} | quantiles([result])), flush=True)


def noisy(seed: int, minutes: float) -> np.ndarray:
    """A scene (n,) of so many minutes, in noise whose level changes slowly between -65 and -45 dBFS."""
    parts, length = [], int(60 * minutes * RATE)
    while sum(map(len, parts)) < length:
        parts.append(scene(seed + len(parts), 50))
    samples = np.concatenate(parts)[:length]
    seconds = np.arange(length, dtype=np.float32) / RATE
    level = 10 ** ((-55 + 10 * np.sin(2 * np.pi * seconds / 300)) / 20)
    noise = np.random.default_rng(seed).standard_normal(length, dtype=np.float32)
    return np.clip(samples + level * noise, -1, 1).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure live streams.")
    parser.add_argument("--streams", type=int, nargs="*", default=[1, 4, 16])
    parser.add_argument("--events", type=int, default=100, help="for each number of streams")
    parser.add_argument("--memory-minutes", type=float, default=3.0)
    parser.add_argument("--real-minutes", type=float, default=0.0, help="of one stream in real time (0)")
    args = parser.parse_args()
    if args.events:
        delays(args.events)
    with Server() as server:
        for streams in args.streams:
            asyncio.run(latency(server, streams, args.events))
        if args.memory_minutes:
            asyncio.run(memory(server, args.memory_minutes))
        if args.real_minutes:
            asyncio.run(endure(server, args.real_minutes))


if __name__ == "__main__":
    main()
