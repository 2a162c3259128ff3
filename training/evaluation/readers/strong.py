"""Readers of datasets with timed labels: AudioSet-strong, DESED, URBAN-SED (detection), AudioGrounding (grounding)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from training.data.manifests import Phrase
from training.evaluation.protocol import FULL, Protocol
from training.evaluation.readers.base import (
    Dataset,
    DatasetError,
    Entry,
    assemble,
    chosen,
    event_name,
    first_file,
    heard,
    nonempty,
    phrases,
    read_table,
    read_text,
    segment,
)

Events = list[tuple[str, tuple[float, float]]]  # (label, (onset, offset))


def _times(onset: object, offset: object, at: str, protocol: Protocol) -> tuple[float, float]:
    return segment(onset, offset, at, zero_length=protocol.zero_length == "skip")


# AudioSet-strong

AUDIOSET_SPLITS = ("train", "eval")
AUDIOSET_COLUMNS = ("segment_id", "start_time_seconds", "end_time_seconds", "label")


def read_audioset_strong(root: Path, split: str | None = None, protocol: Protocol = FULL) -> Dataset:
    """AudioSet's temporally strong labels: ten-second YouTube clips with events of 456 classes; by default "eval".

    Layout: audioset_{train,eval}_strong.tsv (segment_id, start_time_seconds, end_time_seconds, label) and
    mid_to_display_name.tsv (no header), in the folder or in metadata/. A segment id is the YouTube id and the start in
    milliseconds. The audio is named after either, with or without a leading "Y", in {split}/, audio/{split}/ or
    audio/. The classes are those that occur in the split, by display name.
    """
    split = chosen("audioset-strong", split, AUDIOSET_SPLITS, "eval")
    bases = [root, root / "metadata"]
    names = _display_names(first_file([b / "mid_to_display_name.tsv" for b in bases]))
    path = first_file([b / f"audioset_{split}_strong.tsv" for b in bases])
    events: dict[str, Events] = {}
    for line, row in read_table(path, AUDIOSET_COLUMNS, delimiter="\t"):
        at = f"{path}, line {line}"
        if row["label"] not in names:
            raise DatasetError(f"{at}: label {row['label']!r} is not in mid_to_display_name.tsv")
        video, _, start = nonempty(row, "segment_id", at).rpartition("_")
        if not (video and start.isdecimal()):
            raise DatasetError(f"{at}: segment_id {row['segment_id']!r}, want a YouTube id, _ and milliseconds")
        times = _times(row["start_time_seconds"], row["end_time_seconds"], at, protocol)
        events.setdefault(row["segment_id"], []).append((names[row["label"]], times))
    entries = [Entry(s, _file_names(s), phrases=phrases(e), group=s.rpartition("_")[0]) for s, e in events.items()]
    classes = sorted({label for found in events.values() for label, _ in found})
    folders = [root / split, root / "audio" / split, root / "audio"]
    return assemble("audioset-strong", "detection", heard(entries, protocol), folders, classes)


def _display_names(path: Path) -> dict[str, str]:
    names = {}
    for line, row in read_table(path, ("mid", "name"), delimiter="\t", header=False):
        at = f"{path}, line {line}"
        names[nonempty(row, "mid", at)] = nonempty(row, "name", at)
    return names


def _file_names(segment_id: str) -> tuple[str, ...]:
    video, _, milliseconds = segment_id.rpartition("_")
    start = int(milliseconds) / 1000
    spans = (segment_id, f"{video}_{start:.3f}_{start + 10:.3f}", f"{video}_{start:.0f}_{start + 10:.0f}", video)
    return tuple(f"{y}{name}" for name in spans for y in ("Y", ""))


# DESED

DESED_LABELS = (
    "Alarm_bell_ringing",
    "Blender",
    "Cat",
    "Dishes",
    "Dog",
    "Electric_shaver_toothbrush",
    "Frying",
    "Running_water",
    "Speech",
    "Vacuum_cleaner",
)
DESED_SPLITS = {"public": "eval", "validation": "validation"}


def read_desed(root: Path, split: str | None = None, protocol: Protocol = FULL) -> Dataset:
    """DESED: ten-second recordings of homes with ten classes of events; by default "public", the public evaluation set.

    Layout: metadata/{validation,eval}/{split}.tsv (filename, onset, offset, event_label) and audio/validation or
    audio/eval/public, directly in the folder or in dataset/ as the archives unpack. A recording without events has a
    row with empty fields, or no row but one in {split}_durations.tsv (filename, duration) beside the events.
    """
    split = chosen("desed", split, tuple(DESED_SPLITS), "public")
    bases = [root, root / "dataset"]
    path = first_file([b / "metadata" / DESED_SPLITS[split] / f"{split}.tsv" for b in bases])
    events: dict[str, Events] = {}
    for line, row in read_table(path, ("filename", "onset", "offset", "event_label"), delimiter="\t"):
        at = f"{path}, line {line}"
        found = events.setdefault(nonempty(row, "filename", at), [])
        if row["onset"] or row["offset"] or row["event_label"]:
            if row["event_label"] not in DESED_LABELS:
                raise DatasetError(f"{at}: event_label {row['event_label']!r} is none of {', '.join(DESED_LABELS)}")
            times = _times(row["onset"], row["offset"], at, protocol)
            found.append((event_name(row["event_label"], protocol), times))
    durations = path.with_name(f"{split}_durations.tsv")
    if durations.is_file():
        for line, row in read_table(durations, ("filename", "duration"), delimiter="\t"):
            events.setdefault(nonempty(row, "filename", f"{durations}, line {line}"), [])
    entries = [Entry(name, (name,), phrases=phrases(found)) for name, found in events.items()]
    folder = "audio/eval/public" if split == "public" else "audio/validation"
    classes = [event_name(label, protocol) for label in DESED_LABELS]
    return assemble("desed", "detection", heard(entries, protocol), [b / folder for b in bases], classes)


# URBAN-SED

URBANSED_LABELS = (
    "air_conditioner",
    "car_horn",
    "children_playing",
    "dog_bark",
    "drilling",
    "engine_idling",
    "gun_shot",
    "jackhammer",
    "siren",
    "street_music",
)
URBANSED_SPLITS = ("train", "validate", "test")


def read_urbansed(root: Path, split: str | None = None, protocol: Protocol = FULL) -> Dataset:
    """URBAN-SED 2.0: 10,000 mixtures of 10 s made from UrbanSound8K's ten classes; by default "test".

    Layout: annotations/{train,validate,test}/{name}.txt (onset, offset, label; no header) or {name}.jams, and
    audio/{train,validate,test}/. The .txt takes precedence. Backgrounds, which JAMS files list too, are not events.
    """
    split = chosen("urbansed", split, URBANSED_SPLITS, "test")
    folder = root / "annotations" / split
    files = {p.stem: p for suffix in (".jams", ".txt") for p in sorted(folder.glob(f"*{suffix}"))}
    if not files:
        raise DatasetError(f"urbansed: no .txt or .jams in {folder}")
    entries = []
    for name, path in sorted(files.items()):
        events = (_events_of_text if path.suffix == ".txt" else _events_of_jams)(path, protocol)
        entries.append(Entry(name, (name,), phrases=phrases(events)))
    classes = [event_name(label, protocol) for label in URBANSED_LABELS]
    return assemble("urbansed", "detection", heard(entries, protocol), [root / "audio" / split], classes)


def _events_of_text(path: Path, protocol: Protocol) -> Events:
    events = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        at, fields = f"{path}, line {number}", line.split()
        if not fields:
            continue
        if len(fields) != 3:
            raise DatasetError(f"{at}: {len(fields)} fields where 3 are expected")
        events.append((_urbansed_label(fields[2], at, protocol), _times(fields[0], fields[1], at, protocol)))
    return events


def _events_of_jams(path: Path, protocol: Protocol) -> Events:
    """Observations have `time`, `duration` (after stretching) and a `value` with `label` and `role`."""
    try:
        annotations = json.loads(read_text(path))["annotations"]
        observations: list[dict[str, Any]] = [o for a in annotations for o in a["data"]]
        events = []
        for number, o in enumerate(observations, start=1):
            if o["value"]["role"] == "foreground":
                at = f"{path}, observation {number}"
                label = _urbansed_label(o["value"]["label"], at, protocol)
                events.append((label, _times(o["time"], o["time"] + o["duration"], at, protocol)))
    except json.JSONDecodeError as error:
        raise DatasetError(f"{path}, line {error.lineno}: {error.msg}") from error
    except (KeyError, TypeError) as error:
        raise DatasetError(f"{path}: not as Scaper writes it ({error!r})") from error
    return events


def _urbansed_label(label: str, at: str, protocol: Protocol) -> str:
    if label not in URBANSED_LABELS:
        raise DatasetError(f"{at}: label {label!r} is none of {', '.join(URBANSED_LABELS)}")
    return event_name(label, protocol)


# AudioGrounding

GROUNDING_SPLITS = ("train", "val", "test")


def read_audiogrounding(root: Path, split: str | None = None, protocol: Protocol = FULL) -> Dataset:
    """AudioGrounding 2: phrases of AudioCaps captions with their segments; by default "test".

    Layout: {train,val,test}.json, each a list of {audiocap_id, audio_id, tokens, phrases: [{phrase, start_index,
    end_index, segments}]}, in the folder or in label/; the audio in {split}/, audio/{split}/, {split}/audio/ or
    audio/. `tokens` and `phrase` are lists of words, or strings in some copies. Each caption is an item with its
    phrases; captions of one clip form a group. A segment of no length, such as [0, 0], says that
    the phrase does not sound.
    """
    split = chosen("audiogrounding", split, GROUNDING_SPLITS, "test")
    path = first_file([root / f"{split}.json", root / f"label/{split}.json", root / f"{split}/label.json"])
    try:
        rows = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise DatasetError(f"{path}, line {error.lineno}: {error.msg}") from error
    if not isinstance(rows, list):
        raise DatasetError(f"{path}: want a list of captions, as in version 2 of the dataset")
    entries = []
    for number, row in enumerate(rows, start=1):
        at = f"{path}, item {number}"
        try:
            entries.append(_grounding_entry(row, at, protocol))
        except (KeyError, TypeError, AttributeError) as error:
            raise DatasetError(f"{at}: not as published ({error!r})") from error
    folders = [root / split, root / "audio" / split, root / split / "audio", root / "audio"]
    return assemble("audiogrounding", "grounding", entries, folders)


def _grounding_entry(row: dict[str, Any], at: str, protocol: Protocol) -> Entry:
    found = []
    for phrase in row["phrases"]:
        if any(len(pair) != 2 for pair in phrase["segments"]):
            raise DatasetError(f"{at}: a segment that is not a pair")
        pairs = sorted(segment(onset, offset, at, zero_length=True) for onset, offset in phrase["segments"])
        segments = tuple(pair for pair in pairs if pair[0] < pair[1])
        found.append(Phrase(_joined_words(phrase["phrase"], at, protocol), segments))
    if not found:
        raise DatasetError(f"{at}: no phrases")
    audio = row["audio_id"]
    if not (isinstance(audio, str) and audio):
        raise DatasetError(f"{at}: audio_id {audio!r}, want the name of a file")
    caption = _joined_words(row["tokens"], at, protocol)
    return Entry(f"{row['audiocap_id']}:{audio}", (audio,), (caption,), tuple(found), audio)


def _joined_words(words: str | list[str], at: str, protocol: Protocol) -> str:
    text = words if isinstance(words, str) else " ".join(words)
    if not text.strip() and protocol.empty_texts == "reject":
        raise DatasetError(f"{at}: an empty phrase or caption")
    return text.strip()
