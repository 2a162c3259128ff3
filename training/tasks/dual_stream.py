"""The dual-stream sigmoid loss (arXiv 2604.01155) as a task: clips against captions, frames against phrases.

`DualStreamTask` trains on waveforms. `SceneAlignmentTask` is the bundled recipe's alignment stage: the same losses on
crops of the scene pool, plus the distillation losses.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.audio import MEL_WINDOW, mel_frames_begun_in, mel_frames_in, samples_for
from model.finelap import FineLAP
from training.config import AlignConfig, LossConfig, OptimiserConfig
from training.data.activity import frame_labels
from training.data.augment import SpecAugmentConfig, spec_augment
from training.data.phrase_bank import PhraseBank, caption_of, phrased
from training.losses import (
    gathered_clip_sigmoid_loss,
    gathered_frame_sigmoid_loss,
    gathered_infonce_loss,
    per_rank_gradient,
)
from training.optim import build_optimiser, channels_last, train_mode
from training.tasks.distillation import LOSS_WEIGHTS, Pool, TeacherHeads, augment, white_noise_mel
from training.tasks.task import Task, weighted


def batch_mel(model: FineLAP, waveforms: Tensor, lengths: Tensor, frames: int) -> tuple[Tensor, Tensor]:
    """Waveforms (B, S) at 16 kHz with `lengths` (B,) valid samples → normalised log-mel (B, M, bins), valid M (B,).

    M is the number of mel frames in `frames` frames. Each waveform's mean is subtracted and padding enters as in
    `FineLAP.mel`, the slow reference.
    """
    windows, config = model.config.windows, model.config.mel
    mel_frames = frames * windows.mel_frames // windows.frames
    samples = samples_for(mel_frames)
    waveforms = F.pad(waveforms, (0, max(0, samples - waveforms.shape[1])))[:, :samples]
    real = torch.arange(samples, device=waveforms.device) < lengths[:, None]
    means = waveforms.sum(1) / lengths.clamp(1, samples)
    raw = model.log_mel((waveforms - means[:, None]) * real)
    if config.snip_edges:
        counts = [mel_frames_in(max(n, MEL_WINDOW)) for n in lengths.tolist()]
    else:
        counts = [mel_frames_begun_in(n) for n in lengths.tolist()]
    valid = torch.tensor(counts, device=waveforms.device)
    padding = torch.arange(mel_frames, device=waveforms.device) >= valid[:, None]
    return model.log_mel.normalise(raw.masked_fill(padding[..., None], config.pad_value)), valid


class DualStreamTask(Task):
    """FineLAP with its clip and frame losses, on batches of waveforms. One encoder pass serves both losses."""

    model: FineLAP

    def __init__(
        self,
        model: FineLAP,
        loss: LossConfig,
        spec_augment: SpecAugmentConfig | None = None,
        optimiser: OptimiserConfig | None = None,
        smallest_temp: float = 0.01,
    ) -> None:
        super().__init__()
        self.model, self.loss, self.spec_augment = model, loss, spec_augment
        self.optimiser, self.smallest_temp = optimiser or OptimiserConfig(), smallest_temp
        self.weights = {"clip": loss.clip_weight, "frame": loss.frame_weight}
        self.cache: dict[str, Tensor] = {}  # phrase → output of a frozen text tower, before the projector

    def forward(self, batch: Any, seed: int | None) -> dict[str, Tensor]:
        """ "loss" and those of its terms "clip" and "frame" that have a weight, scalars over the batches of all ranks.

        `seed` draws the augmentation; None switches it off.
        """
        model, device = self.model, self.model.device
        pooled, frames = self.encoded(batch, seed)
        terms: dict[str, Tensor] = {}
        if self.loss.clip_weight:
            clips, captions = model.embed_clips(pooled), self.embed_texts(batch.captions)
            with torch.autocast(device.type, enabled=False):
                terms["clip"] = self.clip_loss(clips, captions, batch.meanings)
        if self.loss.frame_weight:
            tracks = model.embed_frames(frames, pooled)
            flat = [phrase for row in batch.phrases for phrase in row]
            phrases = self.embed_texts(flat, cached=True).view(len(batch.phrases), -1, model.dim)
            valid = batch.strong.to(device)[:, None].expand(phrases.shape[:2])
            with torch.autocast(device.type, enabled=False):
                terms["frame"] = gathered_frame_sigmoid_loss(
                    tracks, phrases, batch.labels.to(device), model.temp_local, model.b_local, valid
                )
        return weighted(terms | self.further_terms(pooled, frames, batch), self.weights)

    def encoded(self, batch: Any, seed: int | None) -> tuple[Tensor, Tensor]:
        """The encoder's pooled features (B, W) and frames (B, T, C) of a batch, augmented if there is a seed."""
        pooled, frames = self.model.audio_encoder(self.mel(batch, seed))
        return pooled, frames

    def mel(self, batch: Any, seed: int | None) -> Tensor:
        """The encoder's input (B, M, bins) for a batch, augmented if there is a seed."""
        device = self.model.device
        waveforms, lengths = batch.waveforms.to(device), batch.lengths.to(device)
        mel, valid = batch_mel(self.model, waveforms, lengths, batch.labels.shape[2])
        if self.spec_augment is None or seed is None:
            return mel
        return spec_augment(mel, self.spec_augment, torch.Generator().manual_seed(seed), fill=0.0, lengths=valid)

    def further_terms(self, pooled: Tensor, frames: Tensor, batch: Any) -> dict[str, Tensor]:
        """Loss terms beside the dual-stream loss, from the encoder's output; each needs an entry in `weights`."""
        return {}

    def clip_loss(self, clips: Tensor, captions: Tensor, meanings: Sequence[tuple[str, ...]]) -> Tensor:
        """The configured loss between clips and captions, (B, D) each."""
        model, chunk = self.model, self.loss.chunk
        if self.loss.gather == "published":
            clips, captions = per_rank_gradient(clips), per_rank_gradient(captions)
        if self.loss.clip == "infonce":
            return gathered_infonce_loss(clips, captions, model.temp_global, chunk=chunk)
        groups = None
        if self.loss.same_meaning:
            groups = torch.tensor([meaning_id(m) for m in meanings], device=clips.device)
        return gathered_clip_sigmoid_loss(
            clips, captions, model.temp_global, model.b_global, chunk=chunk, groups=groups
        )

    def embed_texts(self, texts: list[str], cached: bool = False) -> Tensor:
        """Texts → (N, D) of unit length. Each distinct text passes through the tower once.

        With `cached`, and if the tower is frozen, it does so once per run, as phrases recur. Such a text is encoded
        alone, so that its last digit does not depend on the other texts of a batch.
        """
        distinct = list(dict.fromkeys(texts))
        rows = {text: i for i, text in enumerate(distinct)}
        tower = self.model.text
        if cached and not tower.encoder.training and not any(p.requires_grad for p in tower.encoder.parameters()):
            with torch.no_grad():
                for text in distinct:
                    if text not in self.cache:
                        self.cache[text] = tower.pooled(*self.tokens([text]))[0]
            found = tower.projector(torch.stack([self.cache[text] for text in distinct]))
        else:
            found = tower(*self.tokens(distinct))
        found = self.model.extend_text(F.normalize(found.float(), dim=-1))
        return found[torch.from_numpy(np.array([rows[t] for t in texts], np.int64)).to(found.device)]

    def tokens(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Token ids and mask, (B, L) each, on the model's device."""
        ids, mask = self.model.tokenise(texts)
        return ids.to(self.model.device), mask.to(self.model.device)

    def make_optimiser(self, fused: bool) -> torch.optim.Optimizer:
        return build_optimiser(self.model, self.optimiser, fused)

    def set_train_mode(self) -> None:
        train_mode(self)

    @torch.no_grad()
    def clamp_parameters(self) -> None:
        for temp in (self.model.temp_global, self.model.temp_local):
            temp.clamp_(min=self.smallest_temp)

    def metrics(self) -> dict[str, float]:
        """The learned temperatures and biases."""
        names = ("temp_global", "b_global", "temp_local", "b_local")
        return {name: float(getattr(self.model, name).detach()) for name in names}

    def save_checkpoint(self, folder: Path) -> None:
        self.model.save_pretrained(folder)


def meaning_id(meaning: tuple[str, ...]) -> int:
    """A number for a caption's labels, the same on every rank and machine."""
    digest = hashlib.blake2b("\n".join(meaning).encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")


# The alignment stage of the bundled recipe


@dataclass(frozen=True)
class SceneBatch:
    """B crops of P phrases and T frames, with the teachers' targets."""

    crops: dict[str, Tensor]  # as `Pool.crops` returns them
    captions: list[str]  # B
    meanings: list[tuple[str, ...]]  # B; the labels that each caption names
    phrases: list[list[str]]  # B × P
    labels: Tensor  # (B, P, T) float32, 0 or 1
    strong: Tensor  # (B,) bool, all True


class SceneBatches:
    """Batches of pool crops in which every sound has a label, with captions, phrases and frame labels."""

    def __init__(
        self, pool: Pool, source_labels: list[str], bank: PhraseBank, config: AlignConfig, frame_hop: float
    ) -> None:
        """`source_labels` gives each source's label, "" for none; `frame_hop` is in seconds."""
        self.pool, self.source_labels, self.bank = pool, source_labels, bank
        self.config, self.frame_hop = config, frame_hop
        self.events = {path: json.loads((path / "events.json").read_text()) for path in pool.shards}
        self.skipped: dict[str, str] = {}

    def stream(self, start: int) -> Iterator[SceneBatch]:
        """Yields the batches from number `start` on."""
        step = start
        while True:
            yield self.batch(np.random.default_rng([self.config.seed, 2, step]))
            step += 1

    def sounds_in(self, path: Path, row: int, start: float, stop: float) -> dict[str, list[tuple[float, float]]] | None:
        """Labels in a stretch of a scene, with their segments relative to it; None if there is an unlabelled sound."""
        sounds: dict[str, list[tuple[float, float]]] = {}
        for source, onset, offset in self.events[path][row]:
            onset, offset = max(onset, start) - start, min(offset, stop) - start
            if offset - onset >= 0.04:
                if not self.source_labels[source]:
                    return None
                sounds.setdefault(self.source_labels[source], []).append((onset, offset))
        return sounds or None

    def batch(self, rng: np.random.Generator) -> SceneBatch:
        """`config.batch` crops in which every sound has a label."""
        config, frames = self.config, self.config.crop_frames
        rows: list[tuple[Path, int, int]] = []
        captions, meanings, phrases, labels = [], [], [], []
        paths = list(self.pool.shards)
        while len(rows) < config.batch:
            path = paths[rng.integers(len(paths))]
            row = int(rng.integers(len(self.events[path])))
            start = int(rng.integers(0, self.pool.shards[path]["logits"].shape[1] - frames + 1))
            sounds = self.sounds_in(path, row, start * self.frame_hop, (start + frames) * self.frame_hop)
            if sounds is None:
                continue
            names = sorted(sounds, key=lambda n: sounds[n][0][0])
            positives = [self.bank.alternative(n, rng) if rng.random() < config.swap else n for n in names]
            negatives = self.bank.negatives(names, config.phrases - len(names), rng)
            rows.append((path, row, start))
            captions.append(caption_of(names, rng))
            meanings.append(tuple(sorted(names)))
            phrases.append([phrased(p, rng) for p in positives + negatives])
            labels.append([frame_labels(sounds.get(p, []), frames, self.frame_hop) for p in names + negatives])
        strong = torch.ones(len(rows), dtype=torch.bool)
        crops = self.pool.crops(rows, frames)
        return SceneBatch(crops, captions, meanings, phrases, torch.from_numpy(np.stack(labels)), strong)


class SceneAlignmentTask(DualStreamTask):
    """The dual-stream task on crops of the scene pool, with the text tower frozen except for its projector.

    The distillation losses stay on, so that the model does not forget sounds that no caption names.
    """

    def __init__(self, model: FineLAP, heads: TeacherHeads, config: AlignConfig) -> None:
        loss = LossConfig(clip_weight=config.clip_weight, frame_weight=config.frame_weight, same_meaning=True)
        super().__init__(model, loss)
        self.heads, self.config = heads, config
        self.weights["teacher"] = config.teacher_weight
        self.noise = white_noise_mel(model.log_mel)
        channels_last(model.audio_encoder)

    def mel(self, batch: Any, seed: int | None) -> Tensor:
        raw, log_mel = batch.crops["mel"], self.model.log_mel
        return log_mel.normalise(raw if seed is None else augment(raw, log_mel.config, self.noise, self.config.noisy))

    def further_terms(self, pooled: Tensor, frames: Tensor, batch: Any) -> dict[str, Tensor]:
        """The weighted sum of the distillation losses, as "teacher"."""
        terms = self.heads.losses(self.model.adapter, pooled, frames, batch.crops)
        return {"teacher": weighted(terms, LOSS_WEIGHTS)["loss"]}

    def make_optimiser(self, fused: bool) -> torch.optim.Optimizer:
        model, config = self.model, self.config
        model.text.encoder.requires_grad_(False)
        scales = [model.temp_global, model.b_global, model.temp_local, model.b_local]
        groups: list[dict[str, Any]] = [
            {"params": list(model.audio_encoder.parameters()), "lr": config.encoder_learning_rate},
            {"params": [*model.adapter.parameters(), *model.text.projector.parameters()]},
            {"params": scales, "weight_decay": 0.0},
            {"params": list(self.heads.parameters())},
        ]
        return torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=config.weight_decay, fused=fused)
