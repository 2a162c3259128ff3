"""FineLAP: waveforms and texts into one embedding space, with one embedding per recording and one per frame.

Knows no files (model.checkpoint), no requests and no thresholds (model.detection). Everything here is at 16 kHz except
the input of `encode_audio`. `forward_audio` and `forward_text` are the differentiable paths; the `encode_*` methods
are for inference and return float32 tensors on the CPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.adapter import build_adapter
from model.audio import MEL_WINDOW, SAMPLE_RATE, LogMel, mel_frames_begun_in, mel_frames_in, samples_for
from model.config import FineLAPConfig
from model.encoders.registry import build_encoder
from model.text import TextTower
from model.threads import limited, share_out
from model.windows import Window, centred, frame_count, join_windows, plan_windows, window_samples

WINDOW_BATCH = 16  # windows per encoder pass of encode_audio
TEXT_BATCH = 64  # texts per pass of encode_text
_WINDOWS_A_CORE = 4  # windows that a CPU's core encodes together; more gain nothing
_TEXTS_A_CORE = 16
_FEW_TOKENS = 64  # so few are encoded sooner by one core than by several that wait for each other

Array = np.ndarray | Tensor
R = TypeVar("R")


class TokenizerMissing(RuntimeError):
    """Texts were given to a model whose checkpoint came without a tokenizer."""


class AudioEmbedding(NamedTuple):
    """What the model hears in one recording; float32, on the CPU, every vector of unit length."""

    clip: Tensor  # (D,)
    frames: Tensor  # (T, D); frame t covers [t, t + 1) * frame_hop
    frame_hop: float  # seconds


class FineLAP(nn.Module):
    """The network with its front end. Scores are sigmoid(cosine / temp + b), one pair for clips and one for frames."""

    def __init__(self, config: FineLAPConfig, tokenizer: Any | None = None) -> None:
        """Fresh weights; `from_pretrained` gives a trained model. Parts that do not fit raise ConfigError."""
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.log_mel = LogMel(config.mel)
        self.audio_encoder = build_encoder(config.audio_encoder, config.windows, config.mel)
        self.adapter = build_adapter(config.adapter, self.audio_encoder.width, config.dim)
        self.text = TextTower(config.text, config.dim)
        self.temp_global = nn.Parameter(torch.tensor(0.1))
        self.b_global = nn.Parameter(torch.tensor(-10.0))
        self.temp_local = nn.Parameter(torch.tensor(0.1))
        self.b_local = nn.Parameter(torch.tensor(-10.0))
        self._loaded_stamp: str | None = None

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        tokenizer: str | Path | None = None,
        revision: str | None = None,
        download: Callable[..., str] | None = None,
    ) -> FineLAP:
        """Loads a checkpoint folder, a published file or folder, or a hub id, ready for inference.

        See `model.checkpoint.load_checkpoint` for the sources. Raises CheckpointError.
        """
        from model.checkpoint import load_checkpoint

        return load_checkpoint(
            source, device=device, dtype=dtype, tokenizer=tokenizer, revision=revision, download=download
        )

    def save_pretrained(
        self, folder: str | Path, *, shard_text_tower: bool = False, dtype: torch.dtype | None = None
    ) -> None:
        """Writes config.json, weights and tokenizer files; see `model.checkpoint.save_checkpoint`."""
        from model.checkpoint import save_checkpoint

        save_checkpoint(self, folder, shard_text_tower=shard_text_tower, dtype=dtype)

    # What the model is

    @property
    def name(self) -> str:
        """The checkpoint's own name."""
        return self.config.name

    @property
    def dim(self) -> int:
        """D, the width of the embedding space."""
        return self.config.dim

    @property
    def frame_hop(self) -> float:
        """Seconds from one frame embedding to the next."""
        return self.config.windows.frame_hop

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.temp_global.device

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in; the log-mel and the scores stay float32."""
        return next(self.audio_encoder.parameters()).dtype

    @property
    def stamp(self) -> str:
        """Names the embedding space: equal stamps, comparable embeddings. Hex sha256.

        Of the weights as they were stored, whatever dtype they run in; temperatures and biases only scale scores and
        do not count. A model made in memory is stamped by its present weights, anew at each call.
        """
        if self._loaded_stamp is not None:
            return self._loaded_stamp
        from model.checkpoint import embedding_stamp

        return embedding_stamp(self.config, self.state_dict())

    def cast(self, dtype: torch.dtype) -> FineLAP:
        """Brings the networks to `dtype`, in place; the front end and the score parameters stay float32."""
        for part in (self.audio_encoder, self.adapter, self.text):
            part.to(dtype)
        return self

    def train(self, mode: bool = True) -> FineLAP:
        """As in torch. Entering training forgets the stamp of the loaded weights, which are about to change."""
        if mode:
            self._loaded_stamp = None
        return super().train(mode)

    # Differentiable paths

    def forward_audio(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        """(B, mel_frames, bins) normalised log-mel → clip (B, D) and frames (B, T, D), float32, of unit length."""
        output = self.audio_encoder(mel.to(self.dtype))
        clip = self.adapter.forward_clip(output.pooled)
        frames = self.adapter.forward_frames(output.frames)
        return F.normalize(clip.float(), dim=-1), F.normalize(frames.float(), dim=-1)

    def forward_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, N) token ids and mask → (B, D), float32, of unit length."""
        return self.text(input_ids, attention_mask)

    # Inference

    def mel(self, waveforms: Sequence[np.ndarray], mel_frames: int) -> Tensor:
        """Waveforms (n,) at 16 kHz → (B, mel_frames, bins) normalised log-mel on the model's device, float32.

        Each is cut to `mel_frames` or followed by padding; one too short for a mel frame is filled up with zeros.
        """
        samples = samples_for(mel_frames)
        batch = np.zeros((len(waveforms), samples), dtype=np.float32)
        for row, waveform in zip(batch, waveforms, strict=True):
            row[: len(waveform)] = waveform[:samples]
        raw = self.log_mel(torch.from_numpy(batch).to(self.device))
        if self.config.mel.snip_edges:
            counts = [mel_frames_in(max(len(w), MEL_WINDOW)) for w in waveforms]
        else:
            counts = [mel_frames_begun_in(len(w)) for w in waveforms]
        heard = torch.tensor(counts, device=self.device)
        padding = torch.arange(mel_frames, device=self.device) >= heard[:, None]
        return self.log_mel.normalise(raw.masked_fill(padding[..., None], self.config.mel.pad_value))

    def padded_frames(self, samples: int) -> int:
        """Frames that a window of `samples` samples is padded to: the smallest bucket that holds it, or all of them."""
        windows = self.config.windows
        needed = frame_count(samples, windows)
        return min((b for b in windows.buckets if needed <= b < windows.frames), default=windows.frames)

    def encode_windows(self, waveforms: Sequence[np.ndarray]) -> list[tuple[Tensor, Tensor]]:
        """Waveforms (n,) at 16 kHz, each within one window → per item clip (D,) and frames (T, D) of the padded window.

        One encoder pass per distinct padded length, which a CPU's cores share out. Frames past the waveform's end are
        there too; `Window.keep` and `join_windows` drop them. Raises ValueError for what is no such waveform.
        """
        arrays = [_checked(w, i) for i, w in enumerate(waveforms)]
        longest = window_samples(self.config.windows)
        for i, array in enumerate(arrays):
            if len(array) > longest:
                raise ValueError(f"waveform {i} has {len(array)} samples; a window holds {longest}")
        groups: dict[int, list[int]] = {}
        for i, array in enumerate(arrays):
            groups.setdefault(self.padded_frames(len(array)), []).append(i)
        mel_per_frame = self.config.windows.mel_frames // self.config.windows.frames
        results: dict[int, tuple[Tensor, Tensor]] = {}
        with self._inference():
            for frames, members in groups.items():

                def encode(part: Sequence[int], mel_frames: int = frames * mel_per_frame) -> None:
                    with torch.no_grad():  # which holds for one thread
                        mel = self.mel([arrays[i] for i in part], mel_frames)
                        clips, tracks = (x.cpu() for x in self.forward_audio(mel))
                    # clones, so that keeping one item does not keep the whole batch in memory
                    results.update({i: (clips[row].clone(), tracks[row].clone()) for row, i in enumerate(part)})

                self._share_out(encode, members, _WINDOWS_A_CORE)
        return [results[i] for i in range(len(arrays))]

    def encode_audio(self, waveforms: Sequence[np.ndarray], sample_rate: int) -> list[AudioEmbedding]:
        """Mono waveforms (n,), floats, any lengths at `sample_rate` Hz → one AudioEmbedding each.

        Resampled to 16 kHz, cut into overlapping windows, encoded in batches and joined; T is frame_count(samples).
        Raises ValueError for an empty, non-finite or not one-dimensional waveform.
        """
        recordings = [_resampled(_checked(w, i), sample_rate) for i, w in enumerate(waveforms)]
        plans = [plan_windows(len(r), self.config.windows) for r in recordings]
        jobs: list[tuple[int, Window]] = [(i, window) for i, plan in enumerate(plans) for window in plan]
        # windows of one padded length together, so that a batch is one pass
        order = sorted(range(len(jobs)), key=lambda j: self.padded_frames(jobs[j][1].stop - jobs[j][1].start))
        encoded: dict[int, tuple[Tensor, Tensor]] = {}
        for at in range(0, len(order), WINDOW_BATCH):
            batch = order[at : at + WINDOW_BATCH]
            cut = [centred(recordings[i][window.start : window.stop]) for i, window in (jobs[j] for j in batch)]
            encoded.update(zip(batch, self.encode_windows(cut), strict=True))
        results, at = [], 0
        for plan in plans:
            parts = [encoded.pop(j) for j in range(at, at + len(plan))]
            at += len(plan)
            clips, tracks = np.stack([c.numpy() for c, _ in parts]), [f.numpy() for _, f in parts]
            clip, frames = join_windows(plan, clips, tracks, self.config.windows.frame_share)
            results.append(AudioEmbedding(torch.from_numpy(clip), torch.from_numpy(frames), self.frame_hop))
        return results

    def tokenise(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Texts → token ids (B, N) and mask (B, N), cut at the checkpoint's number of tokens."""
        if self.tokenizer is None:
            raise TokenizerMissing(f"{self.name} was loaded without a tokenizer; pass tokenizer=... to encode texts")
        encoded = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.config.text.max_tokens, return_tensors="pt"
        )
        return encoded["input_ids"], encoded["attention_mask"]

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Texts → (B, D), float32 on the CPU, of unit length. Raises TokenizerMissing."""
        if isinstance(texts, str):
            raise TypeError("encode_text takes a list of texts, not one string")
        parts = [torch.empty(0, self.dim)]
        for at in range(0, len(texts), TEXT_BATCH):
            parts.append(self.encode_tokens(*self.tokenise(texts[at : at + TEXT_BATCH])))
        return torch.cat(parts)

    def encode_tokens(self, input_ids: Array, attention_mask: Array) -> Tensor:
        """(B, N) token ids and mask (1 at real tokens) → (B, D), float32 on the CPU, of unit length."""
        ids = torch.as_tensor(input_ids, dtype=torch.long, device=self.device)
        mask = torch.as_tensor(attention_mask, dtype=torch.long, device=self.device)

        def encode(part: Sequence[int]) -> Tensor:
            rows = torch.tensor(part, dtype=torch.long, device=self.device)
            with torch.no_grad():  # which holds for one thread
                return self.forward_text(ids[rows], mask[rows]).cpu()

        with self._inference():
            if self.device.type == "cpu" and ids.numel() <= _FEW_TOKENS:
                with limited(1):
                    return encode(range(len(ids)))
            return torch.cat(self._share_out(encode, range(len(ids)), _TEXTS_A_CORE))

    def clip_score(self, clip: Array, text: Array) -> Tensor:
        """Clips (A, D) and texts (B, D), a single vector counting as one row → probabilities (A, B), float32."""
        return _score(_rows(clip), _rows(text), self.temp_global, self.b_global)

    def frame_score(self, frames: Array, text: Array) -> Tensor:
        """Frames (T, D) and texts (B, D), a single vector counting as one row → probabilities (B, T), float32."""
        return _score(_rows(text), _rows(frames), self.temp_local, self.b_local)

    def side_by_side(self, windows: int) -> int:
        """Batches, of so many windows together, that are best computed at once: on a CPU, as cores can be kept busy."""
        if self.device.type != "cpu":
            return 1
        return min(torch.get_num_threads(), max(1, windows // _WINDOWS_A_CORE))

    def _share_out(self, function: Callable[[Sequence[int]], R], items: Sequence[int], at_most: int) -> list[R]:
        """The batch in parts that the CPU's cores take, or whole, for another device. See model.threads."""
        return share_out(function, items, at_most) if self.device.type == "cpu" else [function(items)]

    @contextlib.contextmanager
    def _inference(self) -> Iterator[None]:
        """No gradients and no dropout, whatever mode the caller has the model in."""
        was_training = self.training
        if was_training:
            self.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            if was_training:
                self.train()


