"""A folder of synthetic mixtures: recordings surveyed and cut, mixtures drawn and written, by several processes.

Knows files; how sounds are cut and mixed is `training.data.mixer`'s. The folder holds

    simulate.json     the settings; a later run must have the same ones, only `count` may grow
    clips.jsonl       every recording: what was kept of it, or why nothing was
    clips/            what was kept, FLAC
    mixtures.jsonl    every mixture: its background and events with file, SNR and times
    audio/            the mixtures, FLAC, 16 kHz, 16 bits
    manifest.jsonl    the same in the published form, for training
    strong.tsv, durations.tsv    the same in DCASE's form

Mixture i depends on the seed, i and the recordings alone, and results are written down in order, so neither the number
of processes nor being killed and started again changes a byte.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from training.data.manifests import SAMPLE_RATE, Item, Phrase, decode, write_manifest
from training.data.mixer import (
    Clip,
    ClipConfig,
    FabricateError,
    MixConfig,
    Mixer,
    background_pieces,
    clip_event,
    cut,
    is_background,
)
from training.journal import PART, journal, rows_of, write_whole
from training.simulation.sources import Source

FOLDERS = ("audio", "clips", "pictures")
FILES = ("simulate.json", "clips.jsonl", "mixtures.jsonl", "manifest.jsonl", "strong.tsv", "durations.tsv")


@dataclass(frozen=True)
class SetConfig:
    """One set of mixtures."""

    count: int
    seed: int = 0
    cutting: ClipConfig = field(default_factory=ClipConfig)
    mixing: MixConfig = field(default_factory=MixConfig)


@dataclass(frozen=True)
class Summary:
    """What came of a run. `unusable` counts recordings by reason; `made` mixtures are new in this run."""

    events: int
    labels: int
    backgrounds: int
    unusable: Counter[str]
    made: int
    count: int
    seconds: float  # that making them took


def make_set(
    sources: Sequence[Source],
    beds: Sequence[Source],
    out: Path,
    config: SetConfig,
    workers: int = 1,
    progress: bool = False,
    restart: bool = False,
) -> Summary:
    """Writes, or goes on writing, a set of mixtures of `sources`; recordings in `beds` serve as backgrounds only.

    Errors: FabricateError for settings that are not the folder's, recordings of no use, or a worker that died; OSError,
    a full disk for one: what is written then is whole, and the same call goes on from there.
    """
    out.mkdir(parents=True, exist_ok=True)
    with _alone(out):
        _prepare(out, config, sources, beds, restart)
        clips = _survey(sources, beds, out, config.cutting, workers, progress)
        events = [Clip(r["file"], r["label"], r["seconds"]) for r in clips if r["kind"] == "event"]
        under = [Clip(f, r["label"], r["seconds"]) for r in clips if r["kind"] == "background" for f in r["files"]]
        unusable = Counter(r["reason"] for r in clips if r["kind"] is None)
        try:
            Mixer(events, under, partial(_read, out), config.mixing, config.cutting)
        except FabricateError as error:
            why = "; ".join(f"{n} {reason}" for reason, n in unusable.most_common(5))
            raise FabricateError(f"{error}" + (f" (of {len(clips)} recordings: {why})" if why else "")) from None
        started = time.monotonic()
        made = _mix(events, under, out, config, workers, progress)
        seconds = time.monotonic() - started
    return Summary(len(events), len({e.label for e in events}), len(under), unusable, made, config.count, seconds)


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Holds the folder against a second run; the hold ends with the process however that ends."""
    hold = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(hold, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FabricateError(f"{out}: another run is writing there") from None
        yield
    finally:
        os.close(hold)


def _prepare(out: Path, config: SetConfig, sources: Sequence[Source], beds: Sequence[Source], restart: bool) -> None:
    """Empties, checks or founds the folder; what a killed process left half-written goes."""
    if restart and (out / "simulate.json").is_file():
        for name in FOLDERS:
            shutil.rmtree(out / name, ignore_errors=True)
        for name in FILES:
            (out / name).unlink(missing_ok=True)
            (out / (name + PART)).unlink(missing_ok=True)
    listed = hashlib.sha256()
    for s in (*sources, None, *beds):
        size = s.path.stat().st_size if s and s.path.is_file() else -1
        listed.update(json.dumps([s.name, s.label, size] if s else None).encode())
    settings = json.loads(json.dumps(asdict(config) | {"recordings": listed.hexdigest()}))
    del settings["count"]
    known = out / "simulate.json"
    if not known.is_file():
        if any(p.name != known.name + PART for p in out.iterdir()):
            raise FabricateError(f"{out}: not empty, and not a folder of mixtures")
    elif (was := json.loads(known.read_text(encoding="utf-8"))) != settings:
        changed = _changed(was, settings)
        raise FabricateError(f"{out}: made with other settings ({changed}); choose another folder or restart it")
    write_whole(known, (json.dumps(settings, indent=1) + "\n").encode())
    for name in FOLDERS[:2]:
        (out / name).mkdir(exist_ok=True)
        for left in (out / name).glob("*" + PART):
            left.unlink()


def _changed(was: dict, now: dict) -> str:
    """The settings that differ, as in "seed 1, not 2"."""
    said = []
    for key in now:
        old, new = was.get(key), now[key]
        if isinstance(new, dict) and isinstance(old, dict):
            said += [f"{k} {old.get(k)}, not {v}" for k, v in new.items() if old.get(k) != v]
        elif old != new:
            said.append("other recordings" if key == "recordings" else f"{key} {old}, not {new}")
    return "; ".join(said)


def _survey(
    sources: Sequence[Source], beds: Sequence[Source], out: Path, config: ClipConfig, workers: int, progress: bool
) -> list[dict[str, Any]]:
    """One row for each recording, cut into clips/ where it is of use."""
    jobs = [(i, s, i >= len(sources)) for i, s in enumerate((*sources, *beds))]
    return journal(out / "clips.jsonl", jobs, _survey_one, (out, config), workers, progress, "recordings")


def _survey_one(job: tuple[int, Source, bool], shared: tuple[Path, ClipConfig]) -> dict[str, Any]:
    """Cuts one recording: background where a pattern or its folder says so or it is long and steady, else event."""
    (number, source, bed), (out, config) = job, shared
    row: dict[str, Any] = {"recording": source.name, "label": source.label, "group": source.group}
    if source.licence:
        row["licence"] = source.licence
    if source.label is None and not bed:
        return row | {"kind": None, "reason": source.reason}
    try:
        samples = decode(source.path)
    except (OSError, RuntimeError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError) or not source.path.exists()
        return row | {"kind": None, "reason": "missing" if missing else "cannot be decoded", "detail": _detail(error)}
    named = bed or is_background(source.label or "", config)
    starts = background_pieces(samples, config, named) if named or not config.backgrounds else []
    if starts:
        files = [f"clips/{number:06d}-{i}.flac" for i in range(len(starts))]
        for file, start in zip(files, starts, strict=True):
            write_flac(out / file, cut(samples, start, start + config.background))
        label = source.label or "background"
        return row | {"label": label, "kind": "background", "seconds": config.background, "files": files, "at": starts}
    if named:
        return row | {"kind": None, "reason": f"a background of less than {config.background:g} s, or silent"}
    stretch, reason = clip_event(samples, config)
    if stretch is None:
        return row | {"kind": None, "reason": reason}
    file = f"clips/{number:06d}.flac"
    write_flac(out / file, cut(samples, *stretch))
    kept = {"at": [round(t, 4) for t in stretch], "seconds": round(stretch[1] - stretch[0], 4)}
    return row | {"kind": "event", "file": file} | kept


def _detail(error: Exception) -> str:
    """What is wrong with a recording without the path it lies at, which differs from machine to machine."""
    text = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    return " ".join(str(text).split())


def _mix(events: list[Clip], under: list[Clip], out: Path, config: SetConfig, workers: int, progress: bool) -> int:
    """Writes what mixtures are missing, then the lists of them; the number of new ones."""
    jobs = list(range(config.count))
    done = rows_of(out / "mixtures.jsonl")
    if len(done) > config.count:
        raise FabricateError(f"{out}: has {len(done)} mixtures already; ask for that many or more")
    shared = (out, config, events, under)
    rows = journal(out / "mixtures.jsonl", jobs, _mix_one, shared, workers, progress, "mixtures")
    _write_lists(out, rows, config)
    return config.count - len(done)


def _mix_one(number: int, shared: tuple[Path, SetConfig, list[Clip], list[Clip]]) -> dict[str, Any]:
    out, config, events, under = shared
    mixer = Mixer(events, under, partial(_read, out), config.mixing, config.cutting)
    mixture = mixer.draw(np.random.default_rng([config.seed, number]))
    name = f"mix-{config.seed}-{number:06d}"
    write_flac(out / "audio" / f"{name}.flac", mixture.samples)
    return {
        "audio_id": name,
        "caption": mixture.caption,
        "seconds": len(mixture.samples) / SAMPLE_RATE,
        "background": {"file": mixture.background.name, "label": mixture.background.label},
        "events": [
            {"file": e.clip.name, "label": e.clip.label, "snr_db": e.snr_db, "segments": e.segments}
            for e in mixture.events
        ],
    }


def _write_lists(out: Path, rows: list[dict[str, Any]], config: SetConfig) -> None:
    """The published manifest and DCASE's two tables, from the rows of the mixtures."""
    items, strong, durations = [], ["filename\tonset\toffset\tevent_label"], ["filename\tduration"]
    for row in rows:
        file = f"{row['audio_id']}.flac"
        phrases = [Phrase(e["label"], tuple((a, b) for a, b in e["segments"])) for e in row["events"]]
        if config.mixing.name_background:
            phrases.append(Phrase(row["background"]["label"], ((0.0, row["seconds"]),)))
        items.append(Item(row["audio_id"], out / "audio" / file, (row["caption"],), tuple(phrases)))
        spans = sorted((a, b, p.text) for p in phrases for a, b in p.segments)
        strong += [f"{file}\t{a:.4f}\t{b:.4f}\t{text}" for a, b, text in spans]
        durations.append(f"{file}\t{row['seconds']:g}")
    manifest = out / ("manifest.jsonl" + PART)
    try:
        write_manifest(manifest, items, out)
        manifest.replace(out / "manifest.jsonl")
    finally:
        manifest.unlink(missing_ok=True)
    write_whole(out / "strong.tsv", ("\n".join(strong) + "\n").encode())
    write_whole(out / "durations.tsv", ("\n".join(durations) + "\n").encode())


def _read(out: Path, clip: Clip) -> np.ndarray:
    return soundfile.read(out / clip.name, dtype="float32")[0]


def write_flac(path: Path, samples: np.ndarray) -> None:
    """(n,) float32 as 16-bit FLAC at 16 kHz, whole or not at all; OSError where it cannot be written."""
    data = io.BytesIO()  # encoded in memory: the encoder's own message for a full disk does not say that it is full
    soundfile.write(data, samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    write_whole(path, data.getvalue())
