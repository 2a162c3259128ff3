"""docs/reference/settings.md lists exactly the settings of the service, with their actual defaults."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from app.settings import Settings


def test_table_equals_the_settings(repo_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"FINELAP_{name.upper()}", raising=False)
    page = (repo_dir / "docs" / "reference" / "settings.md").read_text(encoding="utf-8")
    table = dict(re.findall(r"^\| `FINELAP_([A-Z_]+)` \| `?([^`|]+?)`? \| [^|]+\|$", page, re.MULTILINE))
    assert set(table) == {name.upper() for name in Settings.model_fields}
    settings = Settings(_env_file=None)  # type: ignore[call-arg]
    for name, shown in table.items():
        value = getattr(settings, name.lower())
        if value in ((), "", None):
            assert shown == "none", name
        elif isinstance(value, float):
            assert float(shown) == value, name
        else:
            assert shown == str(value), name


def test_settings_in_the_pages_exist(repo_dir: Path) -> None:
    name = re.compile(r"\bFINELAP_[A-Z_]*[A-Z]\b")
    known = {f"FINELAP_{name.upper()}" for name in Settings.model_fields}
    for folder in ("app", "benchmarks", "tests", "docker"):
        for file in (repo_dir / folder).rglob("*"):
            if file.suffix in (".py", ".yml", ".env", "") and file.is_file() and file != Path(__file__):
                known |= set(name.findall(file.read_text(encoding="utf-8", errors="replace")))
    for page in [repo_dir / "README.md", *(repo_dir / "docs").rglob("*.md")]:
        named = set(name.findall(page.read_text(encoding="utf-8")))
        assert named <= known, f"{page.name}: {named - known}"
