"""FineLAP: waveforms and texts in one embedding space, with one embedding per clip and one per frame.

After FineLAP (arXiv 2604.01155). `forward_audio` and `forward_text` are the differentiable paths. The `encode_*`
methods are for inference and return float32 tensors on the CPU. All audio is at 16 kHz except the input of
`encode_audio`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.adapter import ConceptAdapter, TemporalAttention, build_adapter
from model.audio import LogMel, mel_frames_begun_in, mel_frames_in, samples_for
from model.config import MEL_WINDOW, SAMPLE_RATE, ConfigError, FineLAPConfig
from model.cpu.threads import limited, share_out
from model.encoders.registry import build_encoder
from model.evidence import Evidence
from model.external.contract import Traits, read_licence
from model.text import TextTower
from model.windows import Window, centred, frame_count, join_windows, plan_windows, window_samples

if TYPE_CHECKING:
    from model.checkpoint import Checkpoint

WINDOW_BATCH = 16  # windows per encoder pass of encode_audio
TEXT_BATCH = 64  # texts per pass of encode_text
_WINDOWS_PER_CORE = 4  # windows one core encodes together; more are no faster
_TEXTS_PER_CORE = 16
_FEW_TOKENS = 64  # at most this many are encoded faster by one core than by several

Array = np.ndarray | Tensor
R = TypeVar("R")


class TokenizerMissing(RuntimeError):
    """Raised when texts are given to a model that has no tokenizer."""


class AudioEmbedding(NamedTuple):
    """The embeddings of one recording: float32, on the CPU, every vector of unit length."""

    clip: Tensor  # (D,)
    frames: Tensor  # (T, D); frame t covers [t, t + 1) × frame_hop seconds
    frame_hop: float  # seconds


class FineLAP(nn.Module):
    """The network and its front end.

    Scores are sigmoid(cosine / temp + b), with one pair (temp, b) for clips and one for frames (paper, section 3).
    """

    def __init__(self, config: FineLAPConfig, tokenizer: Any | None = None) -> None:
        """Initialises fresh weights; `from_pretrained` loads trained ones. Raises ConfigError if parts do not fit."""
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.log_mel = LogMel(config.mel)
        self.audio_encoder = build_encoder(config.audio_encoder, config.windows, config.mel)
        encoder = self.audio_encoder
        self.adapter = build_adapter(config.adapter, encoder.width, config.core_dim, encoder.pooled_width)
        self.text = TextTower(config.text, config.core_dim)
        self.evidence = self._build_evidence()
        self.temporal = self._build_temporal()
        self.temp_global = nn.Parameter(torch.tensor(0.1))
        self.b_global = nn.Parameter(torch.tensor(-10.0))
        self.temp_local = nn.Parameter(torch.tensor(0.1))
        self.b_local = nn.Parameter(torch.tensor(-10.0))
        self._loaded_stamp: str | None = None
        self._licence: str | None = None

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
        """Loads a model in eval mode from our folder, a published PyTorch file, its Hugging Face folder, or a hub id.

        `tokenizer` is a folder or hub id that replaces the checkpoint's own. A model without a tokenizer loads, and
        raises TokenizerMissing for texts. Raises CheckpointError, which names the file or the tensors at fault.
        """
        from model.checkpoint import (  # need libraries the network does not
            find_tokenizer,
            hub_download,
            read_checkpoint,
        )

        content = read_checkpoint(source, revision=revision, download=download or hub_download)
        model = cls.from_checkpoint(content)
        found, _ = find_tokenizer(content, tokenizer, download or hub_download)
        if found is not None:
            model.set_tokenizer(found)
        return model.cast(dtype).to(device).eval()

    @classmethod
    def from_checkpoint(cls, content: Checkpoint) -> FineLAP:
        """Builds the model of a checkpoint that was read, without a tokenizer. Raises CheckpointError."""
        from model.checkpoint import build_network, embedding_stamp

        model = build_network(content, cls)
        model._loaded_stamp = embedding_stamp(content.config, model.state_dict())
        model._licence = read_licence(content.folder)
        return model

    def set_tokenizer(self, tokenizer: Any) -> None:
        """Attaches a tokenizer. Raises CheckpointError if it has more tokens than the text tower."""
        from model.weight_files import CheckpointError

        tokens, rows = len(tokenizer), self.text.vocabulary
        if tokens > rows:
            raise CheckpointError(f"the tokenizer has {tokens} tokens and the text tower {rows}")
        self.tokenizer = tokenizer
        self.tokenise(["a sound"])  # sets truncation and padding, so that threads only read them later

    def save_pretrained(
        self, folder: str | Path, *, shard_text_tower: bool = False, dtype: torch.dtype | None = None
    ) -> None:
        """Writes config.json, weights and tokenizer files; see `model.checkpoint.save_checkpoint`."""
        from model.checkpoint import save_checkpoint

        save_checkpoint(
            folder, self.config, self.state_dict(), self.tokenizer, shard_text_tower=shard_text_tower, dtype=dtype
        )

    # Properties

    @property
    def name(self) -> str:
        """The checkpoint's name."""
        return self.config.name

    @property
    def traits(self) -> Traits:
        """What the model is and can do; see model.external.contract."""
        windows = self.config.windows
        seconds = windows.frames * windows.frame_hop
        return Traits("finelap", SAMPLE_RATE, seconds, "native", self.config.matching is not None, self._licence)

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
        """The device of the weights."""
        return self.temp_global.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype the network computes in; the log-mel and the scores stay float32."""
        return next(self.audio_encoder.parameters()).dtype

    @property
    def stamp(self) -> str:
        """Identifies the embedding space: embeddings are comparable if their stamps are equal. Hex SHA-256.

        Computed from the weights as stored, whatever dtype they run in, without temperatures and biases, which only
        scale scores. For a model that was not loaded it is computed from the present weights at each call.
        """
        if self._loaded_stamp is not None:
            return self._loaded_stamp
        from model.checkpoint import embedding_stamp

        return embedding_stamp(self.config, self.state_dict())

    def cast(self, dtype: torch.dtype) -> FineLAP:
        """Converts the networks to `dtype` in place; the front end and the score parameters stay float32."""
        for part in (self.audio_encoder, self.adapter, self.text):
            part.to(dtype)
        return self

    def train(self, mode: bool = True) -> FineLAP:
        """As in torch. Entering training discards the stamp of the loaded weights, which are about to change."""
        if mode:
            self._loaded_stamp = None
        return super().train(mode)

    # Differentiable paths

    def forward_audio(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        """(B, mel_frames, bins) normalised log-mel → clip (B, D) and frames (B, T, D), float32, unit length."""
        output = self.audio_encoder(mel.to(self.dtype))
        return self.embed_clips(output.pooled), self.embed_frames(output.frames, output.pooled)

    def embed_clips(self, pooled: Tensor) -> Tensor:
        """The encoder's pooled features (B, P) → clip embeddings (B, D) float32, unit length."""
        if self.evidence is None:
            return F.normalize(self.adapter.forward_clip(pooled).float(), dim=-1)
        core, logits = self._concepts.clip(pooled, self._concepts.anchors)
        joint = self.evidence.extend_clip(F.normalize(core, dim=-1), logits, pooled)
        return joint if self.temporal is None else self.temporal.extend_clip(joint)

    def embed_frames(self, frames: Tensor, pooled: Tensor) -> Tensor:
        """The encoder's features of frames (B, T, C) and pooled (B, P) → (B, T, D) float32, unit length."""
        if self.evidence is None:
            return F.normalize(self.adapter.forward_frames(frames).float(), dim=-1)
        core, logits = self._concepts.frames(frames, self._concepts.anchors)
        window = self._concepts.clip.class_logits(pooled), pooled
        joint = self.evidence.extend_frames(F.normalize(core, dim=-1), logits, frames, window)
        return joint if self.temporal is None else self.temporal(frames, joint)

    def forward_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, N) token ids and mask, 1 at real tokens → (B, D) float32, unit length."""
        return self.extend_text(self.text(input_ids, attention_mask))

    def extend_text(self, core: Tensor) -> Tensor:
        """The text tower's embeddings (B, core_dim), unit length → embeddings in the joint space (B, D)."""
        if self.evidence is None:
            return core
        joint = self.evidence.extend_text(core, self._concepts.anchors)
        return joint if self.temporal is None else self.temporal.extend_text(joint, self.config.core_dim)

    @property
    def _concepts(self) -> ConceptAdapter:
        assert isinstance(self.adapter, ConceptAdapter)
        return self.adapter

    def _build_evidence(self) -> Evidence | None:
        if self.config.evidence is None:
            return None
        if not isinstance(self.adapter, ConceptAdapter):
            raise ConfigError(f"evidence needs the adapter 'concept'; this one is {self.config.adapter.kind!r}")
        features = self.audio_encoder.pooled_width, self.audio_encoder.width
        return Evidence(self.config.evidence, len(self.adapter.anchors), self.config.core_dim, features)

    def _build_temporal(self) -> TemporalAttention | None:
        if self.config.temporal is None:
            return None
        if self.evidence is None:
            raise ConfigError("temporal attention needs evidence")
        return TemporalAttention(self.config.temporal, self.audio_encoder.width)

    # Inference

    def mel(self, waveforms: Sequence[np.ndarray], mel_frames: int) -> Tensor:
        """Waveforms (n,) at 16 kHz → (B, mel_frames, bins) normalised log-mel, float32, on the model's device.

        Each is cut to `mel_frames` or padded; one shorter than a mel frame is first padded with zeros to a whole one.
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
        lengths = torch.tensor(counts, device=self.device)
        padding = torch.arange(mel_frames, device=self.device) >= lengths[:, None]
        return self.log_mel.normalise(raw.masked_fill(padding[..., None], self.config.mel.pad_value))

    def padded_frames(self, samples: int) -> int:
        """The number of frames a window of `samples` samples is padded to: its smallest bucket, or a whole window."""
        windows = self.config.windows
        needed = frame_count(samples, windows)
        return min((b for b in windows.buckets if needed <= b < windows.frames), default=windows.frames)

    def encode_windows(self, waveforms: Sequence[np.ndarray]) -> list[tuple[Tensor, Tensor]]:
        """Waveforms (n,) at 16 kHz, each at most a window → per item clip (D,) and frames (T, D) of the padded window.

        Runs one encoder pass per distinct padded length, split across the cores of a CPU. T includes frames past the
        waveform's end; `Window.keep` and `join_windows` drop them. Raises ValueError for invalid waveforms.
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
                    with torch.no_grad():  # is per thread
                        mel = self.mel([arrays[i] for i in part], mel_frames)
                        clips, tracks = (x.cpu() for x in self.forward_audio(mel))
                    # clones, so that one item does not keep the whole batch in memory
                    results.update({i: (clips[row].clone(), tracks[row].clone()) for row, i in enumerate(part)})

                self._split(encode, members, _WINDOWS_PER_CORE)
        return [results[i] for i in range(len(arrays))]

    def encode_audio(self, waveforms: Sequence[np.ndarray], sample_rate: int) -> list[AudioEmbedding]:
        """Mono float waveforms (n,) of any length at `sample_rate` Hz → one AudioEmbedding each.

        Resamples to 16 kHz, cuts into overlapping windows, encodes them in batches and joins the results; T is
        `frame_count(samples)`. Raises ValueError for empty, non-finite or multi-dimensional waveforms.
        """
        recordings = [_resampled(_checked(w, i), sample_rate) for i, w in enumerate(waveforms)]
        plans = [plan_windows(len(r), self.config.windows) for r in recordings]
        jobs: list[tuple[int, Window]] = [(i, window) for i, plan in enumerate(plans) for window in plan]
        # grouped by padded length, so that a batch is one pass
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
        """Texts → token ids (B, N) and mask (B, N), truncated to `max_tokens`. Raises TokenizerMissing."""
        if self.tokenizer is None:
            raise TokenizerMissing(f"{self.name} was loaded without a tokenizer; pass tokenizer=... to encode texts")
        encoded = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.config.text.max_tokens, return_tensors="pt"
        )
        return encoded["input_ids"], encoded["attention_mask"]

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Texts → (B, D) float32 on the CPU, unit length. Raises TokenizerMissing."""
        if isinstance(texts, str):
            raise TypeError("encode_text takes a list of texts, not one string")
        parts = [torch.empty(0, self.dim)]
        for at in range(0, len(texts), TEXT_BATCH):
            parts.append(self.encode_tokens(*self.tokenise(texts[at : at + TEXT_BATCH])))
        return torch.cat(parts)

    def encode_tokens(self, input_ids: Array, attention_mask: Array) -> Tensor:
        """(B, N) token ids and mask, 1 at real tokens → (B, D) float32 on the CPU, unit length."""
        ids = torch.as_tensor(input_ids, dtype=torch.long, device=self.device)
        mask = torch.as_tensor(attention_mask, dtype=torch.long, device=self.device)

        def encode(part: Sequence[int]) -> Tensor:
            rows = torch.tensor(part, dtype=torch.long, device=self.device)
            with torch.no_grad():  # is per thread
                return self.forward_text(ids[rows], mask[rows]).cpu()

        with self._inference():
            if self.device.type == "cpu" and ids.numel() <= _FEW_TOKENS:
                with limited(1):
                    return encode(range(len(ids)))
            return torch.cat(self._split(encode, range(len(ids)), _TEXTS_PER_CORE))

    def clip_score(self, clip: Array, text: Array) -> Tensor:
        """Clips (A, D) and texts (B, D), each also as one vector (D,) → probabilities (A, B) float32."""
        return _score(_rows(clip), _rows(text), self.temp_global, self.b_global)

    def frame_score(self, frames: Array, text: Array) -> Tensor:
        """Frames (T, D) and texts (B, D), each also as one vector (D,) → probabilities (B, T) float32."""
        return _score(_rows(text), _rows(frames), self.temp_local, self.b_local)

    def side_by_side(self, windows: int) -> int:
        """The number of batches, of `windows` windows in total, to run concurrently: on a CPU, one per busy core."""
        if self.device.type != "cpu":
            return 1
        return min(torch.get_num_threads(), max(1, windows // _WINDOWS_PER_CORE))

    def _split(self, function: Callable[[Sequence[int]], R], items: Sequence[int], at_most: int) -> list[R]:
        """Runs the batch split across the cores of a CPU, or whole on another device; see model.cpu.threads."""
        return share_out(function, items, at_most) if self.device.type == "cpu" else [function(items)]

    @contextlib.contextmanager
    def _inference(self) -> Iterator[None]:
        """Disables gradients and dropout, and restores the training mode afterwards."""
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
    """The mono float waveform as float32. Raises ValueError with the reason if it is not one."""
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
