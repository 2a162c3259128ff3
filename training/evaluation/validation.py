"""What a model in training is worth: losses, retrieval and frame precision on recordings that it does not learn from.

Knows nothing of training. Decodes its recordings once; what cannot be decoded is named and left out. Only the first
window of a recording is heard. The full evaluation is another module's.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.audio import SAMPLE_RATE
from model.config import ConfigError, WindowConfig
from model.finelap import FineLAP
from model.windows import frame_count, window_samples
from training.data.manifests import Item, decode, read_labelled, read_manifest
from training.evaluation.metrics import average_precision, retrieval
from training.losses import clip_sigmoid_loss, infonce_loss
from training.simulation.simulate import frame_labels
from training.train_config import LossConfig, ValidationConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Clip:
    samples: np.ndarray  # (n,) float32 at 16 kHz, at most a window
    caption: str | None
    asked: tuple[str, ...]  # phrases
    labels: np.ndarray  # (P, T)


class Validation:
    """The validation recordings of a run, decoded, with what is asked of them. `skipped` has an id's reason."""

    def __init__(self, config: ValidationConfig, root: Path, windows: WindowConfig) -> None:
        """Raises ConfigError where nothing is left to validate on, OSError for a manifest that is not there."""
        self.config = config
        items = _items(config, root)
        self.skipped: dict[str, str] = {}
        if len(items) > config.limit:
            items = [items[i] for i in np.linspace(0, len(items) - 1, config.limit).astype(int)]
        known = sorted({p.text for item in items for p in item.phrases or ()})
        self.clips: list[_Clip] = []
        for number, item in enumerate(items):
            try:
                samples = decode(item.path)[: window_samples(windows)]
            except (OSError, RuntimeError, ValueError) as error:
                self.skipped[item.audio_id] = str(error)
                continue
            frames = min(frame_count(len(samples), windows), windows.frames)
            self.clips.append(_clip(item, samples, frames, windows.frame_hop, known, config.phrases, number))
        if self.skipped:
            named = ", ".join(list(self.skipped)[:5])
            log.warning("validation leaves out %d of %d recordings: %s", len(self.skipped), len(items), named)
        if not self.clips:
            raise ConfigError("validation: no recording could be read")

    def report(self, model: FineLAP, loss: LossConfig) -> dict[str, float]:
        """Figures of the model as it is: `loss` (weighted sum), `clip_loss`, `frame_loss`, R@k, mAP@10, `frame_AP`.

        Those of clips need captions and those of frames phrases; what the recordings lack is left out. Retrieval is
        text→clip over the different captions.
        """
        clips, tracks = self._heard(model)
        report: dict[str, float] = {}
        captioned = [i for i, clip in enumerate(self.clips) if clip.caption is not None]
        if captioned:
            captions = [str(self.clips[i].caption) for i in captioned]
            queries = list(dict.fromkeys(captions))
            texts = model.encode_text(queries)
            rows = torch.tensor([queries.index(c) for c in captions])
            heard = clips[captioned]
            report["clip_loss"] = self._clip_loss(model, heard, texts[rows], rows, loss)
            relevant = np.array([[c == q for c in captions] for q in queries])
            report |= retrieval((texts @ heard.T).numpy(), relevant)
        asked = sorted({p for clip in self.clips for p in clip.asked})
        if asked:
            vectors = dict(zip(asked, model.encode_text(asked), strict=True))
            similarity, labels = [], []
            for clip, track in zip(self.clips, tracks, strict=True):
                if clip.asked:
                    similarity.append((torch.stack([vectors[p] for p in clip.asked]) @ track.T).flatten())
                    labels.append(torch.from_numpy(clip.labels).flatten())
            flat, truth = torch.cat(similarity), torch.cat(labels)
            logits = flat / float(model.temp_local.detach()) + float(model.b_local.detach())
            report["frame_loss"] = float(torch.nn.functional.binary_cross_entropy_with_logits(logits, truth))
            report["frame_AP"] = average_precision(flat.numpy(), truth.numpy())
        weighted = loss.clip_weight * report.get("clip_loss", 0.0) + loss.frame_weight * report.get("frame_loss", 0.0)
        return {"loss": weighted} | report

    def _heard(self, model: FineLAP) -> tuple[Tensor, list[Tensor]]:
        clips, tracks = [], []
        for at in range(0, len(self.clips), self.config.batch):
            part = [clip.samples for clip in self.clips[at : at + self.config.batch]]
            for embedding in model.encode_audio(part, SAMPLE_RATE):
                clips.append(embedding.clip)
                tracks.append(embedding.frames)
        lengths = [clip.labels.shape[1] for clip in self.clips]
        return torch.stack(clips), [track[:n] for track, n in zip(tracks, lengths, strict=True)]

    def _clip_loss(self, model: FineLAP, clips: Tensor, texts: Tensor, rows: Tensor, loss: LossConfig) -> float:
        """Mean over batches; clips with one caption are each other's true pairs."""
        temp, bias = model.temp_global.detach().cpu(), model.b_global.detach().cpu()
        values = []
        for at in range(0, len(clips), self.config.batch):
            a, b, r = (x[at : at + self.config.batch] for x in (clips, texts, rows))
            if loss.clip == "infonce":
                values.append(infonce_loss(a, b, temp))
            else:
                values.append(clip_sigmoid_loss(a, b, temp, bias, r[:, None] == r[None, :]))
        return float(torch.stack(values).mean())


def better(figure: float, best: float | None, choose: str) -> bool:
    """Whether a figure beats the best so far: a lower loss, or a higher anything else."""
    return best is None or (figure < best if choose == "loss" else figure > best)


def _items(config: ValidationConfig, root: Path) -> list[Item]:
    if (config.manifest is None) == (config.folder is None):
        raise ConfigError("validation: give a manifest or a folder")
    if config.manifest is not None:
        items = read_manifest(root / config.manifest)
    else:
        items = [i for i in read_labelled(root / str(config.folder)) if i.captions]
    if config.only_groups:
        items = [i for i in items if i.group in config.only_groups]
    if not items:
        raise ConfigError("validation: no recordings in these groups")
    return items


def _clip(item: Item, samples: np.ndarray, frames: int, hop: float, known: list[str], ask: int, number: int) -> _Clip:
    caption = item.captions[0] if item.captions else None
    if item.phrases is None:
        return _Clip(samples, caption, (), np.zeros((0, frames), np.float32))
    segments: dict[str, list[tuple[float, float]]] = {}
    for phrase in item.phrases:
        segments.setdefault(phrase.text, []).extend(s for s in phrase.segments if s[0] < frames * hop)
    others = [p for p in known if p not in segments]
    order = np.random.default_rng([17, number]).permutation(len(others))[: max(0, ask - len(segments))]
    asked = [*segments, *(others[i] for i in order)]
    labels = np.stack([frame_labels(segments.get(p, []), frames, hop) for p in asked])
    return _Clip(samples, caption, tuple(asked), labels)
