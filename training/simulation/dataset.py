"""Writes a folder of synthetic mixtures: cuts recordings into clips, mixes them, and lists the labels.

The folder contains

    simulate.json     the settings; later runs must use the same ones, only `count` may grow
    clips.jsonl       every recording: the clips cut from it, or the reason there are none
    clips/            the clips, FLAC
    mixtures.jsonl    every mixture: its background and events with file, SNR and segments
    audio/            the mixtures, 16-bit FLAC at 16 kHz, or 22.05 kHz as published
    manifest.jsonl    the mixtures in the published form, for training
    strong.tsv, durations.tsv    the mixtures in DCASE's form

Mixture i depends only on the seed, i and the recordings, and rows are written in order. The output is therefore
byte-identical for any number of processes, and after a killed run is resumed.
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
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from model.config import SAMPLE_RATE
from training.checkpointing import PART, write_bytes
from training.data.activity import ClipConfig, SimulationError, background_pieces, clip_event, cut, is_background
from training.data.audio_cache import decode
from training.data.manifests import Item, Phrase, write_manifest
from training.data.mixer import MixConfig, Mixer, SoundClip
from training.simulation.jobs import Workers, journal, rows_of
from training.simulation.sources import SoundSource

FOLDERS = ("audio", "clips", "pictures")
_LATER_SETTINGS = {"cutting": ("rule", "sample_rate"), "mixing": ("draw", "normalise")}
FILES = ("simulate.json", "clips.jsonl", "mixtures.jsonl", "manifest.jsonl", "strong.tsv", "durations.tsv")


@dataclass(frozen=True)
class MixtureSetConfig:
    """Settings of a folder of mixtures."""

    count: int
    seed: int = 0
    cutting: ClipConfig = field(default_factory=ClipConfig)
    mixing: MixConfig = field(default_factory=MixConfig)


def published_config(config: MixtureSetConfig) -> MixtureSetConfig:
    """The configuration with the rules of the paper's pipeline where ours differ (arXiv 2604.01155)."""
    cutting = replace(config.cutting, rule="absolute", sample_rate=22_050)
    return replace(config, cutting=cutting, mixing=replace(config.mixing, draw="clips", normalise=True))


@dataclass(frozen=True)
class Summary:
    """The result of a run. `unusable` counts recordings by reason; `made` mixtures are new in this run."""

    events: int
    labels: int
    backgrounds: int
    unusable: Counter[str]
    made: int
    count: int
    seconds: float  # spent on the new mixtures


def write_mixtures(
    sources: Sequence[SoundSource],
    backgrounds: Sequence[SoundSource],
    out: Path,
    config: MixtureSetConfig,
    workers: Workers | None = None,
    restart: bool = False,
) -> Summary:
    """Writes mixtures of `sources` to `out`, or resumes doing so; `backgrounds` are used as backgrounds only.

    `restart` deletes the results of earlier runs. Raises SimulationError for settings that differ from the folder's and
    for unusable recordings, WorkerError if a worker dies, and OSError, for example for a full disk. Files are always
    complete, and the same call resumes the run.
    """
    workers = workers or Workers()
    out.mkdir(parents=True, exist_ok=True)
    with _exclusive(out):
        _prepare(out, config, sources, backgrounds, restart)
        clips = _cut_recordings(sources, backgrounds, out, config.cutting, workers)
        events = [SoundClip(r["file"], r["label"], r["seconds"]) for r in clips if r["kind"] == "event"]
        beds = [SoundClip(f, r["label"], r["seconds"]) for r in clips if r["kind"] == "background" for f in r["files"]]
        unusable = Counter(r["reason"] for r in clips if r["kind"] is None)
        try:
            Mixer(events, beds, partial(_read, out), config.mixing, config.cutting)
        except SimulationError as error:
            reasons = "; ".join(f"{n} {reason}" for reason, n in unusable.most_common(5))
            details = f" (of {len(clips)} recordings: {reasons})" if reasons else ""
            raise SimulationError(f"{error}{details}") from None
        started = time.monotonic()
        made = _mix(events, beds, out, config, workers)
        seconds = time.monotonic() - started
    return Summary(len(events), len({e.label for e in events}), len(beds), unusable, made, config.count, seconds)


