"""The sets that training draws from: recordings with captions and phrases, or scenes made of single sounds.

A set gives samples: an excerpt of audio with its caption and with the phrases heard in it, in the excerpt's own time.
Knows nothing of batches, negatives or models. What cannot be read is left out and named in `failed`; audio is never
replaced by silence.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from training.data.manifests import SAMPLE_RATE, AudioFiles, AudioStore, Item, Phrase, read_labelled, read_manifest
from training.data.phrase_bank import caption_of, phrased
from training.simulation.simulate import SceneConfig, SceneMaker

SLIVER = 0.04  # seconds: less than this of an event at the edge of a crop is not heard
STEADY = 4.0  # seconds: a single sound at least this long may lie under a scene


class DataError(ValueError):
    """A set that cannot be trained on, with its name and what is wrong with it."""


@dataclass(frozen=True)
class SetConfig:
    """One set: a manifest in the published form, or a folder of labelled single sounds. Paths start at the root."""

    manifest: str | None = None
    folder: str | None = None
    simulate: bool = False  # scenes made on the fly of the set's single sounds
    weight: float = 1.0  # its share of the rows is this over the sum of all sets' weights
    strong: bool = True  # False: captions only
    only_groups: tuple[str, ...] = ()  # empty: all
    exclude_groups: tuple[str, ...] = ()
    scene: SceneConfig = SceneConfig()  # of simulate; its duration is the crop's

    @property
    def name(self) -> str:
        """What messages call it."""
        return str(self.manifest or self.folder)


@dataclass(frozen=True)
class DataConfig:
    """What batches are made of. Sets may be given as plain dicts, as they come out of YAML."""

    sets: tuple[SetConfig, ...]
    seconds: float = 10.24  # of a crop at most; never more than a window's frames cover
    crop: Literal["random", "centre"] = "random"
    pad: Literal["batch", "window"] = "batch"  # to the longest in the batch, or always a whole window
    cache: str | None = None  # folder of decoded 16 kHz audio; None: files are decoded each time they are drawn
    phrases: int = 20  # positives and negatives of a clip together, the paper's N
    swap: float = 0.1  # of the positives are replaced by another phrase of their cluster
    templates: bool = False  # phrases as somebody might ask for them, "the sound of …", instead of bare
    bank: str | None = None  # a phrase bank's file
    workers: int = 2  # threads that make batches ahead

    def __post_init__(self) -> None:
        sets = tuple(s if isinstance(s, SetConfig) else _set_config(s, i) for i, s in enumerate(self.sets))
        object.__setattr__(self, "sets", sets)
        for name, allowed in (("crop", ("random", "centre")), ("pad", ("batch", "window"))):
            if getattr(self, name) not in allowed:
                raise DataError(f"data.{name}: {getattr(self, name)!r} is none of {', '.join(allowed)}")
        if not self.sets:
            raise DataError("data.sets: there is none")
        if self.seconds <= 0 or self.phrases < 1 or self.workers < 0 or not 0 <= self.swap <= 1:
            raise DataError("data: want seconds > 0, phrases >= 1, workers >= 0 and 0 <= swap <= 1")


def _set_config(data: Any, number: int) -> SetConfig:
    from training.config import build

    return build(SetConfig, data, f"data: sets[{number}]")


@dataclass(frozen=True)
class Sample:
    """An excerpt of audio and everything that is said of it."""

    samples: np.ndarray  # (n,) float32 at 16 kHz
    caption: str
    meaning: tuple[str, ...]  # what the caption is made of: captions of equal meaning are no negatives of each other
    phrases: tuple[Phrase, ...] | None  # heard in the excerpt, in its time; None: nothing is known of its frames
    unplaced: tuple[str, ...] = ()  # phrases that belong to the recording without a place: neither here nor absent


class AudioSet(Protocol):
    """What batches ask of a set. Every draw takes all its chance from the generator it is given."""

    config: SetConfig
    failed: dict[str, str]  # audio_id → reason

    def __len__(self) -> int:
        """Items that can be drawn."""

    def length(self, i: int) -> int:
        """Samples at 16 kHz that a draw of item `i` gives, as far as its header tells."""

    def draw(self, i: int, rng: np.random.Generator) -> Sample:
        """An excerpt. UnreadableError when the audio cannot be decoded after all."""

    def wanted(self) -> Iterator[tuple[str, str]]:
        """(phrase, audio_id) of everything that has to be in the phrase bank."""

    def most_unplaced(self) -> int:
        """The largest number of phrases without a place in one item."""


def open_set(
    config: SetConfig, root: Path, cache: Path | None, crop: int, centre: bool, threads: int = 2, progress: bool = False
) -> AudioSet:
    """A set ready to draw from; `crop` is the longest excerpt in samples.

    DataError when nothing in it can be used; ManifestError, with the line, for what is written wrongly.
    """
    items = read_items(config, root)
    sounds = AudioFiles(items, threads) if cache is None else AudioStore(cache / "audio.i16", items, progress, threads)
    if sounds.failed:
        first, reason = next(iter(sounds.failed.items()))
        told = f"{len(sounds.failed)} of {len(items)} files cannot be read, such as {first}: {reason}"
        if not len(sounds):
            raise DataError(f"{config.name}: {told}")
        logging.getLogger(__name__).warning("%s: %s", config.name, told)
    if config.simulate:
        return SceneSet(config, sounds, crop)
    return RecordedSet(config, sounds, crop, centre)


def read_items(config: SetConfig, root: Path) -> list[Item]:
    """A set's items with a caption or phrases, of the groups it wants."""
    if (config.manifest is None) == (config.folder is None):
        raise DataError("a set wants either a manifest or a folder")
    if not config.weight > 0:
        raise DataError(f"{config.name}: a weight of {config.weight} would never draw it")
    items = read_manifest(root / config.manifest) if config.manifest else read_labelled(root / str(config.folder))
    if config.folder:  # a label is no sentence: it is phrased anew at every draw
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
    """Recordings, cut to at most `crop` samples, with their captions and, where known and wanted, their phrases."""

    def __init__(self, config: SetConfig, sounds: AudioStore | AudioFiles, crop: int, centre: bool) -> None:
        self.config, self.sounds, self.crop, self.centre = config, sounds, crop, centre
        self.failed = sounds.failed
        strong = config.strong
        self.phrases = [merged(i.phrases) if strong and i.phrases is not None else None for i in sounds.items]

    def __len__(self) -> int:
        return len(self.sounds)

    def length(self, i: int) -> int:
        """Samples of a crop."""
        return min(self.sounds.length(i), self.crop)

    def wanted(self) -> Iterator[tuple[str, str]]:
        """Every phrase of every item."""
        for item, phrases in zip(self.sounds.items, self.phrases, strict=True):
            yield from ((phrase.text, item.audio_id) for phrase in phrases or ())

    def most_unplaced(self) -> int:
        """Phrases without segments in the item that has most of them."""
        return max(sum(not p.segments for p in phrases or ()) for phrases in self.phrases)

    def draw(self, i: int, rng: np.random.Generator) -> Sample:
        """A crop at a random place, or from the middle."""
        item, phrases = self.sounds.items[i], self.phrases[i]
        slack = max(self.sounds.length(i) - self.crop, 0)
        start = slack // 2 if self.centre else int(rng.integers(0, slack + 1))
        samples = self.sounds.get(i, start, start + self.crop)
        caption, meaning = self._caption(item, rng)
        if phrases is None:
            return Sample(samples, caption, meaning, None)
        onset = start / SAMPLE_RATE
        heard = cropped(phrases, onset, onset + len(samples) / SAMPLE_RATE)
        return Sample(samples, caption, meaning, heard, tuple(p.text for p in phrases if not p.segments))

    def _caption(self, item: Item, rng: np.random.Generator) -> tuple[str, tuple[str, ...]]:
        if not item.captions:
            placed = merged(item.phrases or ())
            names = [p.text for p in sorted(placed, key=lambda p: p.segments[:1] or ((np.inf, np.inf),))]
            return caption_of(names, rng), tuple(sorted(names))
        chosen = item.captions[rng.integers(len(item.captions))]
        return (phrased(chosen, rng) if self.config.folder else chosen), (chosen,)


