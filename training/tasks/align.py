"""The dual-stream stage: clips against captions and frames against phrases, on scenes with exact labels.

Knows nothing of files but its own state. The text tower stays as it is, its projector and the audio side learn; the
teachers' answers are kept in the loss so that what no caption names is not forgotten.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from model.finelap import FineLAP
from training.config import AlignConfig
from training.data.activity import frame_labels
from training.data.phrase_bank import PhraseBank, caption_of, phrased
from training.losses import clip_sigmoid_loss, frame_sigmoid_loss
from training.tasks.distillation import LOSS_WEIGHTS, Pool, Student, augment, channels_last, hiss, save_state, schedule


class TextCache:
    """Embeddings of the frozen text tower before the projector, each text computed once."""

    def __init__(self, model: FineLAP) -> None:
        self.model = model
        self.known: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, texts: list[str]) -> Tensor:
        """(B, C) of unit length."""
        new = sorted({t for t in texts if t not in self.known})
        for at in range(0, len(new), 64):
            part = new[at : at + 64]
            self.known.update(zip(part, self.model.text.pooled(*self.model.tokenise(part)), strict=True))
        return torch.stack([self.known[t] for t in texts])


class LabelledBatch(NamedTuple):
    """Crops with everything that is said of them."""

    crops: dict[str, Tensor]  # of the pool
    captions: list[str]
    label_sets: list[tuple[str, ...]]  # what each caption is made of
    phrases: list[list[str]]  # of each crop, equally many
    labels: Tensor  # (B, P, T)


class Labelled:
    """Crops of the pool with captions, phrases and frame labels made from their scenes' events."""

    def __init__(
        self, pool: Pool, captions: list[str], bank: PhraseBank, config: AlignConfig, frame_hop: float
    ) -> None:
        self.pool, self.captions, self.bank = pool, captions, bank
        self.config, self.frame_hop = config, frame_hop
        self.events = {path: json.loads((path / "events.json").read_text()) for path in pool.shards}

    def sounds_in(self, path: Path, row: int, start: float, stop: float) -> dict[str, list[tuple[float, float]]] | None:
        """Labels heard in a stretch of a scene, with their segments relative to it; None where one has no label."""
        sounds: dict[str, list[tuple[float, float]]] = {}
        for source, onset, offset in self.events[path][row]:
            onset, offset = max(onset, start) - start, min(offset, stop) - start
            if offset - onset >= 0.04:
                if not self.captions[source]:
                    return None
                sounds.setdefault(self.captions[source], []).append((onset, offset))
        return sounds or None

    def batch(self, rng: np.random.Generator) -> LabelledBatch:
        """`config.batch` crops in which every sound has a label."""
        config, frames = self.config, self.config.crop_frames
        rows: list[tuple[Path, int, int]] = []
        captions, label_sets, phrases, labels = [], [], [], []
        paths = list(self.pool.shards)
        while len(rows) < config.batch:
            path = paths[rng.integers(len(paths))]
            row = int(rng.integers(len(self.events[path])))
            start = int(rng.integers(0, self.pool.shards[path]["logits"].shape[1] - frames + 1))
            sounds = self.sounds_in(path, row, start * self.frame_hop, (start + frames) * self.frame_hop)
            if sounds is None:
                continue
            names = sorted(sounds, key=lambda n: sounds[n][0][0])
            asked = [self.bank.alternative(n, rng) if rng.random() < config.swap else n for n in names]
            negatives = self.bank.negatives(names, config.phrases - len(names), rng)
            grid = np.zeros((config.phrases, frames), np.float32)
            for i, name in enumerate(names):
                grid[i] = frame_labels(sounds[name], frames, self.frame_hop)
            rows.append((path, row, start))
            captions.append(caption_of(names, rng))
            label_sets.append(tuple(sorted(names)))
            phrases.append([phrased(p, rng) for p in asked + negatives])
            labels.append(grid)
        crops = self.pool.crops(rows, frames)
        return LabelledBatch(crops, captions, label_sets, phrases, torch.from_numpy(np.stack(labels)))


