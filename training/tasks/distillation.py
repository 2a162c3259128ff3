"""Teaches a small audio encoder from scratch what YAMNet knows and where aisfx hears something.

A pool of scenes with the teachers' answers is made once, in shards; the student then trains on random crops of it. Both
steps pick up where they stopped. Knows nothing of captions: labels come later, in training.tasks.align.
"""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from model.adapter import ConceptAdapter
from model.audio import LogMel
from model.config import SAMPLE_RATE, MelConfig
from model.encoders.registry import AudioEncoder
from training.data.activity import active_stretches
from training.data.audio_cache import AudioStore
from training.data.mixer import SceneConfig, SceneMaker
from training.tasks.teachers import FRAME_MEL, Aisfx, Yamnet

FRAME_SAMPLES = 2560  # 0.16 s
QUIET = 1e-4  # of the loudest frame's power: quieter frames say nothing about the clip


@dataclass(frozen=True)
class PoolConfig:
    """How large a pool to make, and how often its scenes come with aisfx's view as well."""

    shards: int = 24
    shard_scenes: int = 1024
    aisfx_every: int = 7  # of the shards; those hold single sounds only, since aisfx wants 44.1 kHz
    wild_from: int = 14  # shards from this number on have half of their varied sounds varied strongly
    seed: int = 0


def build_pool(
    folder: Path,
    store: AudioStore,
    weights: np.ndarray,
    mel: MelConfig,
    config: PoolConfig,
    part: int = 0,
    parts: int = 1,
) -> None:
    """Makes the shards that are not there yet; each is written whole or not at all. `part` of `parts` processes."""
    missing = [s for s in range(part, config.shards, parts) if not (folder / f"{s:03d}").is_dir()]
    if not missing:
        return
    folder.mkdir(parents=True, exist_ok=True)
    steady = np.array([i for i in range(len(store)) if store.duration(i) >= 4.0])
    makers = [SceneMaker(store.get, weights, steady, SceneConfig(wild=share)) for share in (0.0, 0.5)]
    yamnet, log_mel = Yamnet(), LogMel(mel)
    aisfx: Aisfx | None = None
    for shard in tqdm(missing, desc="pool"):
        maker = makers[shard >= config.wild_from]
        rng = np.random.default_rng([config.seed, shard])
        arrays: dict[str, list[np.ndarray]] = {}
        events: list[list[tuple[int, float, float]]] = []
        with_aisfx = shard % config.aisfx_every == config.aisfx_every - 1
        if with_aisfx and aisfx is None:
            aisfx = Aisfx()
        for _ in range(0, config.shard_scenes, 16):
            if with_aisfx:
                sources = [maker.draw_source(rng) for _ in range(16)]
                high = np.stack([_high_rate_crop(store, source, rng) for source in sources])
                waves = soxr.resample(high.T, Aisfx.SAMPLE_RATE, SAMPLE_RATE).T[:, : int(5.12 * SAMPLE_RATE)]
                stretches = [active_stretches(w) for w in waves]
                events += [[(s, a, b) for a, b in found] for s, found in zip(sources, stretches, strict=True)]
            else:
                scenes = [maker.scene(rng) for _ in range(16)]
                waves = np.stack([scene.samples for scene in scenes])
                events += [list(scene.events) for scene in scenes]
            with torch.inference_mode():
                batch = torch.from_numpy(np.ascontiguousarray(waves, dtype=np.float32))
                logits, features = yamnet(batch)
                frames = F.pad(batch, (0, 240))
                answers = {"mel": log_mel(frames), "logits": logits, "features": features}
                if with_aisfx and aisfx is not None:
                    answers["aisfx"] = aisfx(torch.from_numpy(high), logits.shape[1])
                power = batch.view(len(batch), -1, FRAME_SAMPLES).square().mean(-1)
                answers["active"] = power > power.amax(1, keepdim=True) * QUIET
            for name, value in answers.items():
                kind = torch.bool if name == "active" else torch.float16
                arrays.setdefault(name, []).append(value.to(kind).numpy())
        partial = folder / f"{shard:03d}.partial"
        partial.mkdir(exist_ok=True)
        for name, batches in arrays.items():
            np.save(partial / f"{name}.npy", np.concatenate(batches))
        (partial / "events.json").write_text(json.dumps(events))
        partial.rename(folder / f"{shard:03d}")