@contextmanager
def _exclusive(out: Path) -> Iterator[None]:
    """Locks the folder against a second run; the lock ends with the process."""
    handle = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SimulationError(f"{out}: another run is writing to this folder") from None
        yield
    finally:
        os.close(handle)


def _prepare(
    out: Path,
    config: MixtureSetConfig,
    sources: Sequence[SoundSource],
    backgrounds: Sequence[SoundSource],
    restart: bool,
) -> None:
    """Clears the folder on `restart`, checks its settings, and removes partial files of a killed run."""
    if restart and (out / "simulate.json").is_file():
        for name in FOLDERS:
            shutil.rmtree(out / name, ignore_errors=True)
        for name in FILES:
            (out / name).unlink(missing_ok=True)
            (out / (name + PART)).unlink(missing_ok=True)
    settings = _settings(config, sources, backgrounds)
    stored = out / "simulate.json"
    if not stored.is_file():
        if any(p.name != stored.name + PART for p in out.iterdir()):
            raise SimulationError(f"{out}: not empty, and not a folder of mixtures")
    elif (previous := json.loads(stored.read_text(encoding="utf-8"))) != settings:
        changed = _changed(previous, settings)
        raise SimulationError(f"{out}: made with other settings ({changed}); choose another folder or restart it")
    write_bytes(stored, (json.dumps(settings, indent=1) + "\n").encode())
    for name in FOLDERS[:2]:
        (out / name).mkdir(exist_ok=True)
        for partial_file in (out / name).glob("*" + PART):
            partial_file.unlink()


def _settings(
    config: MixtureSetConfig, sources: Sequence[SoundSource], backgrounds: Sequence[SoundSource]
) -> dict[str, Any]:
    """What determines the mixtures: the configuration but for `count`, and a hash over the recordings."""
    listed = hashlib.sha256()
    for s in (*sources, None, *backgrounds):
        size = s.path.stat().st_size if s and s.path.is_file() else -1
        listed.update(json.dumps([s.name, s.label, size] if s else None).encode())
    settings: dict[str, Any] = json.loads(json.dumps(asdict(config) | {"recordings": listed.hexdigest()}))
    del settings["count"]
    # folders from before these settings existed have none of them
    for part, defaults in (("cutting", ClipConfig()), ("mixing", MixConfig())):
        for name in _LATER_SETTINGS[part]:
            if settings[part][name] == getattr(defaults, name):
                del settings[part][name]
    return settings


def _changed(previous: dict[str, Any], settings: dict[str, Any]) -> str:
    """The settings that differ, such as "seed 1, not 2"."""
    changes = []
    for key, new in settings.items():
        old = previous.get(key)
        if isinstance(new, dict) and isinstance(old, dict):
            every = dict.fromkeys([*new, *old])
            changes += [f"{k} {old.get(k)}, not {new.get(k)}" for k in every if old.get(k) != new.get(k)]
        elif old != new:
            changes.append("other recordings" if key == "recordings" else f"{key} {old}, not {new}")
    return "; ".join(changes)


def _cut_recordings(
    sources: Sequence[SoundSource],
    backgrounds: Sequence[SoundSource],
    out: Path,
    config: ClipConfig,
    workers: Workers,
) -> list[dict[str, Any]]:
    """One row per recording; the clips of usable ones are written to clips/."""
    jobs = [(i, s, i >= len(sources)) for i, s in enumerate((*sources, *backgrounds))]
    return journal(out / "clips.jsonl", jobs, _cut_recording, (out, config), workers, "recordings")


