"""The direction of dependencies, read from the imports: app → model, index; training → model; nothing else of ours."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import index

ROOMS = ("app", "model", "index", "training")
MAY_IMPORT = {
    "app": {"app", "model", "index"},
    "training": {"training", "model"},
    "model": {"model"},
    "index": {"index"},
}
DOORS = {"app/cli/main.py": {"training"}}  # the one command line is the door to training too, from inside a function
NUMPY_ONLY = (
    "model/detection.py",
    "model/sebb.py",
    "model/median.py",
    "model/windows.py",
    "model/config.py",
)
# app's layers from the top; each imports its own and lower ones. `server`, `observability`, `export`, `errors` and
# `settings` stand beside them
APP_LAYERS = ({"cli"}, {"main"}, {"api"}, {"services"}, {"state"}, {"decoding", "inference"}, {"audio"})
HEAVY = {"torch", "transformers", "safetensors", "huggingface_hub"}
WEB = {"fastapi", "starlette", "uvicorn"}


def imported(source: str, at_start: bool = False) -> set[str]:
    """Top-level packages that a module imports; relative imports count as the module's own.

    With `at_start` only what importing the module imports: not inside functions, not for the type checker alone.
    """
    tree = ast.parse(source)
    later: set[ast.AST] = set()
    if at_start:
        for node in ast.walk(tree):
            is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            if is_function or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
                later.update(ast.walk(node))
    names: set[str] = set()
    for node in ast.walk(tree):
        if node in later:
            continue
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


def imported_names(source: str, package: str) -> set[str]:
    """Dotted names that a module imports from a package: modules, and for `from a import b` also a.b."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return {name for name in names if name.split(".")[0] == package}


def sources(repo: Path, room: str) -> list[Path]:
    return sorted((repo / room).rglob("*.py"))


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_only_what_they_may(repo_dir: Path, room: str) -> None:
    files = sources(repo_dir, room)
    assert files, f"{room}/ has no modules"
    for file in files:
        name = file.relative_to(repo_dir).as_posix()
        ours = imported(file.read_text(encoding="utf-8")) & set(ROOMS)
        allowed = MAY_IMPORT[room] | DOORS.get(name, set())
        assert ours <= allowed, f"{name} imports {sorted(ours - allowed)}"


def test_index_knows_no_torch(repo_dir: Path) -> None:
    for file in sources(repo_dir, "index"):
        assert not imported(file.read_text(encoding="utf-8")) & HEAVY, file


@pytest.mark.parametrize("name", NUMPY_ONLY)
def test_numpy_is_enough_for(repo_dir: Path, name: str) -> None:
    assert not imported((repo_dir / name).read_text(encoding="utf-8")) & HEAVY


@pytest.mark.parametrize("room", ["model", "index", "training"])
def test_only_app_knows_http(repo_dir: Path, room: str) -> None:
    for file in sources(repo_dir, room):
        assert not imported(file.read_text(encoding="utf-8")) & WEB, file


def test_layers_of_app_import_downwards(repo_dir: Path) -> None:
    level = {part: number for number, parts in enumerate(APP_LAYERS) for part in parts}
    for file in sources(repo_dir, "app"):
        part = file.relative_to(repo_dir / "app").parts[0].removesuffix(".py")
        names = imported_names(file.read_text(encoding="utf-8"), "app")
        parts = {name.split(".")[1] for name in names if "." in name}
        if part == "client":
            assert parts <= {"client"}, f"{file} imports {sorted(parts)}"
        upwards = {other for other in parts if level.get(other, 99) < level.get(part, 0)}
        assert not upwards, f"{file} imports {sorted(upwards)}"


def test_app_imports_only_the_public_interface_of_index(repo_dir: Path) -> None:
    public = {"index", *(f"index.{name}" for name in index.__all__)}
    for file in sources(repo_dir, "app"):
        names = imported_names(file.read_text(encoding="utf-8"), "index")
        assert names <= public, f"{file.relative_to(repo_dir)} imports {sorted(names - public)}"


def test_index_exports_every_name_that_it_promises() -> None:
    for name in index.__all__:
        assert getattr(index, name) is not None


def test_the_command_line_starts_without_libraries(repo_dir: Path) -> None:
    top = imported((repo_dir / "app/cli/main.py").read_text(encoding="utf-8"), at_start=True)
    assert top <= sys.stdlib_module_names | {"__future__"}, sorted(top - set(sys.stdlib_module_names))


def test_the_reader_of_imports_sees_all_forms() -> None:
    source = "import torch.nn\nfrom fastapi import x\nfrom . import y\ndef f():\n    import index.sqlite.store as s\n"
    source += "if TYPE_CHECKING:\n    import app\n"
    assert imported(source) == {"torch", "fastapi", "index", "app"}
    assert imported(source, at_start=True) == {"torch", "fastapi"}
    assert imported_names(source, "index") == {"index.sqlite.store"}