def _score(rows: Tensor, columns: Tensor, temp: Tensor, bias: Tensor) -> Tensor:
    temp, bias = temp.detach().to(rows.device), bias.detach().to(rows.device)
    return torch.sigmoid(rows @ columns.to(rows.device).T / temp + bias)


def _rows(vectors: Array) -> Tensor:
    return torch.atleast_2d(torch.as_tensor(vectors).float())


def _checked(waveform: np.ndarray, index: int) -> np.ndarray:
    """A mono float waveform as float32, or a ValueError that says what is wrong with it."""
    array = np.asarray(waveform)
    if array.ndim != 1:
        raise ValueError(f"waveform {index}: expected one dimension (samples), got shape {array.shape}")
    if array.dtype.kind != "f":
        raise ValueError(f"waveform {index}: expected floats in [-1, 1], got {array.dtype}")
    if not len(array):
        raise ValueError(f"waveform {index} is empty")
    if not np.isfinite(array).all():
        raise ValueError(f"waveform {index} has samples that are not finite")
    return array.astype(np.float32, copy=False)


def _resampled(waveform: np.ndarray, sample_rate: int) -> np.ndarray:
    if sample_rate <= 0:
        raise ValueError(f"sample rate {sample_rate} is not positive")
    if sample_rate == SAMPLE_RATE:
        return waveform
    import soxr

    resampled = soxr.resample(waveform, sample_rate, SAMPLE_RATE).astype(np.float32, copy=False)
    return resampled if len(resampled) else np.zeros(1, dtype=np.float32)  # a few samples at a high rate
