"""The sets that training draws samples from: recordings with captions and phrases, or scenes mixed from single sounds.

A sample is an excerpt of audio with its caption and the phrases that are audible in it. Unreadable files are listed in
`failed` and skipped; audio is never replaced by silence.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from model.config import SAMPLE_RATE
from training.data.audio_cache import AudioFiles, AudioStore
from training.data.manifests import Item, Phrase, read_labelled, read_manifest
from training.data.mixer import SceneConfig, SceneMaker
from training.data.phrase_bank import caption_of, phrased

SLIVER = 0.04  # seconds: a shorter rest of an event at the edge of a crop is dropped
STEADY = 4.0  # seconds: single sounds at least this long can be the background of a scene


class DataError(ValueError):
    """A set that cannot be trained on, with its name and the reason."""


@dataclass(frozen=True)
class SetConfig:
    """One set: a manifest in the published form, or a folder of labelled single sounds. Paths start at the root."""

    manifest: str | None = None
    folder: str | None = None
    simulate: bool = False  # mix scenes of the set's single sounds on the fly
    weight: float = 1.0  # the set's share of the rows is its weight over the sum of all weights
    strong: bool = True  # False: captions only
    only_groups: tuple[str, ...] = ()  # empty: all
    exclude_groups: tuple[str, ...] = ()
    scene: SceneConfig = SceneConfig()  # for simulate; the crop sets the duration

    @property
    def name(self) -> str:
        """Name of the set in messages."""
        return str(self.manifest or self.folder)


@dataclass(frozen=True)
class DataConfig:
    """How batches are made."""

    sets: tuple[SetConfig, ...]
    seconds: float = 10.24  # longest crop; limited to the duration that a window's frames cover
    crop: Literal["random", "centre", "start"] = "random"
    channel: Literal["mean", "first"] = "mean"  # of recordings with several
    draw: Literal["weight", "size"] = "weight"  # size: a set's share is its weight times its number of items
    pad: Literal["batch", "window"] = "batch"  # to the longest row of the batch, or to a whole window
    cache: str | None = None  # folder for decoded 16 kHz audio; None: decode files on each draw
    phrases: int = 20  # positives and negatives per clip, the paper's N
    surplus: Literal["random", "first"] = "random"  # which positives stay if there are more than `phrases`
    swap: float = 0.1  # share of positives redrawn from the phrases of their cluster
    templates: bool = False  # put phrases into query templates, such as "the sound of …"
    bank: str | None = None  # file of the phrase bank
    workers: int = 2  # threads that prepare batches ahead

    def __post_init__(self) -> None:
        choices = {"crop": ("random", "centre", "start"), "channel": ("mean", "first"), "draw": ("weight", "size")}
        choices |= {"surplus": ("random", "first"), "pad": ("batch", "window")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise DataError(f"data.{name}: {getattr(self, name)!r} is none of {', '.join(allowed)}")
        if not self.sets:
            raise DataError("data.sets: at least one set is required")
        if self.seconds <= 0 or self.phrases < 1 or self.workers < 0 or not 0 <= self.swap <= 1:
            raise DataError("data: want seconds > 0, phrases >= 1, workers >= 0 and 0 <= swap <= 1")


@dataclass(frozen=True)
class Crop:
    """How recordings are cut: to at most `samples` samples at 16 kHz, from their start, their centre or at random."""

    samples: int
    position: Literal["random", "centre", "start"] = "random"

    def start(self, length: int, rng: np.random.Generator) -> int:
        """The first sample of the crop of a recording of `length` samples."""
        slack = max(length - self.samples, 0)
        if self.position == "random":
            return int(rng.integers(0, slack + 1))
        return slack // 2 if self.position == "centre" else 0


@dataclass(frozen=True)
class Decoding:
    """How audio is decoded: into a `cache` folder or on demand (None), with a number of threads."""

    cache: Path | None = None
    threads: int = 2
    progress: bool = False
    channel: int | None = None  # None: the mean of all


@dataclass(frozen=True)
class Sample:
    """An excerpt of audio with its labels."""

    samples: np.ndarray  # (n,) float32 at 16 kHz
    caption: str
    meaning: tuple[str, ...]  # labels behind the caption; captions of equal meaning are not negatives of each other
    phrases: tuple[Phrase, ...] | None  # audible in the excerpt, times relative to it; None: no frame labels
    unplaced: tuple[str, ...] = ()  # phrases of the recording at unknown times: neither positive nor negative


class AudioSet(Protocol):
    """A set as batches use it. All randomness of a draw comes from the generator passed in."""

    config: SetConfig
    failed: dict[str, str]  # audio_id → reason

    def __len__(self) -> int:
        """Number of items."""

    def length(self, i: int) -> int:
        """Length of a sample of item `i`, in samples at 16 kHz, according to the file's header."""

    def draw(self, i: int, rng: np.random.Generator) -> Sample:
        """A sample of item `i`. Raises UnreadableError if its audio cannot be decoded."""

    def wanted(self) -> Iterator[tuple[str, str]]:
        """(phrase, audio_id) of every phrase that the phrase bank must contain."""

    def most_unplaced(self) -> int:
        """Largest number of phrases without segments in one item."""


