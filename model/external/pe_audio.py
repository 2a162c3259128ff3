"""PE-AV's audio model of transformers (`pe_audio`): frames of 40 ms at 48 kHz, and clips, in one space with texts."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.config import SampleWindows
from model.external.base import External, ExternalConfig, rows_of

WINDOW = 30.0  # seconds
OVERLAP = 2.0  # seconds that neighbouring windows share
_KNOWN_TEXTS = 20_000  # whose lengths are remembered
_PROBE_TEXTS = ((1, 2, 3), (3, 2, 1), (2, 2, 4))  # token ids; any will do, as the text head normalises its input


class PeAudio(External):
    """A `pe_audio` checkpoint. One pass of the encoder gives the clip and its frames.

    The model's own logit is a product of embeddings that are not of unit length. Frames keep their lengths, and those
    of texts are remembered, so that the scores of frames are the model's own. Clips have unit length, for the library,
    and the temperature of their scores contains the typical product of both lengths, measured when the model is loaded.
    """

    family = "pe_audio"
    frames = "native"
    keeps_lengths = True

    def load(self, folder: Path, sliding: bool) -> None:
        from transformers import PeAudioFeatureExtractor, PeAudioFrameLevelModel

        self.model = PeAudioFrameLevelModel.from_pretrained(folder, local_files_only=True)
        self.hop = math.prod(self.model.config.audio_config.dac_config.downsampling_ratios)
        described = (folder / "preprocessor_config.json").is_file() or (folder / "processor_config.json").is_file()
        make = PeAudioFeatureExtractor.from_pretrained
        known = make(folder, local_files_only=True) if described else None
        self.extractor = known or PeAudioFeatureExtractor(hop_length=self.hop)
        rate = int(self.extractor.sampling_rate)
        frames = max(1, round(WINDOW * rate / self.hop))
        overlap = min(round(OVERLAP * rate / self.hop), frames - 1)
        windows = SampleWindows(
            frames=frames, frame_hop=self.hop / rate, overlap_frames=overlap, rate=rate, length=frames * self.hop
        )
        self.config = ExternalConfig(folder.resolve().name, windows)
        self.max_tokens = int(self.model.config.text_config.max_position_embeddings)
        self.model.eval()
        self._known: OrderedDict[bytes, float] = OrderedDict()  # unit vector of a text → its length
        self._scale = float(self.model.text_audio_logit_scale.detach())
        clip_length, self._text_length = self._typical_lengths()
        scale = self._scale * clip_length * self._text_length
        self.temp_global = 1 / scale if scale else math.inf
        self.b_global = float(self.model.text_audio_logit_bias.detach())

    @property
    def dim(self) -> int:
        return int(self.model.config.text_config.hidden_size)

    def embed_windows(self, waveforms: Sequence[np.ndarray]) -> list[tuple[Tensor, Tensor]]:
        rate = self.config.windows.sample_rate
        made = [
            self.extractor(np.asarray(w), sampling_rate=rate, return_tensors="pt")["input_values"] for w in waveforms
        ]
        found: dict[int, tuple[Tensor, Tensor]] = {}
        # windows of one length together, without padding, so that no window depends on its neighbours in a batch
        for length in {values.shape[-1] for values in made}:
            rows = [row for row, values in enumerate(made) if values.shape[-1] == length]
            values = torch.cat([made[row] for row in rows]).to(self.model.device, self.model.dtype)
            output = self.model.audio_encoder(input_values=values)
            clips = self.model.audio_head(output.pooler_output)
            tracks = self.model.audio_head(output.last_hidden_state)
            found.update({row: (clips[at], tracks[at]) for at, row in enumerate(rows)})
        return [found[row] for row in range(len(made))]

    def embed_tokens(self, ids: Tensor, mask: Tensor) -> Tensor:
        output = self.model.text_model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        embedded: Tensor = self.model.text_audio_head(output.hidden_states[-1][:, 0])
        return embedded

    def remember(self, texts: Tensor, lengths: Tensor) -> None:
        with self._lock:
            for text, length in zip(texts, lengths.tolist(), strict=True):
                self._known[text.numpy().tobytes()] = length
            while len(self._known) > _KNOWN_TEXTS:
                self._known.popitem(last=False)

    def frame_score(self, frames: Any, text: Any) -> Tensor:
        """Frames (T, D) with their lengths and texts (B, D) → scores (B, T) float32, the model's own.

        A vector that is no text's, such as a mean, counts with the typical length of a text.
        """
        rows = rows_of(text)
        lengths = torch.tensor([self._known.get(row.numpy().tobytes(), self._text_length) for row in rows])
        return torch.sigmoid((rows * lengths[:, None]) @ rows_of(frames).T * self._scale + self.b_global)

    def _typical_lengths(self) -> tuple[float, float]:
        """The lengths of a typical clip and a typical text, as the heads leave them."""
        noise = np.random.default_rng(0).standard_normal(max(self.hop, 48_000)).astype(np.float32) * 0.1
        ids = torch.tensor(_PROBE_TEXTS) % int(self.model.config.text_config.vocab_size)
        with torch.inference_mode():
            ((clip, _),) = self.embed_windows([noise])
            texts = self.embed_tokens(ids, torch.ones_like(ids))
        return float(clip.norm()), float(texts.norm(dim=-1).mean())
