"""Recipes and checkpoint configurations reject unknown keys and name them."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.config import ConfigError, FineLAPConfig
from training.config import Recipe, read_recipe


def test_the_bundled_recipe_reads(repo_dir: Path) -> None:
    recipe = read_recipe(repo_dir / "training" / "configs" / "finelap-small.yaml")
    assert recipe.name == "finelap-small" and recipe.output == "checkpoints/finelap-small"
    assert "btanks-data" in recipe.validation_groups
    assert recipe.align.phrases == 20  # the paper's N


def test_values_are_read(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("name: x\ncorpora: [a]\nvalidation_groups: [v]\nalign: {steps: 7}\n")
    recipe = read_recipe(file)
    assert isinstance(recipe, Recipe) and recipe.align.steps == 7 and recipe.corpora == ("a",)
    assert recipe.distill.batch == 64


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("name: x\ncorpora: [a]\nvalidation_groups: []\ncolour: red\n", "unknown keys colour"),
        ("name: x\ncorpora: [a]\nvalidation_groups: []\nalign: {step: 7}\n", "align: unknown keys step"),
        ("corpora: [a]\nvalidation_groups: []\n", "name"),
        ("[1, 2]\n", "expected a mapping"),
        ("a: [\n", "r.yaml"),
        ("", "expected a mapping"),
    ],
)
def test_errors_are_named(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(ConfigError, match=reason):
        read_recipe(tmp_path / "r.yaml")


def test_checkpoint_config_round_trip_and_strictness() -> None:
    config = FineLAPConfig(name="x", dim=8)
    assert FineLAPConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ConfigError, match="colour"):
        FineLAPConfig.from_dict(config.to_dict() | {"colour": 1})
    with pytest.raises(ConfigError, match="windows: unknown keys hop"):
        FineLAPConfig.from_dict(config.to_dict() | {"windows": {"hop": 1}})
    with pytest.raises(ConfigError, match="format 2"):
        FineLAPConfig.from_dict(config.to_dict() | {"format_version": 2})
