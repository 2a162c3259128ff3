"""Trains and measures the ablations of arXiv 2604.01155 at a configurable size.

All rows share one training configuration except for the setting that their name states, and are measured alike, once
for each seed. Finished runs are kept, and interrupted ones are resumed.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from model.config import ConfigError
from model.finelap import FineLAP
from training.checkpointing import TrainError
from training.config import EvaluationConfig, TrainConfig, parse_config, read_yaml
from training.data.activity import active_stretches
from training.data.audio_cache import AudioStore
from training.data.manifests import Item, read_labelled
from training.data.phrase_bank import PhraseBank
from training.evaluation.validation import (
    event_report,
    frame_report,
    make_mixtures,
    psds_of_mixtures,
    text_to_clip,
    tracks,
)

# The changes of each row to the shared configuration.
ROWS: dict[str, dict[str, Any]] = {
    "full": {},
    "no_frame_loss": {"loss": {"frame_weight": 0.0}},
    "no_clip_loss": {"loss": {"clip_weight": 0.0}},
    "unified": {"init": {"model": {"adapter": {"kind": "unified", "params": {}}}}},
    "no_synthetic": {"data": {"sets": "recorded"}},
    "infonce": {"loss": {"clip": "infonce"}},
    "htsat": {"init": {"model": {"audio_encoder": {"kind": "htsat", "params": {}}}}},
    "bigru": {"init": {"model": {"adapter": {"kind": "decoupled", "params": {"frames": "bigru"}}}}},
    "linear": {"init": {"model": {"adapter": {"kind": "decoupled", "params": {"frames": "linear"}}}}},
    "n10": {"data": {"phrases": 10}},
    "n15": {"data": {"phrases": 15}},
    "n25": {"data": {"phrases": 25}},
    "n30": {"data": {"phrases": 30}},
}
WHOLE = ("adapter", "audio_encoder")  # replaced, not merged: params depend on the kind
# The table's columns and their location in a row's result.
COLUMNS = {
    "R@1": ("retrieval", "label R@1"),
    "R@10": ("retrieval", "label R@10"),
    "mAP@10": ("retrieval", "label mAP@10"),
    "frame AP": ("frames", "frame AP"),
    "AUROC": ("frames", "AUROC within a phrase"),
    "event F1": ("events", "F1 at the best threshold"),
    "PSDS1": ("psds", "PSDS1, no spread"),
    "PSDS2": ("psds", "PSDS2, no spread"),
}
CHANCE = {
    "R@1": ("retrieval", "chance R@1"),
    "R@10": ("retrieval", "chance R@10"),
    "mAP@10": ("retrieval", "chance mAP@10"),
    "frame AP": ("frames", "frame AP, chance"),
    "event F1": ("events", "F1, chance"),
}
Results = dict[str, list[dict[str, Any]]]  # row → what was measured, one for each seed


@dataclass(frozen=True)
class AblationConfig:
    """The sounds, the shared training configuration, and the evaluation. Relative paths start at the root."""

    work_dir: str
    sounds: tuple[str, ...]  # folders of labelled single sounds
    validation_groups: tuple[str, ...]
    train: dict[str, Any]  # a training configuration without work_dir and data.sets
    excluded_groups: tuple[str, ...] = ()
    rows: dict[str, Any] = field(default_factory=dict)  # further changes to a row, or additional rows
    evaluation: EvaluationConfig = EvaluationConfig()
    seeds: tuple[int, ...] = (0,)
    kind: str = "ablate"


def read_ablation(path: Path) -> AblationConfig:
    """Reads an ablation from YAML. Raises ConfigError."""
    config: AblationConfig = parse_config(AblationConfig, read_yaml(path), path.name)
    if config.kind != "ablate":
        raise ConfigError(f"{path.name}: kind: expected ablate, found {config.kind!r}")
    return config


def merged(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """`base` updated with `change`: dictionaries recursively, adapters and encoders as a whole."""
    result = dict(base)
    for key, value in change.items():
        inner = isinstance(value, dict) and isinstance(result.get(key), dict) and key not in WHOLE
        result[key] = merged(result[key], value) if inner else value
    return result


class Ablation:
    """Trains and measures the rows of a configuration in its work folder."""

    def __init__(
        self,
        config: AblationConfig,
        root: Path,
        steps: int | None = None,
        bank_of: Callable[[list[str], TrainConfig, Path], PhraseBank] | None = None,
    ) -> None:
        """`steps` overrides the optimiser steps of every row; `bank_of` builds the phrase bank of the labels."""
        self.config, self.root, self.steps, self.bank_of = config, root, steps, bank_of or make_bank
        self.folder = root / config.work_dir
        self.folder.mkdir(parents=True, exist_ok=True)
        self.changes = {name: merged(ROWS.get(name, {}), config.rows.get(name, {})) for name in (ROWS | config.rows)}

    def run(self, rows: Sequence[str], report: Callable[[str], None] = print) -> str:
        """Trains and measures `rows`, writes table.md and table.json after each run, and returns the table.

        All rows are trained with one seed before the next, so that an interrupted ablation compares as many rows as it
        can.
        """
        unknown = [row for row in rows if row not in self.changes]
        if unknown:
            raise ConfigError(f"unknown rows {', '.join(unknown)}; known: {', '.join(self.changes)}")
        results: Results = {}
        for seed in self.config.seeds:
            for number, row in enumerate(rows, start=1):
                report(f"row {number} of {len(rows)}, seed {seed}: {row}")
                results.setdefault(row, []).append(self.result(row, seed))
                (self.folder / "table.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
                (self.folder / "table.md").write_text(table(results), encoding="utf-8")
        return table(results)

    def result(self, row: str, seed: int) -> dict[str, Any]:
        """A run's figures, from its file if it is finished. Raises TrainError for a file of another configuration."""
        config = self.row_config(row, seed)
        plain = json.loads(json.dumps(dataclasses.asdict(config)))
        file = self.root / config.work_dir / "result.json"
        kept = self._kept(file, plain)
        if kept is not None:
            return kept
        self.prepare(config)
        from training.trainer import train

        model = FineLAP.from_pretrained(train(config, self.root, resume=True))
        found = {"row": row, "seed": seed, "steps": config.steps, "parameters": _sizes(model)} | self.measure(model)
        found["config"] = plain
        file.write_text(json.dumps(found, indent=1), encoding="utf-8")
        return found

    def _kept(self, file: Path, config: dict[str, Any]) -> dict[str, Any] | None:
        if not file.is_file():
            return None
        known: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if known["config"] != config:
            raise TrainError(f"{file}: made with another configuration; choose another work_dir or delete the folder")
        return known

    def row_config(self, row: str, seed: int = 0) -> TrainConfig:
        """The training configuration of a row."""
        manifest = f"{self.config.work_dir}/singles.jsonl"
        # No augmentation: at this size it would take longer than the training itself.
        scenes = {"manifest": manifest, "simulate": True, "scene": {"augment": 0.0}}
        recorded = {"manifest": manifest}
        data = merged({"sets": "all", "bank": f"{self.config.work_dir}/bank.jsonl"}, self.config.train.get("data", {}))
        base = self.config.train | {
            "data": data,
            "work_dir": f"{self.config.work_dir}/{row}/seed-{seed}",
            "name": f"ablation-{row}",
            "seed": seed,
        }
        plain = merged(base, self.changes[row])
        if self.steps is not None:
            plain["steps"] = self.steps
        sets = {"all": [recorded, scenes], "recorded": [recorded]}
        chosen = plain["data"]["sets"]
        plain["data"] = plain["data"] | {"sets": sets[chosen] if isinstance(chosen, str) else chosen}
        config: TrainConfig = parse_config(TrainConfig, plain, f"row {row}")
        return config

    def items(self, validation: bool) -> list[Item]:
        """Labelled sounds of the training or validation groups."""
        config = self.config
        found = [item for folder in config.sounds for item in read_labelled(self.root / folder) if item.captions]
        found = [item for item in found if item.group not in config.excluded_groups]
        return [item for item in found if (item.group in config.validation_groups) == validation]

    def prepare(self, config: TrainConfig) -> None:
        """Writes a manifest of the sounds with their active segments and a phrase bank of their labels, once."""
        manifest, bank = self.folder / "singles.jsonl", self.folder / "bank.jsonl"
        if manifest.is_file() and bank.is_file():
            return
        store = AudioStore(self.folder / "sounds.i16", self.items(validation=False), progress=True)
        lines, labels = [], []
        for i, item in enumerate(store.items):
            segments = [
                [round(a, 4), round(b, 4)] for a, b in active_stretches(store.get(i)) if round(a, 4) < round(b, 4)
            ]
            if not segments:
                continue  # silent
            label = item.captions[0]
            row: dict[str, Any] = {"audio_id": item.audio_id, "audio_path": str(item.path.resolve())}
            row |= {"caption": label, "phrases": [{"phrase": label, "segments": segments}], "group": item.group}
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
            labels.append(label)
        if not lines:
            raise ConfigError("sounds: no labelled sound to train on")
        self.bank_of(sorted(set(labels)), config, self.root).write(bank)
        manifest.write_text("".join(lines), encoding="utf-8")

    def measure(self, model: FineLAP) -> dict[str, Any]:
        """Retrieval of the validation sounds and detection on their mixtures; percent."""
        store = AudioStore(self.folder / "validation.i16", self.items(validation=True), progress=False)
        mixtures = make_mixtures(store, self.config.evaluation)
        found = tracks(model, mixtures)
        return {
            "retrieval": text_to_clip(model, store),
            "frames": frame_report(found),
            "events": event_report(model, found),
            "psds": psds_of_mixtures(model, mixtures),
        }