class SceneSet:
    """Scenes of `crop` samples made on the fly of single sounds, with exact phrases; rare labels are drawn more often.

    A sound is drawn in inverse proportion to the square root of how many have its label.
    """

    def __init__(self, config: SetConfig, sounds: AudioStore | AudioFiles, crop: int) -> None:
        self.config, self.sounds, self.crop = config, sounds, crop
        self.failed = sounds.failed
        self.labels = [self._label(item) for item in sounds.items]
        counts = Counter(self.labels)
        weights = np.array([counts[label] ** -0.5 for label in self.labels])
        steady = np.array([i for i in range(len(sounds)) if sounds.duration(i) >= STEADY], dtype=int)
        self.maker = SceneMaker(sounds.get, weights, steady, replace(config.scene, duration=crop / SAMPLE_RATE))

    def _label(self, item: Item) -> str:
        names = {p.text for p in item.phrases or ()} or set(item.captions)
        if len(names) != 1:
            raise DataError(
                f"{self.config.name}: {item.audio_id} has {len(names)} labels, and scenes want single sounds"
            )
        return names.pop()

    def __len__(self) -> int:
        return len(self.sounds)

    def length(self, i: int) -> int:
        """All scenes are of one length."""
        return self.crop

    def wanted(self) -> Iterator[tuple[str, str]]:
        """Every sound's label."""
        if self.config.strong:
            yield from ((label, item.audio_id) for label, item in zip(self.labels, self.sounds.items, strict=True))

    def most_unplaced(self) -> int:
        """Everything in a scene has its place."""
        return 0

    def draw(self, i: int, rng: np.random.Generator) -> Sample:
        """A scene; which sounds are in it is up to the generator, not to `i`."""
        for _ in range(100):
            scene = self.maker.scene(rng)
            if scene.events:
                break
        else:
            raise DataError(f"{self.config.name}: nothing but silence in a hundred scenes")
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
    """What is heard between `start` and `stop`, in seconds from `start`; phrases not heard there are left out.

    A piece that the crop's edge cuts down to less than SLIVER is not heard; an event that short by itself is.
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
