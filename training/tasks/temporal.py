"""The temporal stage of the bundled recipe: frames learn which neighbours belong to the same sound.

The encoder and everything else is frozen, so scenes pass through the encoder once (`encode_scenes`) and the temporal
attention trains on its features with the frame loss of the dual-stream task. Half of what makes detection hard is in
these scenes beside dense mixtures: single events over steady noise, and clips shorter than a window.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from model.config import SAMPLE_RATE
from model.finelap import FineLAP
from model.windows import centred
from training.checkpointing import write_shard
from training.config import LossConfig, TemporalStageConfig
from training.data.activity import active_stretches, frame_labels, peak, rms
from training.data.audio_cache import AudioStore
from training.data.mixer import FLOOR, Canvas, Scene, SceneConfig, SceneMaker
from training.data.phrase_bank import PhraseBank
from training.tasks.dual_stream import DualStreamTask

SHARD = 512  # scenes
BLOCK = 8  # scenes that pass through the encoder at a time
SHORT_SHARES = (0.1, 0.8)  # of a window that a short clip may fill
CROPPED = 0.5  # share of batches that are cut, as windows of live sound and of short clips are
SHORTEST = 8  # frames of a cut batch
SPARSE_EVENTS = 3  # at most, over steady noise or a steady sound
FAINT_DB = -60.0  # steady noise as faint as silence, in one of four

Segments = dict[str, list[tuple[float, float]]]


@dataclass(frozen=True)
class TemporalBatch:
    """B encoded scenes of T frames with P phrases each."""

    frames: Tensor  # (B, T, C) float32, the encoder's
    pooled: Tensor  # (B, W) float32
    phrases: list[list[str]]  # B × P
    labels: Tensor  # (B, P, T) float32, 0 or 1
    strong: Tensor  # (B,) bool, all True


class TemporalScenes:
    """Draws scene number n of a run: a dense mixture, events over a steady background, or a short clip."""

    def __init__(self, store: AudioStore, weights: np.ndarray, config: TemporalStageConfig, seconds: float) -> None:
        """`weights` is how often each of the store's sounds is drawn; `seconds` is the length of the model's window."""
        self.store, self.config, self.seconds = store, config, seconds
        steady = np.array([i for i in range(len(store)) if store.duration(i) >= 4.0])
        self.maker = SceneMaker(store.get, weights, steady, SceneConfig(duration=seconds, mixture=1.0, augment=0.5))
        self.size = int(seconds * SAMPLE_RATE)

    def draw(self, number: int) -> Scene:
        """The same scene for the same number."""
        rng = np.random.default_rng([self.config.seed, number])
        kind = rng.random()
        if kind < self.config.sparse:
            return self.sparse(rng)
        return self.short(rng) if kind < self.config.sparse + self.config.short else self.maker.scene(rng)

    def sparse(self, rng: np.random.Generator) -> Scene:
        """No event or a few, over a steady sound of the store or over noise; the background is an event, if a sound."""
        canvas, events = Canvas(np.zeros(self.size, np.float32), FLOOR), []
        if rng.random() < 0.5:
            under, bed = self.maker.background(rng, self.size)
            events.append((under, 0.0, self.seconds))
        else:
            bed = steady_noise(self.size, rng)
        faint = 10 ** (FAINT_DB / 20) if not events and rng.random() < 0.25 else 1.0
        canvas.samples += (bed * (faint * FLOOR / max(rms(bed), 1e-9))).astype(np.float32)
        for _ in range(int(rng.integers(0, SPARSE_EVENTS + 1))):
            source = self.maker.draw_source(rng)
            sound = self.maker.sound(source, rng, int(0.7 * self.size))
            at = canvas.place(sound, rng.uniform(*self.maker.config.snr_db), 1, rng, quietest=1e-3)[0] / SAMPLE_RATE
            events += [(source, at + onset, at + offset) for onset, offset in active_stretches(sound)]
        return self._levelled(canvas.samples, events, rng)

    def short(self, rng: np.random.Generator) -> Scene:
        """A single sound with what follows it silent, as a clip shorter than a window is encoded."""
        source = self.maker.draw_source(rng)
        limit = rng.uniform(*SHORT_SHARES) * self.size
        sound = self.maker.sound(source, rng, int(limit))
        return self._levelled(sound, [(source, *stretch) for stretch in active_stretches(sound)], rng)

    def _levelled(self, samples: np.ndarray, events: list[tuple[int, float, float]], rng: np.random.Generator) -> Scene:
        samples = samples * 10 ** (rng.uniform(*self.maker.config.peak_db) / 20) / max(peak(samples), 1e-4)
        return Scene(samples.astype(np.float32), tuple(events))


def steady_noise(size: int, rng: np.random.Generator) -> np.ndarray:
    """Noise whose power falls by a random slope, in one of three with a hum and its harmonics; (size,) float64."""
    hz = np.maximum(np.fft.rfftfreq(size, 1 / SAMPLE_RATE), 20.0)
    noise = np.fft.irfft(np.fft.rfft(rng.standard_normal(size)) * hz ** -rng.uniform(0, 1.2), size)
    noise /= rms(noise)
    if rng.random() < 1 / 3:
        base, t = rng.uniform(40, 130), np.arange(size) / SAMPLE_RATE
        hum = sum(rng.random() * np.sin(2 * np.pi * base * n * t + rng.uniform(0, 6.3)) / n for n in range(1, 10))
        noise = rng.uniform(0.05, 1) * noise + hum
    return noise


def encode_scenes(model: FineLAP, scenes: TemporalScenes, folder: Path) -> None:
    """Writes the shards that are missing: `frames` and `pooled` of each scene as float16, and its events."""
    encoder, windows = model.audio_encoder, model.config.windows
    for shard in tqdm(range(-(-scenes.config.scenes // SHARD)), desc="temporal scenes"):
        if (folder / f"{shard:03d}").is_dir():
            continue
        numbers = range(shard * SHARD, min(scenes.config.scenes, (shard + 1) * SHARD))
        parts: dict[str, list[np.ndarray]] = {"frames": [], "pooled": []}
        events = []
        for at in range(numbers.start, numbers.stop, BLOCK):
            drawn = [scenes.draw(n) for n in range(at, min(numbers.stop, at + BLOCK))]
            with torch.no_grad():
                output = encoder(model.mel([centred(scene.samples) for scene in drawn], windows.mel_frames))
            for name in parts:
                parts[name].append(getattr(output, name).half().numpy())
            events += [scene.events for scene in drawn]
        write_shard(folder / f"{shard:03d}", parts, events)


class TemporalBatches:
    """Batches of encoded scenes, each a function of the seed and its number. Sounds without a label are no phrase."""

    def __init__(
        self, folder: Path, source_labels: list[str], bank: PhraseBank, config: TemporalStageConfig, frame_hop: float
    ) -> None:
        """`source_labels` gives each sound's label, "" for none; `frame_hop` is in seconds."""
        shards = sorted(path for path in folder.iterdir() if path.name.isdigit())
        self.arrays = {
            name: [np.load(s / f"{name}.npy", mmap_mode="r") for s in shards] for name in ("frames", "pooled")
        }
        self.events = [scene for s in shards for scene in json.loads((s / "events.json").read_text())]
        self.source_labels, self.bank, self.config, self.frame_hop = source_labels, bank, config, frame_hop
        self.skipped: dict[str, str] = {}

    def stream(self, start: int) -> Iterator[TemporalBatch]:
        """Yields the batches from number `start` on."""
        step = start
        while True:
            yield self.batch(np.random.default_rng([self.config.seed, 3, step]))
            step += 1

    def batch(self, rng: np.random.Generator) -> TemporalBatch:
        """`config.batch` scenes, each with its phrases and phrases of clusters that are not in it."""
        config, phrases, labels = self.config, [], []
        chosen = rng.integers(len(self.events), size=config.batch).tolist()
        frames, pooled = (
            torch.from_numpy(np.stack([arrays[n // SHARD][n % SHARD] for n in chosen])).float()
            for arrays in self.arrays.values()
        )
        steps = frames.shape[1]
        kept = slice(0, steps)
        if rng.random() < CROPPED:
            first = int(rng.integers(0, steps - SHORTEST + 1))
            kept = slice(first, int(rng.integers(first + SHORTEST, steps + 1)))
        for number in chosen:
            sounds: Segments = {}
            for source, onset, offset in self.events[number]:
                if label := self.source_labels[source]:
                    sounds.setdefault(label, []).append((onset, min(offset, steps * self.frame_hop)))
            names = list(sounds)[: config.phrases // 2]
            negatives = self.bank.negatives(list(sounds), config.phrases - len(names), rng)
            phrases.append(names + negatives)
            grid = np.stack([frame_labels(sounds.get(p, []), steps, self.frame_hop) for p in phrases[-1]])
            labels.append(grid[:, kept])
        strong = torch.ones(len(chosen), dtype=torch.bool)
        return TemporalBatch(frames[:, kept], pooled, phrases, torch.from_numpy(np.stack(labels)), strong)


class TemporalTask(DualStreamTask):
    """The frame loss on encoded scenes; the temporal attention learns, and the frames' temperature and bias with it."""

    def __init__(self, model: FineLAP, config: TemporalStageConfig) -> None:
        super().__init__(model, LossConfig(clip_weight=0.0))
        assert model.temporal is not None
        self.attention, self.config = model.temporal, config

    def encoded(self, batch: Any, seed: int | None) -> tuple[Tensor, Tensor]:
        return batch.pooled, batch.frames

    def make_optimiser(self, fused: bool) -> torch.optim.Optimizer:
        self.model.requires_grad_(False)
        scales = [self.model.temp_local, self.model.b_local]
        learn = [*self.attention.parameters(), *scales]
        for parameter in learn:
            parameter.requires_grad_(True)
        groups: list[dict[str, Any]] = [
            {"params": list(self.attention.parameters())},
            {"params": scales, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=self.config.learning_rate, weight_decay=0.05, fused=fused)

    def set_train_mode(self) -> None:
        self.eval()
        self.attention.train()

    @torch.no_grad()
    def clamp_parameters(self) -> None:
        self.model.temp_local.clamp_(min=self.smallest_temp)