def _cut_recording(job: tuple[int, SoundSource, bool], shared: tuple[Path, ClipConfig]) -> dict[str, Any]:
    """Cuts a recording into backgrounds, if it is named as one or is long and steady, or else into an event."""
    (number, source, bed), (out, config) = job, shared
    row: dict[str, Any] = {"recording": source.name, "label": source.label, "group": source.group}
    if source.licence:
        row["licence"] = source.licence
    if source.label is None and not bed:
        return row | {"kind": None, "reason": source.reason}
    try:
        samples = decode(source.path, config.sample_rate)
    except (OSError, RuntimeError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError) or not source.path.exists()
        return row | {"kind": None, "reason": "missing" if missing else "cannot be decoded", "detail": _detail(error)}
    rate = config.sample_rate
    named = bed or is_background(source.label or "", config)
    starts = background_pieces(samples, config, named) if named or not config.backgrounds else []
    if starts:
        files = [f"clips/{number:06d}-{i}.flac" for i in range(len(starts))]
        for file, start in zip(files, starts, strict=True):
            write_flac(out / file, cut(samples, start, start + config.background, rate), rate)
        label = source.label or "background"
        return row | {"label": label, "kind": "background", "seconds": config.background, "files": files, "at": starts}
    if named:
        return row | {"kind": None, "reason": f"a background of less than {config.background:g} s, or silent"}
    stretch, reason = clip_event(samples, config)
    if stretch is None:
        return row | {"kind": None, "reason": reason}
    file = f"clips/{number:06d}.flac"
    write_flac(out / file, cut(samples, *stretch, rate), rate)
    stored = {"at": [round(t, 4) for t in stretch], "seconds": round(stretch[1] - stretch[0], 4)}
    return row | {"kind": "event", "file": file} | stored


def _detail(error: Exception) -> str:
    """The error message without the file's path, which differs between machines."""
    text = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    return " ".join(str(text).split())


def _mix(
    events: list[SoundClip], backgrounds: list[SoundClip], out: Path, config: MixtureSetConfig, workers: Workers
) -> int:
    """Writes the missing mixtures and the lists of all of them; returns the number of new ones."""
    jobs = list(range(config.count))
    done = rows_of(out / "mixtures.jsonl")
    if len(done) > config.count:
        raise SimulationError(f"{out}: has {len(done)} mixtures already; request at least that many")
    shared = (out, config, events, backgrounds)
    rows = journal(out / "mixtures.jsonl", jobs, _mix_one, shared, workers, "mixtures")
    _write_lists(out, rows, config)
    return config.count - len(done)


def _mix_one(number: int, shared: tuple[Path, MixtureSetConfig, list[SoundClip], list[SoundClip]]) -> dict[str, Any]:
    """Draws mixture `number`, writes its audio, and returns its row."""
    out, config, events, backgrounds = shared
    mixer = Mixer(events, backgrounds, partial(_read, out), config.mixing, config.cutting)
    mixture = mixer.draw(np.random.default_rng([config.seed, number]))
    name = f"mix-{config.seed}-{number:06d}"
    write_flac(out / "audio" / f"{name}.flac", mixture.samples, config.cutting.sample_rate)
    return {
        "audio_id": name,
        "caption": mixture.caption,
        "seconds": len(mixture.samples) / config.cutting.sample_rate,
        "background": {"file": mixture.background.name, "label": mixture.background.label},
        "events": [
            {"file": e.clip.name, "label": e.clip.label, "snr_db": e.snr_db, "segments": e.segments}
            for e in mixture.events
        ],
    }


def _write_lists(out: Path, rows: list[dict[str, Any]], config: MixtureSetConfig) -> None:
    """Writes the published manifest and DCASE's two tables."""
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
    write_bytes(out / "strong.tsv", ("\n".join(strong) + "\n").encode())
    write_bytes(out / "durations.tsv", ("\n".join(durations) + "\n").encode())


def _read(out: Path, clip: SoundClip) -> np.ndarray:
    return soundfile.read(out / clip.name, dtype="float32")[0]


def write_flac(path: Path, samples: np.ndarray, rate: int = SAMPLE_RATE) -> None:
    """Writes (n,) float32 samples atomically as 16-bit FLAC. Raises OSError."""
    data = io.BytesIO()  # encoded in memory, because the encoder's error for a full disk doesn't say so
    soundfile.write(data, samples, rate, format="FLAC", subtype="PCM_16")
    write_bytes(path, data.getvalue())
