"""Measures moment search in a whole library: which candidates find the moments, and what it costs.

    python -m benchmarks.index.moments find ../shared/sfx --cache library.pickle
    python -m benchmarks.index.moments time --cache library.pickle

`find` creates a library with known events: scenes of 10 s, recordings of minutes and hours with a few events over a
steady background, and single sounds. SOUNDS is a folder of labelled sounds, as filled by
`python -m training.recipes.fetch_sounds`. It then compares ways to select candidates for POST /search/moments, for
queries of kinds of sounds and of labels.

`time` uses these recordings as patterns for a library of 100,000 clips. Each clip is a recording of at most 15 s whose
frames and segments are all shifted by one random vector of a third of their length, so no two clips are equal but each
changes over time like its pattern. It queries the service in this process, without a network.

The checkpoint was trained on most of these sounds, though not on these mixtures: `find` compares candidates and does
not predict the results on other libraries. The cache is a pickle; do not open one from an untrusted source.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import pickle
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import psutil

from app.inference.engine import Engine
from app.main import create_app
from app.services.moments import CANDIDATES
from app.settings import Settings
from benchmarks.index.exclusion import KINDS
from index import Clip, FrameCodes, SqliteLibrary, cut_segments, encode_frames
from index.new_clip import EncodedClip
from index.sqlite.queries import insert
from index.sqlite.store import Store
from model import FineLAP
from model.config import SAMPLE_RATE
from model.detection import find_moments, median_smooth
from training.data.audio_cache import AudioFiles
from training.data.manifests import read_labelled
from training.data.mixer import SceneConfig, SceneMaker

BEST = 10  # moments per query
LABELS = 80  # queried in addition to KINDS
LONG = 60.0  # seconds; recordings of at least this length count as long
Segments = list[tuple[float, float]]


@dataclass(frozen=True)
class Recording:
    """An embedded recording and its events by label."""

    duration: float  # seconds
    clip: np.ndarray  # (D,)
    codes: bytes  # quantised frames
    events: dict[str, Segments]


@dataclass(frozen=True)
class Query:
    """A text, and which labels match it."""

    text: str
    matches: Callable[[str], bool]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="checkpoints/finelap-small")
    commands = parser.add_subparsers(dest="command", required=True)
    find = commands.add_parser("find")
    find.add_argument("sounds", type=Path)
    find.add_argument("--cache", type=Path, required=True)
    find.add_argument("--scenes", type=int, default=1500)
    find.add_argument("--long", type=int, default=60, help="recordings of five minutes")
    find.add_argument("--hours", type=int, default=3, help="recordings of an hour")
    find.add_argument("--candidates", type=int, default=CANDIDATES)
    find.add_argument("--out", type=Path)
    timing = commands.add_parser("time")
    timing.add_argument("--cache", type=Path, required=True)
    timing.add_argument("--clips", type=int, default=100_000)
    timing.add_argument("--folder", type=Path, help="folder to keep the library in; reused if it exists")
    options = parser.parse_args(arguments)
    model = FineLAP.from_pretrained(options.checkpoint)
    if options.command == "find":
        if not options.cache.exists():
            found = list(make_library(model, options.sounds, options.scenes, options.long, options.hours))
            options.cache.write_bytes(pickle.dumps(found))
        table = compare(model, pickle.loads(options.cache.read_bytes()), options.candidates)
        columns = next(iter(table.values()))
        print("| candidates from | " + " | ".join(columns) + " |")
        for name, row in table.items():
            print(f"| {name} | " + " | ".join(f"{value:.1f}" for value in row.values()) + " |")
        if options.out:
            options.out.write_text(json.dumps(table, indent=1) + "\n")
    else:
        with tempfile.TemporaryDirectory() as aside:
            folder = options.folder or Path(aside)
            if not (folder / "catalog.sqlite3").exists():
                make_many(model, pickle.loads(options.cache.read_bytes()), options.clips, folder)
            asyncio.run(measure(model, folder))


# Recall


def make_library(model: FineLAP, sounds: Path, scenes: int, longs: int, hours: int) -> Iterator[Recording]:
    """Creates the recordings, deterministically."""
    files = AudioFiles([item for item in read_labelled(sounds) if item.captions])
    label = [item.captions[0] for item in files.items]
    decoded: dict[int, np.ndarray] = {}

    def get(i: int) -> np.ndarray:
        if i not in decoded:
            decoded[i] = files.get(i)
        return decoded[i]

    steady = np.array([i for i in range(len(files)) if files.duration(i) >= 4.0])
    number = 0
    for count, duration, events in ((scenes, 10.24, None), (longs, 300.0, 6), (hours, 3600.0, 12)):
        under = 0.6 if events is None else 1.0
        config = SceneConfig(duration=duration, mixture=1.0, augment=0.0, background=under)
        maker = SceneMaker(get, np.ones(len(files)), steady, config)
        for _ in range(count):
            rng, number = np.random.default_rng([5, number]), number + 1
            scene = maker.scene(rng, None if events is None else [maker.draw_source(rng) for _ in range(events)])
            named: dict[str, Segments] = {}
            for source, onset, offset in scene.events:
                named.setdefault(label[source], []).append((onset, offset))
            yield _embedded(model, scene.samples, named)
    for i in range(len(files)):
        if files.length(i) >= 1000:
            samples = get(i)
            yield _embedded(model, samples, {label[i]: [(0.0, len(samples) / SAMPLE_RATE)]})


def _embedded(model: FineLAP, samples: np.ndarray, events: dict[str, Segments]) -> Recording:
    (found,) = model.encode_audio([samples], SAMPLE_RATE)
    codes = encode_frames(found.frames.numpy()).to_bytes()
    return Recording(len(samples) / SAMPLE_RATE, found.clip.numpy(), codes, events)


def rules() -> dict[str, Callable[[np.ndarray, float], np.ndarray]]:
    """Candidate vectors of a clip, computed from its frames (T, D) and their hop."""
    made: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {}
    for seconds in (0.96, 1.92, 2.88, 5.12):
        for overlap in (1, 2):
            name = f"{seconds:g} s" + (", half overlapping" if overlap == 2 else "")
            made[name] = lambda f, hop, s=seconds, o=overlap: _fixed(f, round(s / hop), o)  # type: ignore[misc]
    made["segments"] = lambda f, hop: cut_segments(encode_frames(f), hop).decode()
    made["every frame"] = lambda f, hop: f
    return made


def _fixed(frames: np.ndarray, length: int, overlap: int) -> np.ndarray:
    starts = list(range(0, max(1, len(frames) - length + 1), length // overlap))
    if starts[-1] + length < len(frames):
        starts.append(len(frames) - length)
    means = np.stack([frames[start : start + length].mean(axis=0) for start in starts])
    return _unit(means)


def compare(model: FineLAP, library: list[Recording], candidates: int) -> dict[str, dict[str, float]]:
    """Rule → its figures, in percent except for the first."""
    asked = queries(library)
    texts = model.encode_text([query.text for query in asked]).numpy()
    frames = [FrameCodes.from_bytes(recording.codes, model.dim).decode() for recording in library]
    scores = [median_smooth(model.frame_score(f, texts).numpy(), 0.48, model.frame_hop).max(axis=1) for f in frames]
    judge = Judge(model, library, frames, asked, texts, np.stack(scores, axis=1))
    everything = np.tile(np.arange(len(library)), (len(asked), 1))
    hours = sum(recording.duration for recording in library) / 3600
    print(f"{len(library)} recordings, {hours:.1f} h, {len(asked)} queries, {candidates} candidates")
    table = {"all clips": judge(everything, 0)}
    clips = np.stack([recording.clip for recording in library])
    table["clip vectors"] = judge(nearest(texts, clips, np.arange(len(clips)), candidates), len(clips) / hours)
    for name, rule in rules().items():
        parts = [rule(f, model.frame_hop) for f in frames]
        owners = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        found = nearest(texts, np.concatenate(parts), owners, candidates)
        table[name] = judge(found, len(owners) / hours)
    return table


def queries(library: list[Recording]) -> list[Query]:
    """Queries for KINDS and for LABELS labels of long recordings."""
    asked = [Query(kind, lambda x, w=words: not set(x.split()).isdisjoint(w)) for kind, words in KINDS.items()]  # type: ignore[misc]
    rng = np.random.default_rng(0)
    long = sorted({label for recording in library if recording.duration >= LONG for label in recording.events})
    return asked + [Query(str(x), lambda y, x=str(x): x == y) for x in rng.permutation(long)[:LABELS]]  # type: ignore[misc]


def nearest(texts: np.ndarray, vectors: np.ndarray, owners: np.ndarray, candidates: int) -> list[np.ndarray]:
    """For each text, the recordings with the most similar vectors."""
    found = []
    for text in texts:
        order = owners[np.argsort(-(vectors @ text), kind="stable")]
        found.append(order[np.sort(np.unique(order, return_index=True)[1])][:candidates])
    return found


@dataclass(frozen=True)
class Judge:
    """Computes the figures of candidates from the moments that the exact stage finds in them."""

    model: FineLAP
    library: list[Recording]
    frames: list[np.ndarray]
    asked: list[Query]
    texts: np.ndarray
    best: np.ndarray  # (Q, N): highest smoothed frame score

    def __call__(self, candidates: list[np.ndarray] | np.ndarray, vectors: float) -> dict[str, float]:
        same, kinds, labels, long = [], [], [], []
        for q, query in enumerate(self.asked):
            chosen = np.asarray(candidates[q])
            top = np.argsort(-self.best[q], kind="stable")[:BEST]
            same.append(np.isin(top, chosen).mean())
            true = [
                [e for label, events in r.events.items() if query.matches(label) for e in events] for r in self.library
            ]
            there = [n for n, r in enumerate(self.library) if true[n] and r.duration >= LONG]
            long += np.isin(there, chosen).tolist()
            moments = self.moments(q, chosen)
            right = [any(_iou(start, end, *event) >= 0.5 for event in true[n]) for _, n, start, end in moments]
            (kinds if q < len(KINDS) else labels).append(np.mean(right))
        shares = {"same": same, "kinds right": kinds, "labels right": labels, "long found": long}
        return {"vectors an hour": vectors} | {name: 100 * float(np.mean(share)) for name, share in shares.items()}

    def moments(self, q: int, chosen: np.ndarray) -> list[tuple[float, int, float, float]]:
        """The BEST moments (score, recording, start, end) of the chosen recordings."""
        found = []
        for n in chosen[np.argsort(-self.best[q, chosen], kind="stable")][:BEST].tolist():
            scores = self.model.frame_score(self.frames[n], self.texts[q : q + 1]).numpy()[0]
            for moment in find_moments(scores, self.model.frame_hop, self.library[n].duration, BEST):
                found.append((moment.score, n, moment.start, moment.end))
        return sorted(found, reverse=True)[:BEST]


def _iou(start: float, end: float, onset: float, offset: float) -> float:
    common = max(0.0, min(end, offset) - max(start, onset))
    return common / (end - start + offset - onset - common)


# Cost


def make_many(model: FineLAP, library: list[Recording], count: int, folder: Path) -> None:
    """Creates a library of `count` clips and moves it to `folder` when it is complete."""
    began = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as aside:
        SqliteLibrary.open(Path(aside), dim=model.dim, checkpoint=model.stamp).close()
        fill(Path(aside) / "catalog.sqlite3", model, [r for r in library if r.duration <= 15], count)
        (Path(aside) / "catalog.sqlite3").rename(folder / "catalog.sqlite3")
    print(f"made {count} clips in {time.perf_counter() - began:.0f} s", flush=True)


async def measure(model: FineLAP, folder: Path) -> None:
    """Prints the size, start-up time, memory and latencies of the library."""
    process = psutil.Process()
    before, began = process.memory_info().rss, time.perf_counter()
    library = SqliteLibrary.open(folder, dim=model.dim, checkpoint=model.stamp)
    took, grown = time.perf_counter() - began, process.memory_info().rss - before
    print(f"opened in {took:.1f} s, {grown / 1e6:.0f} MB more; {len(library._segments)} segments")
    texts = list(KINDS)
    vectors = model.encode_text(texts).numpy()
    times = []
    for vector in np.concatenate([vectors] * 3):
        began = _clocks()
        library.search_segments(vector, CANDIDATES)
        times.append(_clocks() - began)
    _print("candidates", times)
    settings = Settings(_env_file=None, data_dir=folder)  # type: ignore[call-arg]
    app = create_app(settings, Engine(model), library)
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://a") as client:
        pairs = [{"sequence": [a, b]} for a, b in zip(texts, texts[1:], strict=False)]
        for name, asked in (("moments", [{"query": text} for text in texts]), ("sequences of two", pairs)):
            times = []
            for query in [asked[0], *asked * 3]:
                began = _clocks()
                (await client.post("/search/moments", json=query)).raise_for_status()
                times.append(_clocks() - began)
            _print(name, times[1:])


def fill(path: Path, model: FineLAP, patterns: list[Recording], count: int) -> None:
    """Inserts `count` clips without audio into an empty library's database."""
    rng = np.random.default_rng(0)
    frames = [FrameCodes.from_bytes(pattern.codes, model.dim) for pattern in patterns]
    parts = [cut_segments(some, model.frame_hop).decode() for some in frames]
    database = Store(path)
    for first in range(0, count, 2000):
        with database.write() as change:
            for number in range(first, min(first + 2000, count)):
                chosen = int(rng.integers(len(patterns)))
                pattern = patterns[chosen]
                move = rng.standard_normal(model.dim).astype(np.float32) / (3 * np.sqrt(model.dim))
                codes = encode_frames(_unit(frames[chosen].decode() + move))
                vector = _unit(pattern.clip[None] + move)[0]
                name = f"{number:032x}"
                clip = Clip(name, f"{name}.wav", name * 2, pattern.duration, 16_000, 1, "2026-01-01T00:00:00Z", {})
                segments = encode_frames(_unit(parts[chosen] + move))
                insert(change, EncodedClip(clip, "{}", vector, codes.to_bytes(), model.frame_hop, segments))
    database.close()


def _unit(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


def _clocks() -> np.ndarray:
    return np.array([time.perf_counter(), time.process_time()])


def _print(name: str, times: list[np.ndarray]) -> None:
    """`times` holds the wall and processor seconds of each query."""
    middle, cpu = np.median(times, axis=0) * 1000
    high = np.percentile(np.array(times)[:, 0], 95) * 1000
    print(f"{name}: median {middle:.0f} ms, p95 {high:.0f} ms of {len(times)}; {cpu:.0f} ms of a core")


if __name__ == "__main__":
    main()