def open_set(config: SetConfig, root: Path, crop: Crop, decoding: Decoding) -> AudioSet:
    """A set that is ready to draw from.

    Raises DataError if none of it can be used, and ManifestError for an invalid line.
    """
    items, cache = read_items(config, root), decoding.cache
    sounds: AudioFiles | AudioStore
    if cache is None:
        sounds = AudioFiles(items, decoding.threads, decoding.channel)
    else:
        file = cache / ("audio.i16" if decoding.channel is None else f"audio-channel-{decoding.channel}.i16")
        sounds = AudioStore(file, items, decoding.progress, decoding.threads, decoding.channel)
    if sounds.failed:
        first, reason = next(iter(sounds.failed.items()))
        message = f"{len(sounds.failed)} of {len(items)} files cannot be read, such as {first}: {reason}"
        if not len(sounds):
            raise DataError(f"{config.name}: {message}")
        logging.getLogger(__name__).warning("%s: %s", config.name, message)
    if config.simulate:
        return SceneSet(config, sounds, crop)
    return RecordedSet(config, sounds, crop)


def read_items(config: SetConfig, root: Path) -> list[Item]:
    """A set's items with a caption or phrases, filtered by group. Raises DataError and ManifestError."""
    if (config.manifest is None) == (config.folder is None):
        raise DataError("a set needs either a manifest or a folder")
    if not config.weight > 0:
        raise DataError(f"{config.name}: a weight of {config.weight} is not positive")
    items = read_manifest(root / config.manifest) if config.manifest else read_labelled(root / str(config.folder))
    if config.folder:  # the label is the caption, in a new template on each draw
        items = [replace(i, phrases=None) for i in items if i.captions]
    unknown = set(config.only_groups) - {i.group for i in items}
    if unknown:
        raise DataError(f"{config.name}: no item of the group {', '.join(sorted(unknown))}")
    items = [i for i in items if not config.only_groups or i.group in config.only_groups]
    items = [i for i in items if i.group not in config.exclude_groups]
    if not items:
        raise DataError(f"{config.name}: no items")
    return items


class RecordedSet:
    """Recordings, cropped, with their captions and, if known and requested, their phrases."""

    def __init__(self, config: SetConfig, sounds: AudioStore | AudioFiles, crop: Crop) -> None:
        self.config, self.sounds, self.crop = config, sounds, crop
        self.failed = sounds.failed
        # an empty list of phrases says nothing about the sounds
        self.phrases = [merged(i.phrases) if config.strong and i.phrases else None for i in sounds.items]

    def __len__(self) -> int:
        return len(self.sounds)

    def length(self, i: int) -> int:
        """Samples of a crop."""
        return min(self.sounds.length(i), self.crop.samples)

    def wanted(self) -> Iterator[tuple[str, str]]:
        """Every phrase of every item."""
        for item, phrases in zip(self.sounds.items, self.phrases, strict=True):
            yield from ((phrase.text, item.audio_id) for phrase in phrases or ())

    def most_unplaced(self) -> int:
        """Largest number of phrases without segments in one item."""
        return max(sum(not p.segments for p in phrases or ()) for phrases in self.phrases)

    def draw(self, i: int, rng: np.random.Generator) -> Sample:
        """A crop at the configured position."""
        item, phrases = self.sounds.items[i], self.phrases[i]
        start = self.crop.start(self.sounds.length(i), rng)
        samples = self.sounds.get(i, start, start + self.crop.samples)
        caption, meaning = self._caption(item, rng)
        if phrases is None:
            return Sample(samples, caption, meaning, None)
        onset = start / SAMPLE_RATE
        audible = cropped(phrases, onset, onset + len(samples) / SAMPLE_RATE)
        return Sample(samples, caption, meaning, audible, tuple(p.text for p in phrases if not p.segments))

    def _caption(self, item: Item, rng: np.random.Generator) -> tuple[str, tuple[str, ...]]:
        if not item.captions:
            placed = merged(item.phrases or ())
            names = [p.text for p in sorted(placed, key=lambda p: p.segments[:1] or ((np.inf, np.inf),))]
            return caption_of(names, rng), tuple(sorted(names))
        chosen = item.captions[rng.integers(len(item.captions))]
        return (phrased(chosen, rng) if self.config.folder else chosen), (chosen,)