def make_bank(labels: list[str], config: TrainConfig, root: Path) -> PhraseBank:
    """A phrase bank of the labels clustered around AudioSet's class names, by embeddings of the initial text tower."""
    import torch

    from training.init.build import build_model
    from training.tasks.teachers import yamnet_classes

    model = build_model(config.init, root).eval()

    def embed(texts: list[str]) -> np.ndarray:
        with torch.no_grad():
            parts = [model.text.pooled(*model.tokenise(texts[at : at + 64])) for at in range(0, len(texts), 64)]
        return np.asarray(torch.nn.functional.normalize(torch.cat(parts), dim=-1).numpy())

    return PhraseBank.assign(labels, yamnet_classes(), embed)


def table(results: Results) -> str:
    """A Markdown table of the rows and chance; percent, and the audio side's parameters in millions.

    With several seeds: the mean over them ± their standard deviation.
    """
    lines = [
        "| row | steps | seeds | audio params, M | " + " | ".join(COLUMNS) + " |",
        "|---|---:|---:|---:|" + "---:|" * len(COLUMNS),
    ]
    for row, runs in results.items():
        cells = [_cell([run[group][figure] for run in runs]) for group, figure in COLUMNS.values()]
        size = runs[0]["parameters"]["audio"] / 1e6
        lines.append(f"| {row} | {runs[0]['steps']} | {len(runs)} | {size:.2f} | {' | '.join(cells)} |")
    every = [run for runs in results.values() for run in runs]
    if every:
        chance = {c: f"{np.mean([run[group][f] for run in every]):.1f}" for c, (group, f) in CHANCE.items()}
        cells = [chance.get(c, "50.0" if c == "AUROC" else "") for c in COLUMNS]
        lines.append(f"| chance | | | | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(values: list[float]) -> str:
    mean = f"{np.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.1f}"


def _sizes(model: FineLAP) -> dict[str, int]:
    audio = sum(p.numel() for part in (model.audio_encoder, model.adapter) for p in part.parameters())
    return {"audio": audio, "all": sum(p.numel() for p in model.parameters())}
