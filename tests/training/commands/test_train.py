"""`finelap train`: kinds of configuration files, errors with file and key, and the bundled files."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.cli.main import main
from model.config import ConfigError
from training.config import TrainConfig, parse_config, read_train_config, read_yaml

SMALL = "kind: train\nwork_dir: w\ninit: {start: scratch}\ndata: {sets: [{folder: sounds}]}\n"


def written(folder: Path, text: str) -> Path:
    file = folder / "run.yaml"
    file.write_text(text)
    return file


def test_the_papers_settings_are_the_defaults(repo_dir: Path, tmp_path: Path) -> None:
    config = read_train_config(written(tmp_path, SMALL))
    optimiser, loss = config.optimiser, config.loss
    assert (optimiser.learning_rate, optimiser.betas, optimiser.warmup) == (5e-5, (0.9, 0.999), 1000)
    assert (config.batch, config.epochs, loss.clip, loss.clip_weight, loss.frame_weight) == (1024, 10, "sigmoid", 1, 1)
    assert config.data.phrases == 20 and config.spec_augment is not None and config.spec_augment.time_width == 64
    paper = read_train_config(repo_dir / "training/configs/finelap.yaml")
    assert paper.optimiser == optimiser and paper.spec_augment == config.spec_augment
    assert (paper.batch, paper.epochs, paper.data.phrases) == (1024, 10, 20)
    data, names = paper.data, {Path(s.name).stem for s in paper.data.sets}
    assert (data.draw, data.crop, data.channel, data.swap, data.surplus) == ("size", "start", "first", 1.0, "first")
    assert {"desed-strong", "urbansed", "audioset-strong", "finelap-100k"} <= names and len(names) == 8
    assert (paper.precision, paper.drop_path, paper.loss.gather) == ("fp32", 0.1, "published")
    assert (paper.optimiser.weight_decay, paper.optimiser.clip_norm) == (0.0, 0.0)
    assert paper.init.audio is not None and "finetune_AS2M" in paper.init.audio
    assert isinstance(read_train_config(repo_dir / "training/configs/tiny.yaml"), TrainConfig)


def test_exponents_without_a_point_are_numbers(tmp_path: Path) -> None:
    text = SMALL + "optimiser: {learning_rate: 1e-3, betas: [0.9, 0.95]}\nspec_augment: null\n"
    config = read_train_config(written(tmp_path, text))
    assert config.optimiser.learning_rate == 0.001 and config.optimiser.betas == (0.9, 0.95)
    assert config.spec_augment is None


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ("colour: red\n", "run.yaml: unknown keys colour"),
        ("optimiser: {lr: 1}\n", "run.yaml: optimiser: unknown keys lr"),
        ("optimiser: {learning_rate: fast}\n", "optimiser: learning_rate: expected float, found 'fast'"),
        ("optimiser: {groups: [{prefix: a, frozen: 1}]}\n", r"groups\[0\]: frozen: expected bool, found 1"),
        ("steps: 1.5\n", "steps: expected int"),
        ("batch: true\n", "batch: expected int"),
        ("batch: 0\n", "batch: 0 is not positive"),
        ("precision: fp8\n", "precision: expected 'fp32', 'bf16' or 'fp16', found 'fp8'"),
        ("loss: {clip_weight: 0, frame_weight: 0}\n", "nothing to learn"),
        ("optimiser: {betas: [0.9]}\n", "betas: too few values"),
        ("ema: 1.0\n", "ema"),
        ("drop_path: 1.0\n", "drop_path: 1.0 is not in"),
        ("loss: {gather: some}\n", "gather: expected 'full' or 'published', found 'some'"),
    ],
)
def test_errors_name_file_and_key(tmp_path: Path, more: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        read_train_config(written(tmp_path, SMALL + more))


def test_missing_keys_are_named() -> None:
    with pytest.raises(ConfigError, match="x: .*data.*work_dir"):
        parse_config(TrainConfig, {"init": {}}, "x")


def test_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text, said in [
        ("kind: bake\n", "kind: expected 'train' or 'distil', found 'bake'"),
        ("a: [\n", "run.yaml"),
        (SMALL + "steps: none\n", "steps: expected int"),
        ("kind: distil\nname: x\n", "corpora"),
    ]:
        assert main(["train", "--config", str(written(tmp_path, text))]) == 1
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    assert main(["train", "--config", str(tmp_path / "none.yaml")]) == 1
    assert "no such file" in capsys.readouterr().err


def test_a_file_without_a_kind_is_a_recipe(repo_dir: Path) -> None:
    assert "kind" not in read_yaml(repo_dir / "training/configs/finelap-small.yaml")