def _high_rate_crop(store: AudioStore, source: int, rng: np.random.Generator) -> np.ndarray:
    """5.12 s of one sound at 44.1 kHz from its file, placed at random in silence if shorter; a random level."""
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
    """The shards on disk, as random batches of crops."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shards: dict[Path, dict[str, np.ndarray]] = {}
        self.refresh()

    def refresh(self) -> int:
        """Opens shards that have appeared; returns how many there are."""
        for path in sorted(self.folder.glob("[0-9][0-9][0-9]")):
            if path not in self.shards:
                self.shards[path] = {f.stem: np.load(f, mmap_mode="r") for f in path.glob("*.npy")}
        return len(self.shards)

    def batch(self, size: int, frames: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """`size` crops of `frames` frames: raw log-mel, teachers' answers; scenes without aisfx's have NaN there."""
        paths = list(self.shards)
        rows = []
        for path in (paths[i] for i in rng.integers(0, len(paths), size)):
            scenes, steps = self.shards[path]["logits"].shape[:2]
            rows.append((path, int(rng.integers(scenes)), int(rng.integers(steps - frames + 1))))
        return self.crops(rows, frames)

    def crops(self, rows: list[tuple[Path, int, int]], frames: int) -> dict[str, Tensor]:
        """`frames` frames of each (shard, scene, first frame)."""
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


class Student(nn.Module):
    """An encoder and adapter of a FineLAP with the heads that only distillation needs."""

    def __init__(self, encoder: AudioEncoder, adapter: ConceptAdapter) -> None:
        super().__init__()
        self.encoder, self.adapter = encoder, adapter
        self.to_yamnet = nn.Linear(encoder.width, 1024)
        self.to_aisfx = nn.Linear(encoder.width, Aisfx.WIDTH)

    def losses(self, batch: dict[str, Tensor], mel: Tensor) -> dict[str, Tensor]:
        """How far the student's answers on normalised `mel` are from the teachers'."""
        pooled, frames = self.encoder(mel)
        return self.losses_of(pooled, frames, batch)

    def losses_of(self, pooled: Tensor, frames: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The same, from the encoder's output."""
        target = batch["logits"].sigmoid()
        active = batch["active"].float()[..., None]
        clip_target = (target * active).sum(1) / active.sum(1).clamp_min(1)
        frame_logits, clip_logits = self.adapter.frames.logits(frames), self.adapter.clip.logits(pooled)
        result = {
            "frame": _class_loss(frame_logits, target),
            "clip": _class_loss(clip_logits, clip_target),
            "features": _direction_loss(self.to_yamnet(frames), batch["features"]),
        }
        heard = ~batch["aisfx"][:, 0, 0].isnan()
        if heard.any():
            result["aisfx"] = _direction_loss(self.to_aisfx(frames[heard]), batch["aisfx"][heard])
        return result


def _class_loss(logits: Tensor, target: Tensor) -> Tensor:
    """How the class probabilities miss: binary cross-entropy summed over classes, above the target's own entropy."""
    loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    entropy = F.binary_cross_entropy(target, target, reduction="none")
    return (loss - entropy).sum(-1).mean()


def _direction_loss(student: Tensor, teacher: Tensor) -> Tensor:
    return (1 - F.cosine_similarity(student, teacher, dim=-1)).mean()


LOSS_WEIGHTS = {"frame": 1.0, "clip": 1.0, "features": 4.0, "aisfx": 2.0}


@dataclass(frozen=True)
class DistillConfig:
    """The schedule: a cosine from `learning_rate` over `steps` batches of crops, after a linear warm-up."""

    steps: int = 4000
    batch: int = 64
    crop_frames: int = 16
    learning_rate: float = 1.5e-3
    warmup: int = 200
    weight_decay: float = 0.02
    noisy: float = 0.5  # of the crops come under white noise
    save_every: int = 200
    seed: int = 0