def align(
    model: FineLAP,
    student: Student,
    pool: Pool,
    captions: list[str],
    bank: PhraseBank,
    folder: Path,
    config: AlignConfig,
    report: Callable[[], dict[str, float]],
) -> Iterator[dict]:
    """Trains in place, resuming from `folder`/align.pt; yields a log row after each save.

    `captions` gives each source's label, "" for none; such sources' scenes are left out here.
    """
    data = Labelled(pool, captions, bank, config, model.frame_hop)
    texts = TextCache(model.eval())
    model.text.encoder.requires_grad_(False)
    scales = [model.temp_global, model.b_global, model.temp_local, model.b_local]
    optimiser = torch.optim.AdamW(
        [
            {"params": list(model.audio_encoder.parameters()), "lr": config.encoder_learning_rate},
            {"params": [*model.adapter.parameters(), *model.text.projector.parameters()], "lr": config.learning_rate},
            {"params": scales, "lr": config.learning_rate, "weight_decay": 0.0},
            {"params": [*student.to_yamnet.parameters(), *student.to_aisfx.parameters()], "lr": config.learning_rate},
        ],
        weight_decay=config.weight_decay,
        fused=True,
    )
    channels_last(model.audio_encoder)
    base = [group["lr"] for group in optimiser.param_groups]
    learned = nn.ModuleDict({"student": student, "text": model.text.projector})
    state_file, step = folder / "align.pt", 0
    if state_file.is_file():
        state = torch.load(state_file, weights_only=True)
        learned.load_state_dict(state["learned"])
        for parameter, value in zip(scales, state["scales"], strict=True):
            parameter.data.fill_(value)
        optimiser.load_state_dict(state["optimiser"])
        texts.known = dict(zip(state["texts"], state["text_vectors"], strict=True))
        step = state["step"]
    noise = hiss(model.log_mel)
    sums: dict[str, float] = {}
    saved = step
    bar = tqdm(total=config.steps, initial=step, desc="align", mininterval=5)
    while step < config.steps:
        rng = np.random.default_rng([config.seed, 2, step])
        torch.manual_seed(10_000_000 + step)
        batch, clip_captions, label_sets, phrases, labels = data.batch(rng)
        factor = schedule(step, config.steps, config.warmup)
        for group, rate in zip(optimiser.param_groups, base, strict=True):
            group["lr"] = rate * factor
        learned.train()
        mel = model.log_mel.normalise(augment(batch["mel"], model.log_mel.config, noise, config.noisy))
        pooled, frames = model.audio_encoder(mel)
        clips = F.normalize(model.adapter.forward_clip(pooled), dim=-1)
        tracks = F.normalize(model.adapter.forward_frames(frames), dim=-1)
        project = model.text.projector
        clip_texts = F.normalize(project(texts(clip_captions)), dim=-1)
        flat = [p for row in phrases for p in row]
        phrase_texts = F.normalize(project(texts(flat)), dim=-1).view(len(phrases), -1, model.dim)
        same = torch.tensor([[a == b for b in label_sets] for a in label_sets])
        taught = student.losses_of(pooled, frames, batch)
        losses = {
            "clip": clip_sigmoid_loss(clips, clip_texts, model.temp_global, model.b_global, same),
            "frame": frame_sigmoid_loss(tracks, phrase_texts, labels, model.temp_local, model.b_local),
            "teacher": torch.stack([LOSS_WEIGHTS[k] * v for k, v in taught.items()]).sum(),
        }
        total = config.clip_weight * losses["clip"] + config.frame_weight * losses["frame"]
        total = total + config.teacher_weight * losses["teacher"]
        optimiser.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_([p for g in optimiser.param_groups for p in g["params"]], 5.0)
        optimiser.step()
        with torch.no_grad():
            for temp in (model.temp_global, model.temp_local):
                temp.clamp_(min=0.01)
        for key, value in losses.items():
            sums[key] = sums.get(key, 0.0) + float(value.detach())
        step += 1
        bar.update()
        if step % config.save_every == 0 or step == config.steps:
            save_state(
                {
                    "learned": learned.state_dict(),
                    "scales": [float(s.detach()) for s in scales],
                    "optimiser": optimiser.state_dict(),
                    "step": step,
                    # Kept to the last digit: computed anew, in other company, they would differ in it.
                    "texts": list(texts.known),
                    "text_vectors": torch.stack(list(texts.known.values())),
                },
                state_file,
            )
            model.eval()
            means = {k: round(v / (step - saved), 5) for k, v in sums.items()}
            sums, saved = {}, step
            yield {"step": step} | means | report()
    bar.close()
