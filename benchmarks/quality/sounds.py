"""The labelled sounds of the quality benchmark: which are measured on, which labels serve as phrases, what is alike."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import REPO
from index.quantization import encode_frames
from index.segments import LONG_SECONDS, cut_segments
from model.config import SAMPLE_RATE
from model.finelap import AudioEmbedding, FineLAP
from training.config import Recipe, read_recipe
from training.data.audio_cache import AudioStore
from training.data.manifests import read_labelled
from training.data.sentence_embeddings import Embed, embedder

RECIPE = REPO / "training" / "configs" / "finelap-small.yaml"
ALIKE = 0.6  # cosine of two labels' sentence embeddings above which they may name the same sound

# Labels that do not tell a listener what to expect. Only retrieval uses them as queries.
_VAGUE = """
afro string, alien creak, break, damage, dig dig immediate, dig oddly breakable by hand, digging choppy, digging cracky,
digging crumbly, digging snappy, dirt bullet explosion, dirty whir, disembark, drum buzz, dug metal, dug node,
dumb missile, fairydust, fire extinguish flame, fire fadeout, fire fire, fire flint and steel, forcefield,
furnace active, goo, gravel dug, guided missile, horror ambience, ice dug, item smoke, jump, klaxon funny, machine,
machinegunner bullet, mine tick, nuke missile, parachute, peculiar, place node, place node hard, place node metal,
plunge, plunger, portal, shoot, shot, smoke missile, space ambience, space ripple, spaceship engine short, spiral,
spooky string, strike, string accent, suspense, swatter, tank move, tnt explode, tnt gunpowder burning, tnt ignite,
tool breaks, tractor beam, ugh, vehicle, whoop, xpanes steel bar door close, xpanes steel bar door open, zombie,
zombie dead, zombie strike, zoop
"""
VAGUE = frozenset(label.strip() for label in _VAGUE.split(","))
# Words for sounds that are parts of each other or easily taken for each other: a label is alike any other of its row.
KINDS = (
    "bird owl duck goose rooster crow eagle chicken forest country",
    "cat kitten meow",
    "dog wolf",
    "water river waterfall rain splash ripple bubble plop wave ocean fountain",
    "footstep step walking",
    "engine car motorcycle vehicle tank locomotive train helicopter airplane jet traffic city",
    "explosion explode firework thunder cannon shot gunshot bomb tnt nuke",
    "metal steel anvil hammer clang",
    "door gate fencegate",
    "guitar tambura string chord",
    "cymbal gong bell",
    "horn klaxon siren trumpet",
    "fire furnace lava flame burning",
    "laugh laughter scream cough sneeze party",
    "cricket insect frog swamp night",
    "hum buzz drone",
    "wind storm blizzard turbine fan",
)
_KIND = {word: row for row in KINDS for word in row.split()}
_FILLERS = frozenset(
    {"a", "an", "and", "at", "by", "female", "hard", "in", "large", "male", "of", "on", "small", "the", "up", "with"}
)


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    mixtures: int = 200  # frames: mixtures of ten seconds
    recordings: int = 20  # long: recordings
    minutes: float = 3.0  # of each
    half_hours: int = 4  # longform: recordings
    half_hour: float = 30.0  # minutes of each
    repeating: int = 30  # endings: recordings of two minutes of each kind
    libraries: int = 7  # presence: libraries
    phrases: int = 15  # present ones of each library, and as many absent ones
    nonsense: int = 50  # strings asked of each library
    searched: int = 40  # search: recordings of two minutes
    distractors: int = 200  # single clips beside them
    groups: int = 60  # temporal: groups of six clips
    demo: int = 1000  # queries: demo sounds, at most


def topics(label: str) -> frozenset[str]:
    """The words of a label without fillers and plural s, those of a row of KINDS replaced by the row."""
    words = [w[:-1] if w.endswith("s") and not w.endswith("ss") and len(w) > 3 else w for w in label.lower().split()]
    return frozenset(_KIND.get(word, word) for word in words if word not in _FILLERS)


class Alike:
    """Whether two labels may name the same sound: they share a word or a row of KINDS, or their embeddings are close.

    The embeddings are those of a sentence model, not of the measured checkpoint, so that every checkpoint is asked the
    same questions.
    """

    def __init__(self, labels: Iterable[str], embed: Embed) -> None:
        self.labels = sorted(set(labels))
        vectors = embed(self.labels)
        words = [topics(label) for label in self.labels]
        shared = [[bool(a & b) for b in words] for a in words]
        self._alike = np.array(shared) | (vectors @ vectors.T > ALIKE)
        self._at = {label: i for i, label in enumerate(self.labels)}

    def __call__(self, label: str, others: Iterable[str]) -> bool:
        """Whether the label is alike one of the others."""
        row = self._alike[self._at[label]]
        return any(row[self._at[other]] for other in others)

    def among(self, label: str, others: Iterable[str]) -> set[str]:
        """Those of the others that the label is alike."""
        row = self._alike[self._at[label]]
        return {other for other in others if row[self._at[other]]}


class Sounds:
    """A folder of labelled sounds. `store` has those of the recipe's validation packages, decoded into `work`."""

    def __init__(self, folder: Path, work: Path, embed: Embed | None = None, recipe: Recipe | None = None) -> None:
        """Raises OSError without a manifest, and ValueError without sounds of the validation packages."""
        self.folder = folder
        self.recipe = recipe or read_recipe(RECIPE)
        self.groups = self.recipe.validation_groups
        items = [item for item in read_labelled(folder) if item.captions]
        held_out = [item for item in items if item.group in self.groups]
        if not held_out:
            raise ValueError(f"{folder.name} has no sounds of {', '.join(self.groups)}")
        self.others = [i for i in items if i.group not in (*self.groups, *self.recipe.excluded_groups)]
        self.store = AudioStore(work / "validation.i16", held_out, progress=True)
        self._embed = embed

    @cached_property
    def label(self) -> list[str]:
        """The label of each sound in the store."""
        return [item.captions[0] for item in self.store.items]

    @cached_property
    def phrases(self) -> list[str]:
        """The labels of single sounds that say what to expect, sorted; scenes, which contain other sounds, are not."""
        return sorted(label for label in set(self.label) - VAGUE if "ambience" not in label)

    @cached_property
    def manifest(self) -> dict[str, dict[str, Any]]:
        """The manifest's rows by audio path."""
        lines = (self.folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
        return {row["audio"]: row for row in map(json.loads, lines)}

    def alike(self, more: Iterable[str] = ()) -> Alike:
        """Compares the store's labels, and more."""
        return Alike([*self.label, *more], self._embed or embedder())


class CachedModel:
    """A model whose audio embeddings are kept in a folder, by the checkpoint's stamp and the audio's content."""

    def __init__(self, model: FineLAP, folder: Path) -> None:
        self.model, self._folder = model, folder

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def encode_audio(self, waveforms: Sequence[np.ndarray], sample_rate: int) -> list[AudioEmbedding]:
        """As FineLAP.encode_audio."""
        key = hashlib.sha256(f"{self.model.stamp} {self.model.dtype} {sample_rate}".encode())
        for waveform in waveforms:
            key.update(np.ascontiguousarray(waveform).tobytes() + b".")
        file = self._folder / f"embeddings-{key.hexdigest()[:24]}.npz"
        if not file.is_file():
            found = self.model.encode_audio(waveforms, sample_rate)
            part = file.with_suffix(".part.npz")
            np.savez(
                part,
                clips=np.stack([e.clip.numpy() for e in found]),
                frames=np.concatenate([e.frames.numpy() for e in found]),
                lengths=[len(e.frames) for e in found],
            )
            part.rename(file)
        with np.load(file) as saved:
            clips, frames = torch.from_numpy(saved["clips"]), torch.from_numpy(saved["frames"])
            parts = frames.split(saved["lengths"].tolist())
        return [AudioEmbedding(c, f, self.model.frame_hop) for c, f in zip(clips, parts, strict=True)]


@dataclass(frozen=True)
class Embedded:
    """The embeddings of clips as a library stores them: of whole clips (N, D), and of their segments (S, D)."""

    clips: np.ndarray
    segments: np.ndarray
    owners: np.ndarray  # (S,): the clip of each segment, ascending
    seconds: np.ndarray  # (N,): how long the clips are

    @classmethod
    def of(cls, model: CachedModel, waveforms: Sequence[np.ndarray]) -> Embedded:
        """Embeds clips, (n,) samples each at 16 kHz."""
        found = model.encode_audio(waveforms, SAMPLE_RATE)
        parts = [cut_segments(encode_frames(e.frames.numpy()), e.frame_hop).decode() for e in found]
        owners = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        seconds = np.array([len(waveform) / SAMPLE_RATE for waveform in waveforms])
        return cls(np.stack([e.clip.numpy() for e in found]), np.concatenate(parts), owners, seconds)

    def logits(self, model: CachedModel, texts: np.ndarray) -> np.ndarray:
        """The service's scores (texts, clips) of text embeddings, before the sigmoid: of the clip or its best segment.

        Only clips longer than LONG_SECONDS have a best segment. Segments have their own temperature and bias if the
        checkpoint has any, otherwise those of clips.
        """
        clip_temp, clip_bias = (float(x.detach()) for x in (model.temp_global, model.b_global))
        matching = model.config.matching
        temp, bias = matching.segment if matching is not None else (clip_temp, clip_bias)
        starts = np.searchsorted(self.owners, np.arange(len(self.clips)))
        whole = texts @ self.clips.T / clip_temp + clip_bias
        parts = texts @ self.segments.T / temp + bias
        best = np.maximum.reduceat(parts, starts, axis=1)
        return np.where(self.seconds > LONG_SECONDS, np.maximum(whole, best), whole)
