"""LAION-CLAP of transformers: an embedding for each window of ten seconds at 48 kHz, and for texts. No frames."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.config import SampleWindows
from model.external.base import External, ExternalConfig, repeated


class Clap(External):
    """A `clap` checkpoint. With `sliding`, a frame a second is the embedding of the window around it.

    Each window passes the feature extractor alone, because in a batch it chooses at random which one is fused as long.
    """

    family = "clap"

    def load(self, folder: Path, sliding: bool) -> None:
        from transformers import ClapFeatureExtractor, ClapModel

        self.model = ClapModel.from_pretrained(folder, local_files_only=True)
        described = (folder / "preprocessor_config.json").is_file() or (folder / "processor_config.json").is_file()
        make = ClapFeatureExtractor.from_pretrained
        self.extractor = make(folder, local_files_only=True) if described else ClapFeatureExtractor()
        rate, samples = int(self.extractor.sampling_rate), int(self.extractor.nb_max_samples)
        steps = max(1, samples // rate)
        windows = SampleWindows(
            frames=steps,
            frame_hop=samples / rate / steps,
            overlap_frames=steps - 1 if sliding else 0,
            rate=rate,
            length=samples,
        )
        self.frames = "sliding" if sliding else None
        self.config = ExternalConfig(folder.resolve().name, windows)
        self.temp_global = float(1 / self.model.logit_scale_a.detach().exp())
        self.b_global = 0.0
        self.max_tokens = int(self.model.config.text_config.max_position_embeddings) - 2  # as RoBERTa numbers them

    @property
    def dim(self) -> int:
        return int(self.model.config.projection_dim)

    def embed_windows(self, waveforms: Sequence[np.ndarray]) -> list[tuple[Tensor, Tensor]]:
        rate = self.config.windows.sample_rate
        made = [self.extractor(np.asarray(w), sampling_rate=rate, return_tensors="pt") for w in waveforms]
        features = torch.cat([one["input_features"] for one in made]).to(self.device, self.dtype)
        longer = torch.cat([one["is_longer"] for one in made]).to(self.device)
        clips = _pooled(self.model.get_audio_features(input_features=features, is_longer=longer))
        return [(clip, repeated(clip, self.config.windows)) for clip in clips]

    def embed_tokens(self, ids: Tensor, mask: Tensor) -> Tensor:
        return _pooled(self.model.get_text_features(input_ids=ids, attention_mask=mask))


def _pooled(output: Any) -> Tensor:
    """The features, which transformers before 5 returns as they are."""
    found: Tensor = getattr(output, "pooler_output", output)
    return found
