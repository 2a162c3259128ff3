"""Distillation as a task: a small audio encoder learns YAMNet's classes and aisfx's features, frame by frame.

`build_pool` writes a pool of scenes with the teachers' outputs, in shards. `DistillationTask` trains on random crops of
it. No captions are involved; the alignment stage in training.tasks.dual_stream adds them.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import soundfile
import soxr
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from model.adapter import Adapter, ConceptAdapter
from model.audio import LogMel
from model.config import SAMPLE_RATE, MelConfig
from model.finelap import FineLAP
from training.checkpointing import write_shard
from training.config import DistillConfig, PoolConfig
from training.data.activity import active_stretches
from training.data.audio_cache import AudioStore
from training.data.mixer import SceneConfig, SceneMaker
from training.optim import channels_last
from training.tasks.task import Task, weighted
from training.tasks.teachers import FRAME_MEL, Aisfx, Yamnet

FRAME_SAMPLES = 2560  # 0.16 s
QUIET = 1e-4  # share of the loudest frame's power; frames below it don't count towards the clip's target
BLOCK = 16  # scenes that pass through the teachers at a time
LOSS_WEIGHTS = {"frame": 1.0, "clip": 1.0, "features": 4.0, "aisfx": 2.0}

Events = list[tuple[int, float, float]]  # (source, onset, offset) in seconds


def build_pool(folder: Path, store: AudioStore, weights: np.ndarray, mel: MelConfig, config: PoolConfig) -> None:
    """Writes the shards that are missing; each is complete or absent. `weights` is how often each sound is drawn."""
    missing = [s for s in range(config.shards) if not (folder / f"{s:03d}").is_dir()]
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        builder = _ShardBuilder(store, weights, mel, config)
        for shard in tqdm(missing, desc="pool"):
            builder.write(folder, shard)


class _ShardBuilder:
    """Scenes of a shard with the teachers' outputs."""

    def __init__(self, store: AudioStore, weights: np.ndarray, mel: MelConfig, config: PoolConfig) -> None:
        self.store, self.config = store, config
        steady = np.array([i for i in range(len(store)) if store.duration(i) >= 4.0])
        self.makers = [SceneMaker(store.get, weights, steady, SceneConfig(wild=share)) for share in (0.0, 0.5)]
        self.yamnet, self.log_mel = Yamnet(), LogMel(mel)

    @cached_property
    def aisfx(self) -> Aisfx:
        return Aisfx()

    def write(self, folder: Path, shard: int) -> None:
        config, maker = self.config, self.makers[shard >= self.config.wild_from]
        rng = np.random.default_rng([config.seed, shard])
        with_aisfx = shard % config.aisfx_every == config.aisfx_every - 1
        arrays: dict[str, list[np.ndarray]] = {}
        events: list[Events] = []
        for _ in range(0, config.shard_scenes, BLOCK):
            waves, high, found = self.singles(maker, rng) if with_aisfx else self.scenes(maker, rng)
            events += found
            for name, value in self.targets(waves, high).items():
                kind = torch.bool if name == "active" else torch.float16
                arrays.setdefault(name, []).append(value.to(kind).numpy())
        write_shard(folder / f"{shard:03d}", arrays, events)

    def scenes(self, maker: SceneMaker, rng: np.random.Generator) -> tuple[np.ndarray, None, list[Events]]:
        """Scenes (B, samples) at 16 kHz and their events."""
        scenes = [maker.scene(rng) for _ in range(BLOCK)]
        return np.stack([scene.samples for scene in scenes]), None, [list(scene.events) for scene in scenes]

    def singles(self, maker: SceneMaker, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, list[Events]]:
        """Single sounds (B, samples) at 16 kHz, the same at 44.1 kHz, and their events."""
        sources = [maker.draw_source(rng) for _ in range(BLOCK)]
        high = np.stack([_high_rate_crop(self.store, source, rng) for source in sources])
        waves = soxr.resample(high.T, Aisfx.SAMPLE_RATE, SAMPLE_RATE).T[:, : int(5.12 * SAMPLE_RATE)]
        stretches = [active_stretches(w) for w in waves]
        return waves, high, [[(s, a, b) for a, b in found] for s, found in zip(sources, stretches, strict=True)]

    @torch.inference_mode()
    def targets(self, waves: np.ndarray, high: np.ndarray | None) -> dict[str, Tensor]:
        """The raw log-mel of scenes (B, samples), the teachers' outputs, and which frames are not silent (B, T)."""
        batch = torch.from_numpy(np.ascontiguousarray(waves, dtype=np.float32))
        logits, features = self.yamnet(batch)
        targets = {"mel": self.log_mel(F.pad(batch, (0, 240))), "logits": logits, "features": features}
        if high is not None:
            targets["aisfx"] = self.aisfx(torch.from_numpy(high), logits.shape[1])
        power = batch.view(len(batch), -1, FRAME_SAMPLES).square().mean(-1)
        return targets | {"active": power > power.amax(1, keepdim=True) * QUIET}


