"""`finelap calibrate`: fits a checkpoint's scores and its match cutoff on labelled sounds."""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.data.manifests import Item

HELP = "fit a checkpoint's scores and match cutoff on labelled sounds"
SUFFIXES = frozenset((".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    add = parser.add_argument
    add("checkpoint", type=Path, metavar="CHECKPOINT", help="checkpoint folder; its embeddings stay as they are")
    what = "labelled sounds that the model has not been trained on: a folder with manifest.jsonl, with one "
    what += "sub-folder per label, or with labels as file names"
    add("--sounds", type=Path, required=True, metavar="FOLDER", help=what)
    add("--out", type=Path, metavar="DIR", help="where to write the checkpoint (in place)")
    add("--mixtures", type=_count, default=200, metavar="N", help="mixtures to fit frame scores on (200)")


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def run(args: argparse.Namespace) -> None:
    """Fits temperatures, biases and `matching`, and writes the checkpoint. Raises CalibrationError, CheckpointError."""
    import torch

    from model.external.contract import load_external
    from model.finelap import FineLAP
    from training.config import EvaluationConfig
    from training.data.audio_cache import AudioStore
    from training.evaluation.calibration import CalibrationError, calibrate, embed_sounds, fit_matching
    from training.evaluation.validation import make_mixtures

    items = labelled_sounds(args.sounds)
    other = load_external(args.checkpoint)
    if other is not None:
        _calibrate_external(other, items, args)
        return
    model = FineLAP.from_pretrained(args.checkpoint)
    stamp = model.stamp
    with TemporaryDirectory() as scratch:
        store = AudioStore(Path(scratch) / "sounds.i16", items, progress=True)
        if len(store) < 2:
            raise CalibrationError(f"{args.sounds}: no labelled sounds that can be decoded")
        sounds = embed_sounds(model, store)
        fitted = calibrate(model, make_mixtures(store, EvaluationConfig(mixtures=args.mixtures)), sounds)
        matching = fit_matching(model, sounds)
    model.config = replace(model.config, matching=matching)
    half = all(bool((p.half().float() == p).all()) for p in model.parameters() if p.ndim > 1)
    model.save_pretrained(
        args.out or args.checkpoint,
        shard_text_tower=(args.checkpoint / "model.safetensors.index.json").is_file(),
        dtype=torch.float16 if half else None,
    )
    assert model.stamp == stamp, "a calibration changes no embedding"
    print(
        f"{len(store)} sounds, {len({i.captions for i in store.items})} labels; clips match from {matching.cutoff:.2f}"
    )
    print(f"temperature and bias: clips {fitted['clip_temp']:.4f} {fitted['clip_bias']:.2f}, ", end="")
    print(f"frames {fitted['frame_temp']:.4f} {fitted['frame_bias']:.2f}")


def _calibrate_external(model: Any, items: Sequence[Item], args: argparse.Namespace) -> None:
    """Fits the scores of clips and searches of a model of another family, and writes them beside its files.

    Scores of frames stay the model's own.
    """
    from training.evaluation.calibration import (
        CalibrationError,
        NativeSounds,
        embed_sounds,
        fit_clips,
        fit_matching,
    )

    rate, target = model.traits.sample_rate, args.out or args.checkpoint
    if not model.folder.is_dir() or (args.out is None and not args.checkpoint.is_dir()):
        raise CalibrationError(f"{args.checkpoint} is not a folder: say with --out where to write")
    sounds = embed_sounds(model, NativeSounds(items, rate), rate)
    model.temp_global, model.b_global = fit_clips(model, sounds)
    matching = fit_matching(model, sounds)
    if target.resolve() != model.folder.resolve():
        shutil.copytree(model.folder, target, dirs_exist_ok=True)
    model.save_calibration(target, matching)
    print(f"{len(sounds.labels)} sounds, {len(sounds.distinct)} labels; clips match from {matching.cutoff:.2f}")
    print(f"temperature and bias: clips {model.temp_global:.4f} {model.b_global:.2f}")


def labelled_sounds(folder: Path) -> list[Item]:
    """The labelled sounds of a folder, in one of three layouts; see the command's help. Raises CalibrationError."""
    from training.data.manifests import Item, read_labelled
    from training.evaluation.calibration import CalibrationError

    if (folder / "manifest.jsonl").is_file():
        return [item for item in read_labelled(folder) if item.captions]
    items = []
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES):
        name = path.stem if path.parent == folder else path.parent.name
        if label := label_of(name):
            items.append(Item(str(path.relative_to(folder)), path, (label,)))
    if not items:
        raise CalibrationError(f"{folder}: no sounds with labels")
    return items


def label_of(name: str) -> str:
    """The words of a file or folder name, without numbers: "Dog_bark-02" → "dog bark"."""
    return " ".join(re.findall(r"[^\W\d_]+", name)).lower()
