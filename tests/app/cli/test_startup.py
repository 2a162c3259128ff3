"""Start-up time, guarded by imports: loading libraries dominates it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"torch", "transformers", "faiss", "av", "soundfile", "soxr", "scipy", "matplotlib", "pymilvus", "sklearn"}
LIBRARIES = HEAVY | {"numpy", "fastapi", "pydantic", "httpx", "tqdm", "uvicorn", "tokenizers", "safetensors"}
LOADED = """
from app.inference.engine import load_model
from app.settings import Settings
from index.sqlite.library import SqliteLibrary
model = load_model(Settings(_env_file=None, checkpoint={checkpoint!r}))
model.encode_text(["a dog barks"])
SqliteLibrary.open(Path({folder!r}), dim=model.dim, checkpoint=model.stamp).close()
"""


def modules_after(code: str, folder: Path) -> set[str]:
    """Top-level modules loaded in a new interpreter after running this code."""
    report = "import sys; sys.stderr.write(' '.join(sorted({name.partition('.')[0] for name in sys.modules})))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, timeout=120, cwd=folder, check=True
    )
    return set(done.stderr.splitlines()[-1].split())


@pytest.mark.parametrize(
    ("code", "without"),
    [
        ("import app.cli.main; app.cli.main._parser()", LIBRARIES),
        (
            "import contextlib, app.cli.main\nwith contextlib.suppress(SystemExit): app.cli.main.main(['--help'])",
            LIBRARIES,
        ),
        ("import app.client", HEAVY),
        ("import app.cli.serve, app.main, app.server.http_protocol", HEAVY),
        ("from model import FineLAP", HEAVY - {"torch"} | {"fastapi", "pydantic", "httpx", "huggingface_hub"}),
    ],
)
def test_heavy_libraries_are_not_imported(code: str, without: set[str], repo_dir: Path, tmp_path: Path) -> None:
    found = modules_after(f"import sys; sys.path.insert(0, {str(repo_dir)!r})\n{code}", tmp_path)
    assert not found & without


def test_a_loaded_service_does_not_import_optional_libraries(repo_dir: Path, tmp_path: Path) -> None:
    code = LOADED.format(checkpoint=str(repo_dir / "checkpoints/finelap-small"), folder=str(tmp_path / "data"))
    code = f"import sys; sys.path.insert(0, {str(repo_dir)!r})\nfrom pathlib import Path\nimport app.main\n{code}"
    found = modules_after(code, tmp_path)
    assert {"torch", "faiss", "tokenizers"} <= found
    assert not found & (HEAVY - {"torch", "faiss"} | {"huggingface_hub", "sympy"})
