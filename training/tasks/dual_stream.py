"""One training step's forward pass: a batch through both towers to the two losses. One encoder pass serves both.

Knows no optimiser and no files. Source: the dual-stream sigmoid loss of arXiv 2604.01155.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.audio import MEL_WINDOW, mel_frames_begun_in, mel_frames_in, samples_for
from model.finelap import FineLAP
from training.data.augment import SpecAugmentConfig, spec_augment
from training.data.batches import Batch
from training.losses import gathered_clip_sigmoid_loss, gathered_frame_sigmoid_loss, gathered_infonce_loss
from training.train_config import LossConfig


def batch_mel(model: FineLAP, waveforms: Tensor, lengths: Tensor, frames: int) -> tuple[Tensor, Tensor]:
    """Waveforms (B, S) at 16 kHz, of which `lengths` (B,) samples are real → (B, M, bins) normalised log-mel.

    M makes `frames` frames; (B,) says how many of them are no padding. Each waveform loses its own mean; padding enters
    as in `FineLAP.mel`, which is the slow reference.
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
    heard = torch.tensor(counts, device=waveforms.device)
    padding = torch.arange(mel_frames, device=waveforms.device) >= heard[:, None]
    return model.log_mel.normalise(raw.masked_fill(padding[..., None], config.pad_value)), heard


class DualStream(nn.Module):
    """A FineLAP with its losses, so that wrappers for several ranks or for mixed precision see one forward pass."""

    def __init__(self, model: FineLAP, loss: LossConfig, augment: SpecAugmentConfig | None) -> None:
        super().__init__()
        self.model, self.loss, self.augment = model, loss, augment
        self.known: dict[str, Tensor] = {}  # phrases through a frozen tower, before its projector

    def forward(self, batch: Batch, seed: int | None) -> dict[str, Tensor]:
        """The losses that have a weight, "clip" and "frame", each a scalar over the batches of all ranks.

        `seed` draws the masks of SpecAugment; None leaves the mel whole.
        """
        model, device = self.model, self.model.device
        mel, heard = batch_mel(model, batch.waveforms.to(device), batch.lengths.to(device), batch.labels.shape[2])
        if self.augment is not None and seed is not None:
            mel = spec_augment(mel, self.augment, torch.Generator().manual_seed(seed), fill=0.0, lengths=heard)
        pooled, frames = model.audio_encoder(mel)
        losses: dict[str, Tensor] = {}
        if self.loss.clip_weight:
            clips, captions = unit(model.adapter.forward_clip(pooled)), self.texts(batch.captions)
            with torch.autocast(device.type, enabled=False):
                losses["clip"] = self.clip_loss(clips, captions, batch.meanings)
        if self.loss.frame_weight:
            tracks = unit(model.adapter.forward_frames(frames))
            flat = [phrase for row in batch.phrases for phrase in row]
            phrases = self.texts(flat, remember=True).view(len(batch.phrases), -1, model.dim)
            valid = batch.strong.to(device)[:, None].expand(phrases.shape[:2])
            with torch.autocast(device.type, enabled=False):
                losses["frame"] = gathered_frame_sigmoid_loss(
                    tracks, phrases, batch.labels.to(device), model.temp_local, model.b_local, valid
                )
        return losses

    def clip_loss(self, clips: Tensor, captions: Tensor, meanings: list[tuple[str, ...]]) -> Tensor:
        """Clips against captions, (B, D) each, in the form that is asked for."""
        model, chunk = self.model, self.loss.chunk
        if self.loss.clip == "infonce":
            return gathered_infonce_loss(clips, captions, model.temp_global, chunk=chunk)
        groups = None
        if self.loss.same_meaning:
            groups = torch.tensor([number_of(m) for m in meanings], device=clips.device)
        return gathered_clip_sigmoid_loss(
            clips, captions, model.temp_global, model.b_global, chunk=chunk, groups=groups
        )

    def texts(self, texts: list[str], remember: bool = False) -> Tensor:
        """Texts → (N, D) of unit length; each different one goes through the tower once.

        With `remember`, and where nothing in the tower learns, once in the whole run: phrases come from a bank and come
        again. Such a text goes through alone, so that its last digit does not depend on its company.
        """
        different = list(dict.fromkeys(texts))
        rows = {text: i for i, text in enumerate(different)}
        tower = self.model.text
        if remember and not tower.encoder.training and not any(p.requires_grad for p in tower.encoder.parameters()):
            with torch.no_grad():
                for text in different:
                    if text not in self.known:
                        self.known[text] = tower.pooled(*self.tokens([text]))[0]
            found = tower.projector(torch.stack([self.known[text] for text in different]))
        else:
            found = tower(*self.tokens(different))
        return unit(found)[torch.from_numpy(np.array([rows[t] for t in texts], np.int64)).to(found.device)]

    def tokens(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Token ids and mask, (B, L) each, on the model's device."""
        ids, mask = self.model.tokenise(texts)
        return ids.to(self.model.device), mask.to(self.model.device)


def number_of(meaning: tuple[str, ...]) -> int:
    """A number for what a caption is made of, the same on every rank and machine."""
    digest = hashlib.blake2b("\n".join(meaning).encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")


def unit(vectors: Tensor) -> Tensor:
    """(…, D) → the same in float32 and of unit length."""
    return F.normalize(vectors.float(), dim=-1)