class SceneSet:
    """Scenes of the crop's length, mixed on the fly from single sounds, with exact phrases.

    A sound's probability is inversely proportional to the square root of its label's count, so that rare labels occur
    more often.
    """

    def __init__(self, config: SetConfig, sounds: AudioStore | AudioFiles, crop: Crop) -> None:
        self.config, self.sounds, self.crop = config, sounds, crop
        self.failed = sounds.failed
        self.labels = [self._label(item) for item in sounds.items]
        counts = Counter(self.labels)
        weights = np.array([counts[label] ** -0.5 for label in self.labels])
        steady = np.array([i for i in range(len(sounds)) if sounds.duration(i) >= STEADY], dtype=int)
        scene = replace(config.scene, duration=crop.samples / SAMPLE_RATE)
        self.maker = SceneMaker(sounds.get, weights, steady, scene)

    def _label(self, item: Item) -> str:
        names = {p.text for p in item.phrases or ()} or set(item.captions)
        if len(names) != 1:
            raise DataError(
                f"{self.config.name}: {item.audio_id} has {len(names)} labels; scenes need single sounds with one label"
            )
        return names.pop()

    def __len__(self) -> int:
        return len(self.sounds)

    def length(self, i: int) -> int:
        """All scenes have the same length."""
        return self.crop.samples

    def wanted(self) -> Iterator[tuple[str, str]]:
        """The label of every sound."""
        if self.config.strong:
            yield from ((label, item.audio_id) for label, item in zip(self.labels, self.sounds.items, strict=True))

    def most_unplaced(self) -> int:
        """0: every event of a scene has segments."""
        return 0

    def draw(self, i: int, rng: np.random.Generator) -> Sample:
        """A scene; its sounds depend on the generator, not on `i`."""
        for _ in range(100):
            scene = self.maker.scene(rng)
            if scene.events:
                break
        else:
            raise DataError(f"{self.config.name}: a hundred scenes in a row are silent")
        phrases = merged(tuple(Phrase(self.labels[s], ((a, b),)) for s, a, b in scene.events if a < b))
        names = [p.text for p in sorted(phrases, key=lambda p: p.segments)]
        strong = phrases if self.config.strong else None
        return Sample(scene.samples, caption_of(names, rng), tuple(sorted(names)), strong)


def merged(phrases: tuple[Phrase, ...]) -> tuple[Phrase, ...]:
    """Each text once, with all its segments in order of time."""
    segments: dict[str, list[tuple[float, float]]] = {}
    for phrase in phrases:
        segments.setdefault(phrase.text, []).extend(phrase.segments)
    return tuple(Phrase(text, tuple(sorted(found))) for text, found in segments.items())


def cropped(phrases: tuple[Phrase, ...], start: float, stop: float) -> tuple[Phrase, ...]:
    """The phrases audible between `start` and `stop` (seconds), with times relative to `start`.

    A segment that the crop cuts to less than SLIVER is dropped; a segment that is that short by itself is not.
    """
    found = []
    for phrase in phrases:
        pieces = []
        for onset, offset in phrase.segments:
            low, high = max(onset, start), min(offset, stop)
            if high - low > 0 and high - low >= min(SLIVER, offset - onset) - 1e-9:
                pieces.append((low - start, high - start))
        if pieces:
            found.append(Phrase(phrase.text, tuple(pieces)))
    return tuple(found)
