"""Measures how much the embeddings of a sound vary with everything except the sound.

    python -m benchmarks.reliability.determinism [--json FILE]

Batches: embedded alone and with other recordings of any length, in batches of several sizes. Threads: 1, 2 and 3.
Restarts: in separate processes. Formats: files with the same samples, and lossy ones. The difference is the largest
over all values of the clip embedding and the frames; cosines are relative to the embeddings of the WAV.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from benchmarks import common
from benchmarks.common import Tape
from model.config import SAMPLE_RATE

CHECKPOINT = common.REPO / "checkpoints" / "finelap-small"
SECONDS = (0.7, 3.0, 10.0, 24.0)  # lengths of the recordings
SAME = ("FLAC", "AIFF", "AU", "CAF", "W64", "RF64")  # formats that keep 16-bit samples
LOSSY = ("OGG", "MP3")
_FINELAP = [sys.executable, "-c", "import sys; from app.cli.main import main; sys.exit(main())"]


@dataclass(frozen=True)
class Row:
    """A row of the table: the largest difference of any value, and the lowest cosines of clips and frames."""

    what: str
    difference: float
    clip: float
    frame: float


Embedded = dict[str, tuple[np.ndarray, np.ndarray]]  # name → clip (D,), frames (T, D)


def recordings(rate: int = SAMPLE_RATE) -> dict[str, np.ndarray]:
    """Recordings by name, as 16-bit samples (n,)."""
    return {
        f"{s:g}s": np.round(Tape(int(s * 10), rate=rate).read(int(s * rate)) * 32767).astype(np.int16) for s in SECONDS
    }


def compare(what: str, ours: Embedded, theirs: Embedded, names: list[str] | None = None) -> Row:
    """Compares two sets of embeddings; a lossy file may be one frame longer."""
    pairs = [(ours[name], theirs[name]) for name in names or ours]
    lengths = [min(len(a[1]), len(b[1])) for a, b in pairs]
    return Row(
        what,
        max(
            float(max(np.abs(a[0] - b[0]).max(), np.abs(a[1][:n] - b[1][:n]).max()))
            for (a, b), n in zip(pairs, lengths, strict=True)
        ),
        min(_cosine(a[0][None], b[0][None]) for a, b in pairs),
        min(_cosine(a[1][:n], b[1][:n]) for (a, b), n in zip(pairs, lengths, strict=True)),
    )


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


class _Decoded:
    """Stands in for app.decoding.pool.DecodedStream: samples (n,) that are decoded already."""

    sample_rate, channels, tags = SAMPLE_RATE, 1, dict[str, str | list[str]]()

    def __init__(self, samples: np.ndarray) -> None:
        self._samples, self.duration = samples, len(samples) / SAMPLE_RATE

    async def __aiter__(self) -> AsyncIterator[np.ndarray]:
        yield self._samples


def batches() -> list[Row]:
    """Embeds in this process, alone and with other recordings, and with several numbers of threads."""
    import torch

    from app.inference.engine import Engine
    from app.services.audio_source import FileEmbeddingStream
    from model import FineLAP

    model = FineLAP.from_pretrained(CHECKPOINT)
    sounds = {name: samples.astype(np.float32) / 32768 for name, samples in recordings().items()}
    random = np.random.default_rng(0)
    others = [Tape(n).read(int(random.uniform(0.3, 25) * SAMPLE_RATE)) for n in range(12)]

    async def embed_one(engine: Engine, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        async with FileEmbeddingStream(engine, _Decoded(samples), "") as stream:
            frames = np.concatenate([part async for part in stream])
            return stream.embedding, frames

    async def embed(company: list[np.ndarray], size: int) -> Embedded:
        engine = Engine(model, max_batch_windows=size)
        await engine.start()
        try:
            busy = [asyncio.create_task(embed_one(engine, other)) for other in company]
            if company:
                found = await asyncio.gather(*(embed_one(engine, samples) for samples in sounds.values()))
            else:
                found = [await embed_one(engine, samples) for samples in sounds.values()]
            await asyncio.gather(*busy)
            return dict(zip(sounds, found, strict=True))
        finally:
            await engine.close()

    alone = asyncio.run(embed([], 1))
    rows = [compare(f"with others, batches of {n}", alone, asyncio.run(embed(others, n))) for n in (2, 5, 16)]
    rows.append(compare("again, alone", alone, asyncio.run(embed([], 16))))
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            rows.append(compare(f"threads: {threads}", alone, asyncio.run(embed(others[:3], 16))))
    finally:
        torch.set_num_threads(before)
    return rows


def formats(folder: Path) -> list[Row]:
    """Embeds files in separate processes: WAV twice, and all other formats."""
    sounds = recordings() | {f"{name} at 44.1 kHz": samples for name, samples in recordings(44_100).items()}
    groups = {kind: _write(folder / kind, sounds, kind) for kind in ("WAV", *SAME, *LOSSY)}
    whole = _embed([path for group in groups.values() for path in group.values()], folder / "all.npz")
    found = {kind: {name: whole[path.name] for name, path in group.items()} for kind, group in groups.items()}
    again = _embed(list(groups["WAV"].values()), folder / "again.npz", OMP_NUM_THREADS="1")
    wav = found["WAV"]
    rows = [compare("another process, one thread", wav, {name: again[p.name] for name, p in groups["WAV"].items()})]
    rows += [compare(f"as {kind}", wav, found[kind]) for kind in SAME]
    return rows + [compare(f"as {kind}, lossy", wav, found[kind]) for kind in LOSSY]


def _write(folder: Path, sounds: dict[str, np.ndarray], kind: str) -> dict[str, Path]:
    folder.mkdir()
    paths = {}
    for name, samples in sounds.items():
        paths[name] = folder / f"{name.replace(' ', '-')}.{kind.lower()}"
        rate = 44_100 if "44.1" in name else SAMPLE_RATE
        subtype = {"OGG": "VORBIS", "MP3": "MPEG_LAYER_III"}.get(kind, "PCM_16")
        soundfile.write(paths[name], samples, rate, format=kind, subtype=subtype)
    return paths


def _embed(paths: list[Path], output: Path, **environment: str) -> Embedded:
    """Runs `finelap embed`, which decodes and batches like the service."""
    command = [*_FINELAP, "embed", *map(str, paths), "-o", str(output), "--frames", "--checkpoint", str(CHECKPOINT)]
    env = os.environ | {"PYTHONPATH": str(common.REPO)} | environment
    subprocess.run(command, env=env, check=True, capture_output=True, timeout=600)
    with np.load(output) as made:
        at = [*made["frame_offsets"]]
        parts = [made["frames"][first:last] for first, last in zip(at, at[1:], strict=False)]
        names = [Path(str(name)).name for name in made["filenames"]]
        assert len(set(names)) == len(paths) == len(parts)
        return dict(zip(names, zip(made["clips"], parts, strict=True), strict=True))


def measure() -> list[Row]:
    """Measures the whole table."""
    with tempfile.TemporaryDirectory() as folder:
        return batches() + formats(Path(folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = measure()
    head = ("what differs", "largest difference", "1 − cosine, clip", "1 − cosine, worst frame")
    print(
        common.table(head, [(r.what, f"{r.difference:.1e}", f"{1 - r.clip:.1e}", f"{1 - r.frame:.1e}") for r in rows])
    )
    common.write_json(args.json, {"rows": [vars(row) for row in rows], "machine": common.machine()})


if __name__ == "__main__":
    main()