def _high_rate_crop(store: AudioStore, source: int, rng: np.random.Generator) -> np.ndarray:
    """5.12 s at 44.1 kHz from a sound's file, at a random level; a shorter sound lies at a random place in silence."""
    size = int(5.12 * Aisfx.SAMPLE_RATE)
    samples, rate = soundfile.read(store.items[source].path, dtype="float32", always_2d=True)
    mono = samples.mean(1)
    longest = 6 * rate
    if len(mono) > longest:
        start = int(rng.integers(0, len(mono) - longest))
        mono = mono[start : start + longest]
    mono = soxr.resample(mono, rate, Aisfx.SAMPLE_RATE)[:size]
    canvas = np.zeros(size, np.float32)
    start = int(rng.integers(0, size - len(mono) + 1))
    canvas[start : start + len(mono)] = mono / max(float(np.abs(mono).max()), 1e-4) * 10 ** (rng.uniform(-24, 0) / 20)
    return canvas


class Pool:
    """The shards on disk, memory-mapped."""

    def __init__(self, folder: Path) -> None:
        self.shards: dict[Path, dict[str, np.ndarray]] = {
            path: {f.stem: np.load(f, mmap_mode="r") for f in path.glob("*.npy")}
            for path in sorted(folder.glob("[0-9][0-9][0-9]"))
        }

    def batch(self, size: int, frames: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """`size` random crops of `frames` frames, as `crops` returns them."""
        paths = list(self.shards)
        rows = []
        for path in (paths[i] for i in rng.integers(0, len(paths), size)):
            scenes, steps = self.shards[path]["logits"].shape[:2]
            rows.append((path, int(rng.integers(scenes)), int(rng.integers(steps - frames + 1))))
        return self.crops(rows, frames)

    def crops(self, rows: list[tuple[Path, int, int]], frames: int) -> dict[str, Tensor]:
        """`frames` frames (T) from each (shard, scene, first frame), as float32 but for `active`.

        `mel` (B, M, bins) raw log-mel, `logits` (B, T, 521), `features` (B, T, 1024), `active` (B, T) bool, and `aisfx`
        (B, T, 512), which is NaN in scenes without aisfx targets.
        """
        parts: dict[str, list[np.ndarray]] = {k: [] for k in ("mel", "logits", "features", "active", "aisfx")}
        for path, row, start in rows:
            shard = self.shards[path]
            parts["mel"].append(shard["mel"][row, start * FRAME_MEL : (start + frames) * FRAME_MEL])
            for key in ("logits", "features", "active"):
                parts[key].append(shard[key][row, start : start + frames])
            if "aisfx" in shard:
                parts["aisfx"].append(shard["aisfx"][row, start : start + frames])
            else:
                parts["aisfx"].append(np.full((frames, Aisfx.WIDTH), np.nan, np.float16))
        stacked = {k: torch.from_numpy(np.stack(v)) for k, v in parts.items()}
        return {k: v if k == "active" else v.float() for k, v in stacked.items()}


class PoolBatches:
    """Random crops of a pool; each batch is a function of the seed and its number."""

    def __init__(self, pool: Pool, config: DistillConfig) -> None:
        self.pool, self.config = pool, config
        self.skipped: dict[str, str] = {}

    def stream(self, start: int) -> Iterator[dict[str, Tensor]]:
        """Yields the batches from number `start` on, as `Pool.crops` returns them."""
        step = start
        while True:
            rng = np.random.default_rng([self.config.seed, 1, step])
            yield self.pool.batch(self.config.batch, self.config.crop_frames, rng)
            step += 1


class TeacherHeads(nn.Module):
    """Linear maps from the encoder's frames to the teachers' features, used in training only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.to_yamnet = nn.Linear(width, 1024)
        self.to_aisfx = nn.Linear(width, Aisfx.WIDTH)

    def losses(self, adapter: Adapter, pooled: Tensor, frames: Tensor, crops: dict[str, Tensor]) -> dict[str, Tensor]:
        """The distances from the teachers, from the encoder's output: the keys of LOSS_WEIGHTS, scalars.

        "aisfx" is 0 if no crop has its targets.
        """
        heads = cast(ConceptAdapter, adapter)
        target = crops["logits"].sigmoid()
        active = crops["active"].float()[..., None]
        clip_target = (target * active).sum(1) / active.sum(1).clamp_min(1)
        present = ~crops["aisfx"][:, 0, 0].isnan()
        aisfx = frames.new_zeros(())
        if present.any():
            aisfx = _direction_loss(self.to_aisfx(frames[present]), crops["aisfx"][present])
        return {
            "frame": _class_loss(heads.frames.class_logits(frames), target),
            "clip": _class_loss(heads.clip.class_logits(pooled), clip_target),
            "features": _direction_loss(self.to_yamnet(frames), crops["features"]),
            "aisfx": aisfx,
        }


def _class_loss(logits: Tensor, target: Tensor) -> Tensor:
    """KL divergence of the class probabilities from the target's, summed over classes."""
    loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    entropy = F.binary_cross_entropy(target, target, reduction="none")
    return (loss - entropy).sum(-1).mean()


def _direction_loss(student: Tensor, teacher: Tensor) -> Tensor:
    return (1 - F.cosine_similarity(student, teacher, dim=-1)).mean()


class DistillationTask(Task):
    """Trains the audio encoder and the concept adapter of a FineLAP; its text tower takes no part.

    With `heads_only`, it trains the teacher heads of a model that is trained already.
    """

    model: FineLAP

    def __init__(self, model: FineLAP, heads: TeacherHeads, config: DistillConfig, *, heads_only: bool = False) -> None:
        super().__init__()
        self.model, self.heads, self.config, self.heads_only = model, heads, config, heads_only
        self.noise = white_noise_mel(model.log_mel)
        channels_last(model.audio_encoder)

    def forward(self, batch: Any, seed: int | None) -> dict[str, Tensor]:
        """ "loss" and the terms of LOSS_WEIGHTS for crops of a pool. The seed None switches augmentation off."""
        log_mel, raw = self.model.log_mel, batch["mel"]
        if seed is not None:
            raw = augment(raw, log_mel.config, self.noise, self.config.noisy)
        pooled, frames = self.model.audio_encoder(log_mel.normalise(raw))
        return weighted(self.heads.losses(self.model.adapter, pooled, frames, batch), LOSS_WEIGHTS)

    def make_optimiser(self, fused: bool) -> torch.optim.Optimizer:
        parts: list[nn.Module] = [self.heads]
        if not self.heads_only:
            parts = [self.model.audio_encoder, self.model.adapter, self.heads]
        return torch.optim.AdamW(
            [p for part in parts for p in part.parameters()],
            lr=self.config.learning_rate,
            weight_decay=self.config.weight_decay,
            fused=fused,
        )

    def set_train_mode(self) -> None:
        self.train()
        (self.model if self.heads_only else self.model.text).eval()


def white_noise_mel(log_mel: LogMel) -> Tensor:
    """The mean raw log-mel (bins,) of white noise of unit RMS, through this front end."""
    noise = torch.randn(1, 20 * SAMPLE_RATE, generator=torch.Generator().manual_seed(0))
    return log_mel(noise)[0].exp().mean(0).log()


def augment(mel: Tensor, config: MelConfig, noise: Tensor, noisy: float) -> Tensor:
    """Raw log-mel (B, M, bins) at a random level, a share `noisy` of it under white noise, with up to two bands hidden.

    The teachers' outputs belong to the clean scenes. `noise` is `white_noise_mel`; it is added as power, at -80 to
    -36 dB of full scale. Draws come from torch's global generator.
    """
    batch, _, bins = mel.shape
    gain = torch.empty(batch, 1, 1).uniform_(-2.3, 2.3)  # ±10 dB of power
    mel = (mel + gain).clamp_min(config.pad_value)
    level = torch.empty(batch, 1, 1).uniform_(-80, -36) * (np.log(10) / 10)
    level = level.masked_fill(torch.rand(batch, 1, 1) >= noisy, float("-inf"))
    ripple = 0.6 * torch.randn(mel.shape) - 0.18  # of a few FFT bins' power around its mean, roughly
    mel = torch.logaddexp(mel, noise + level + ripple)
    band = torch.arange(bins)
    for _ in range(2):
        width = torch.randint(0, bins // 8 + 1, (batch, 1))
        low = torch.randint(0, bins, (batch, 1))
        hidden = (band >= low) & (band < low + width)
        mel = mel.masked_fill(hidden[:, None, :], config.mean)
    return mel
