"""The parts that models of transformers have in common: loading, stamps, texts, windows and scores.

Nothing is downloaded, and no code of a checkpoint is run.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import MatchingConfig, SampleWindows
from model.external.contract import Traits, read_licence
from model.finelap import AudioEmbedding, TokenizerMissing
from model.weight_files import CheckpointError
from model.windows import join_windows, plan_windows

TEXT_BATCH = 64  # texts per pass
WINDOW_BATCH = 8  # windows per pass
CALIBRATION = "finelap.json"  # what `finelap calibrate` adds to a folder


@dataclass(frozen=True)
class ExternalConfig:
    """What the service reads of a model's configuration."""

    name: str
    windows: SampleWindows
    matching: MatchingConfig | None = None


class External:
    """A model of transformers behind model.external.contract.Model. Subclasses set what differs between families.

    Scores are sigmoid(cosine / temp + b), with the model's own scale, or what `finelap calibrate` has fitted.
    """

    family: str
    frames: Literal["native", "sliding"] | None
    model: Any  # of transformers
    extractor: Any  # its feature extractor
    config: ExternalConfig
    temp_global: float
    b_global: float
    max_tokens: int
    keeps_lengths: bool = False  # whether frames keep their lengths, because the model's scores depend on them

    def __init__(self, folder: Path, *, device: str = "cpu", dtype: str = "float32", sliding: bool = False) -> None:
        """Loads a folder. Raises CheckpointError with the folder and the reason."""
        self.folder = folder
        self._lock = threading.Lock()  # tokenizers of transformers are not thread-safe
        try:
            self.load(folder, sliding)
        except Exception as error:  # transformers raises many types for broken folders
            raise CheckpointError(f"{folder}: not a {self.family} checkpoint that can be loaded: {error}") from error
        self._read_calibration(folder)
        self.tokenizer = self._read_tokenizer(folder)
        self._stamp = self._make_stamp()
        self.model = self.model.to(device=device, dtype=getattr(torch, dtype)).eval()

    def load(self, folder: Path, sliding: bool) -> None:
        """Sets the attributes of the class from a folder."""
        raise NotImplementedError

    def embed_windows(self, waveforms: Sequence[np.ndarray]) -> list[tuple[Tensor, Tensor]]:
        """Windows (n,) → clip (D,) and frames (T, D) each, not normalised."""
        raise NotImplementedError

    def embed_tokens(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Token ids and mask (B, N) → (B, D), not normalised."""
        raise NotImplementedError

    # The contract

    @property
    def traits(self) -> Traits:
        """What the model is and can do."""
        windows = self.config.windows
        seconds = windows.samples / windows.sample_rate
        calibrated = self.config.matching is not None
        return Traits(self.family, windows.sample_rate, seconds, self.frames, calibrated, read_licence(self.folder))

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.config.name

    @property
    def stamp(self) -> str:
        """Hex SHA-256 of the configuration, how frames are made, and all tensors."""
        return self._stamp

    @property
    def dim(self) -> int:
        """D, the width of the embedding space."""
        raise NotImplementedError

    @property
    def frame_hop(self) -> float:
        """Seconds from one frame to the next; where there are none, from one repeated clip embedding to the next."""
        return self.config.windows.frame_hop

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        found: torch.device = next(self.model.parameters()).device
        return found

    @property
    def dtype(self) -> torch.dtype:
        """The dtype the network computes in."""
        found: torch.dtype = next(self.model.parameters()).dtype
        return found

    def side_by_side(self, windows: int) -> int:
        """1: PyTorch uses all cores for one batch."""
        return 1

    def encode_windows(self, waveforms: Sequence[np.ndarray]) -> list[tuple[Tensor, Tensor]]:
        """Waveforms (n,), each at most a window → clip (D,) and frames (T, D) each, float32, unit length.

        With `keeps_lengths`, frames have the model's own lengths.
        """
        longest = self.config.windows.samples
        for number, waveform in enumerate(waveforms):
            if not 0 < len(waveform) <= longest:
                raise ValueError(f"waveform {number} has {len(waveform)} samples; a window holds 1 to {longest}")
        found: list[tuple[Tensor, Tensor]] = []
        with torch.inference_mode():
            for at in range(0, len(waveforms), WINDOW_BATCH):
                found += self.embed_windows(waveforms[at : at + WINDOW_BATCH])
        return [(_unit(clip), frames.float().cpu() if self.keeps_lengths else _unit(frames)) for clip, frames in found]

    def encode_audio(self, waveforms: Sequence[np.ndarray], sample_rate: int) -> list[AudioEmbedding]:
        """Mono waveforms (n,) of any length at `sample_rate` Hz → one AudioEmbedding each, as FineLAP.encode_audio."""
        import soxr

        windows, results = self.config.windows, []
        for waveform in waveforms:
            samples = np.asarray(waveform, dtype=np.float32)
            if sample_rate != windows.sample_rate:
                samples = soxr.resample(samples, sample_rate, windows.sample_rate)
            plan = plan_windows(len(samples), windows)
            parts = self.encode_windows([samples[w.start : w.stop] for w in plan])
            clips, tracks = np.stack([c.numpy() for c, _ in parts]), [f.numpy() for _, f in parts]
            clip, frames = join_windows(plan, clips, tracks)
            results.append(AudioEmbedding(torch.from_numpy(clip), torch.from_numpy(frames), self.frame_hop))
        return results

    def tokenise(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Texts → token ids (B, N) and mask (B, N), truncated. Raises TokenizerMissing."""
        if self.tokenizer is None:
            raise TokenizerMissing(f"{self.folder} has no tokenizer")
        with self._lock:
            encoded = self.tokenizer(
                list(texts), padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
            )
        return encoded["input_ids"], encoded["attention_mask"]

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Texts → (B, D) float32 on the CPU, unit length. Raises TokenizerMissing."""
        parts = [torch.empty(0, self.dim)]
        for at in range(0, len(texts), TEXT_BATCH):
            ids, mask = self.tokenise(texts[at : at + TEXT_BATCH])
            with torch.inference_mode():
                embedded = self.embed_tokens(ids.to(self.device), mask.to(self.device)).float().cpu()
            parts.append(_unit(embedded))
            self.remember(parts[-1], embedded.norm(dim=-1))
        return torch.cat(parts)

    def remember(self, texts: Tensor, lengths: Tensor) -> None:
        """Takes embedded texts (B, D) of unit length, and the lengths (B,) they had."""

    def clip_score(self, clip: Any, text: Any) -> Tensor:
        """Clips (A, D) and texts (B, D), each also as one vector → scores (A, B) float32."""
        return torch.sigmoid(rows_of(clip) @ rows_of(text).T / self.temp_global + self.b_global)

    def frame_score(self, frames: Any, text: Any) -> Tensor:
        """Frames (T, D) and texts (B, D), each also as one vector → scores (B, T) float32."""
        return self.clip_score(text, frames)

    def parameters(self) -> Any:
        """The network's parameters."""
        return self.model.parameters()

    def save_calibration(self, folder: Path, matching: MatchingConfig) -> None:
        """Writes the pair of clips and `matching` beside a model's files, where loading the folder finds them."""
        content = {"clip": [self.temp_global, self.b_global], "matching": asdict(matching)}
        (folder / CALIBRATION).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    # Parts

    def _read_calibration(self, folder: Path) -> None:
        if not (folder / CALIBRATION).is_file():
            return
        try:
            content = json.loads((folder / CALIBRATION).read_text(encoding="utf-8"))
            self.temp_global, self.b_global = map(float, content["clip"])
            values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in content["matching"].items()}
            self.config = replace(self.config, matching=MatchingConfig(**values))
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise CheckpointError(f"{folder / CALIBRATION}: {error}") from error

    def _read_tokenizer(self, folder: Path) -> Any | None:
        from transformers import AutoTokenizer

        if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json", "vocab.txt")):
            return None
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:
            raise CheckpointError(f"{folder}: no tokenizer could be read from it: {error}") from error
        self.max_tokens = max(1, min(self.max_tokens, int(tokenizer.model_max_length)))
        tokenizer(["a sound"], padding=True, truncation=True, max_length=self.max_tokens)
        return tokenizer

    def _make_stamp(self) -> str:
        described: dict[str, Any] = {"family": self.family, "frames": self.frames, "windows": repr(self.config.windows)}
        described["config"] = {k: v for k, v in self.model.config.to_dict().items() if k not in _NOT_THE_SPACE}
        described["features"] = {k: v for k, v in self.extractor.to_dict().items() if k not in _NOT_THE_SPACE}
        whole = hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            if tensor.is_floating_point():
                values = tensor.detach().float().contiguous().numpy()
                whole.update(f"{name} {list(tensor.shape)} {hashlib.sha256(values.tobytes()).hexdigest()}\n".encode())
        return whole.hexdigest()


_NOT_THE_SPACE = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures")


def repeated(clip: Tensor, windows: SampleWindows) -> Tensor:
    """A clip embedding (D,) for every step of a window (T, D)."""
    return clip.expand(windows.frames, -1)


def _unit(vectors: Tensor) -> Tensor:
    return F.normalize(vectors.float(), dim=-1).cpu().clone()


def rows_of(vectors: Any) -> Tensor:
    """Vectors (N, D), or one (D,), as (N, D) float32."""
    return torch.atleast_2d(torch.as_tensor(np.asarray(vectors))).float()