def distill(
    student: Student,
    log_mel: LogMel,
    pool: Pool,
    folder: Path,
    config: DistillConfig,
    report: Callable[[], dict[str, float]],
) -> Iterator[int]:
    """Trains in place, resuming from `folder`/distill.pt. Yields the step after each save, for the caller to evaluate.

    A CSV row a save goes to `folder`/distill.csv; `report` gives its last columns.
    """
    channels_last(student.encoder)
    optimiser = torch.optim.AdamW(
        student.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    state_file, step, spent = folder / "distill.pt", 0, 0.0
    if state_file.is_file():
        state = torch.load(state_file, weights_only=True)
        student.load_state_dict(state["student"])
        optimiser.load_state_dict(state["optimiser"])
        step, spent = state["step"], state["seconds"]
    noise = hiss(log_mel)
    sums: dict[str, float] = {}
    saved = step
    started = time.monotonic()
    bar = tqdm(total=config.steps, initial=step, desc="distil", mininterval=5)
    while step < config.steps:
        rng = np.random.default_rng([config.seed, 1, step])
        torch.manual_seed(step)
        batch = pool.batch(config.batch, config.crop_frames, rng)
        mel = log_mel.normalise(augment(batch["mel"], log_mel.config, noise, config.noisy))
        rate = config.learning_rate * schedule(step, config.steps, config.warmup)
        for group in optimiser.param_groups:
            group["lr"] = rate
        student.train()
        losses = student.losses(batch, mel)
        total = torch.stack([LOSS_WEIGHTS[k] * v for k, v in losses.items()]).sum()
        optimiser.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 5.0)
        optimiser.step()
        for key, value in losses.items():
            sums[key] = sums.get(key, 0.0) + float(value.detach())
        step += 1
        bar.update()
        if step % config.save_every == 0 or step == config.steps:
            pool.refresh()
            spent += time.monotonic() - started
            started = time.monotonic()
            means = {k: round(v / (step - saved), 5) for k, v in sums.items()}
            sums, saved = {}, step
            state = {"student": student.state_dict(), "optimiser": optimiser.state_dict()}
            save_state(state | {"step": step, "seconds": spent}, state_file)
            student.eval()
            row: dict[str, object] = {"step": step, "crops": step * config.batch}
            row |= {"seconds": round(spent), "lr": f"{rate:.2e}"}
            row.update({k: means.get(k, "") for k in LOSS_WEIGHTS})
            row.update(report())
            append_row(folder / "distill.csv", row)
            bar.set_postfix_str(json.dumps({k: row[k] for k in row if k not in ("seconds", "lr")})[:120])
            yield step
            started = time.monotonic()
    bar.close()


def schedule(step: int, steps: int, warmup: int) -> float:
    """Share of the learning rate at a step: a linear warm-up times a cosine that ends at zero."""
    return min(1, (step + 1) / warmup) * 0.5 * float(1 + np.cos(np.pi * step / steps))


def save_state(state: dict[str, Any], file: Path) -> None:
    """Writes a training state beside `file` and moves it there: a stop leaves the old one or the new one."""
    partial = file.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, file)


def channels_last(module: nn.Module) -> None:
    """Lays the convolutions' weights out with channels innermost, in place: a third faster to train on a CPU."""
    for parameter in module.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def hiss(log_mel: LogMel) -> Tensor:
    """The mean raw log-mel (bins,) of white noise of unit RMS, through this front end."""
    noise = torch.randn(1, 20 * SAMPLE_RATE, generator=torch.Generator().manual_seed(0))
    return log_mel(noise)[0].exp().mean(0).log()


def augment(mel: Tensor, config: MelConfig, noise: Tensor, noisy: float) -> Tensor:
    """Raw log-mel (B, M, bins) as the teacher did not hear it: at another level, a share of them under white noise.

    Up to two bands are hidden besides. `noise` is `hiss`; it is added as power, at -80 to -36 dB of full scale, to
    crops drawn with probability `noisy`.
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


def append_row(path: Path, row: dict) -> None:
    """Adds a line to a CSV, with a header where it is new."""
    new = not path.is_file()
    with path.open("a", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)
