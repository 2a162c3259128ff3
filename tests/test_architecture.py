"""The structure of the code, read from its imports: who may import whom, no cycles, and limits on size.

docs/development/architecture.md draws the map that these tests hold.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

import index

REPO = Path(__file__).resolve().parent.parent
PACKAGES = ("app", "index", "model", "training")
MAY_IMPORT = {
    "app": {"app", "model", "index"},
    "training": {"training", "model"},
    "model": {"model"},
    "index": {"index"},
}
EXCEPTIONS = {
    "app/cli/main.py": {"training"},  # the command line also starts training, from inside a function
    "index/segments.py": {"model"},  # how frames are pooled is the embedding space's: model.segments, NumPy only
}

# Within a package, a module imports from its own row and from rows further down. What isn't listed (errors, settings,
# observability, …) stands beside the layers.
LAYERS: dict[str, tuple[tuple[str, ...], ...]] = {
    "app": (
        ("app.cli",),
        ("app.main",),
        ("app.api",),
        ("app.services",),
        ("app.state",),
        ("app.decoding", "app.inference"),
        ("app.audio",),
    ),
    "training": (
        ("training.commands",),
        ("training.recipes",),
        ("training.trainer",),
        ("training.tasks", "training.evaluation"),
        ("training.data",),
    ),
    "index": (
        ("index.milvus", "index.sqlite"),
        ("index.vectors",),
        ("index.records",),
    ),
}
NUMPY_ONLY = (
    "model/concepts/head.py",
    "model/config.py",
    "model/detection.py",
    "model/live/cutter.py",
    "model/live/track.py",
    "model/median.py",
    "model/sebb.py",
    "model/segments.py",
    "model/windows.py",
)
HEAVY = {"torch", "transformers", "safetensors", "huggingface_hub"}
WEB = {"fastapi", "starlette", "uvicorn"}

MAX_FILES = 242
MAX_SMALL_FILES = 20
SMALL = 60  # lines
MAX_MODULES_IN_FOLDER = 20
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 6


def module_name(file: Path) -> str:
    """`app/api/clips.py` → `app.api.clips`; a package's `__init__.py` has the package's name."""
    name = file.relative_to(REPO).with_suffix("").as_posix().replace("/", ".")
    return name.removesuffix(".__init__")


@cache
def sources() -> dict[str, Path]:
    """Every module of the four packages, by dotted name."""
    files = [file for package in PACKAGES for file in sorted((REPO / package).rglob("*.py"))]
    return {module_name(file): file for file in files if "vendor" not in file.parts}


@cache
def syntax_tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def type_checking_only(tree: ast.Module) -> set[ast.AST]:
    """Nodes that only the type checker sees."""
    return {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }


def inside_functions(tree: ast.Module) -> set[ast.AST]:
    """Nodes that run only when a function is called."""
    return {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for inner in ast.walk(node)
    }


def imported(tree: ast.Module, ignore: set[ast.AST] = frozenset()) -> set[str]:  # type: ignore[assignment]
    """Dotted names that a module imports; `from a import b` gives both `a` and `a.b`. Relative imports are left out."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if node in ignore:
            continue
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def top_level(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


@cache
def import_graph() -> dict[str, set[str]]:
    """Module → modules of ours that it imports, inside functions too; type-checking imports don't count."""
    graph: dict[str, set[str]] = {}
    for name, file in sources().items():
        tree = syntax_tree(file)
        found = imported(tree, type_checking_only(tree)) & sources().keys()
        # `from package import module` runs the package's __init__, but depends on the module
        graph[name] = {other for other in found if not any(longer.startswith(other + ".") for longer in found)} - {name}
    return graph


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other, directly or through others (Tarjan's components of two or more)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        order[name] = lowest[name] = len(order)
        stack.append(name)
        for other in sorted(graph[name]):
            if other not in order:
                visit(other)
                lowest[name] = min(lowest[name], lowest[other])
            elif other in stack:
                lowest[name] = min(lowest[name], order[other])
        if lowest[name] == order[name]:
            group = [stack.pop()]
            while group[-1] != name:
                group.append(stack.pop())
            if len(group) > 1:
                found.append(sorted(group))

    for name in sorted(graph):
        if name not in order:
            visit(name)
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_what_they_may(package: str) -> None:
    files = [file for name, file in sources().items() if name.split(".")[0] == package]
    assert files, f"{package}/ has no modules"
    for file in files:
        name = file.relative_to(REPO).as_posix()
        ours = top_level(imported(syntax_tree(file))) & set(PACKAGES)
        allowed = MAY_IMPORT[package] | EXCEPTIONS.get(name, set())
        assert ours <= allowed, f"{name} imports {sorted(ours - allowed)}"


@pytest.mark.parametrize("package", sorted(LAYERS))
def test_imports_go_down_the_layers(package: str) -> None:
    level = {folder: depth for depth, folders in enumerate(LAYERS[package]) for folder in folders}

    def folder_of(name: str) -> str:
        return ".".join(name.split(".")[:2])

    assert all(any(folder_of(name) == folder for name in sources()) for folder in level), "a layer has no modules"
    upward = [
        f"{name} imports {other}"
        for name, others in import_graph().items()
        for other in sorted(others)
        if folder_of(name) in level
        and folder_of(other) in level
        and folder_of(name) != folder_of(other)
        and level[folder_of(name)] > level[folder_of(other)]
    ]
    assert not upward, upward


def test_no_import_cycles() -> None:
    assert not cycles(import_graph())


def test_app_imports_only_the_public_interface_of_index() -> None:
    public = {"index", *(f"index.{name}" for name in index.__all__)}
    for name, file in sources().items():
        if name.split(".")[0] == "app":
            names = {other for other in imported(syntax_tree(file)) if other.split(".")[0] == "index"}
            assert names <= public, f"{name} imports {sorted(names - public)}"


def test_index_exports_every_name_that_it_promises() -> None:
    for name in index.__all__:
        assert getattr(index, name) is not None


def test_the_client_stands_alone() -> None:
    for name, others in import_graph().items():
        if name.startswith("app.client"):
            assert all(other.startswith("app.client") for other in others), (name, others)


def test_index_imports_no_torch() -> None:
    for name, file in sources().items():
        if name.split(".")[0] == "index":
            assert not top_level(imported(syntax_tree(file))) & HEAVY, name


@pytest.mark.parametrize("name", NUMPY_ONLY)
def test_modules_that_need_only_numpy(name: str) -> None:
    assert not top_level(imported(syntax_tree(REPO / name))) & HEAVY


@pytest.mark.parametrize("package", ["model", "index", "training"])
def test_only_app_imports_web_frameworks(package: str) -> None:
    for name, file in sources().items():
        if name.split(".")[0] == package:
            assert not top_level(imported(syntax_tree(file))) & WEB, name


def test_services_import_no_web_framework() -> None:
    for name, file in sources().items():
        if name.startswith("app.services"):
            assert not top_level(imported(syntax_tree(file))) & WEB, name


def test_the_command_line_starts_without_libraries() -> None:
    tree = syntax_tree(REPO / "app/cli/main.py")
    at_start = top_level(imported(tree, type_checking_only(tree) | inside_functions(tree)))
    assert at_start <= sys.stdlib_module_names | {"__future__"}, sorted(at_start - set(sys.stdlib_module_names))


def test_few_and_full_files() -> None:
    lines = {name: len(file.read_text(encoding="utf-8").splitlines()) for name, file in sources().items()}
    small = sorted(name for name, count in lines.items() if count < SMALL)
    assert len(lines) <= MAX_FILES
    assert len(small) <= MAX_SMALL_FILES, small
    folders = Counter(file.parent for file in sources().values())
    assert max(folders.values()) <= MAX_MODULES_IN_FOLDER, folders.most_common(1)


def test_functions_are_short() -> None:
    too_much = []
    for name, file in sources().items():
        for node in ast.walk(syntax_tree(file)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            arguments = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
            parameters = [argument.arg for argument in arguments if argument.arg not in ("self", "cls")]
            if lines > MAX_FUNCTION_LINES or len(parameters) > MAX_PARAMETERS:
                too_much.append(f"{name}.{node.name}: {lines} lines, {len(parameters)} parameters")
    assert not too_much, too_much


def test_there_is_one_training_loop() -> None:
    calls = [
        name
        for name, file in sources().items()
        for node in ast.walk(syntax_tree(file))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "backward"
    ]
    assert calls == ["training.trainer"]


def test_the_reader_of_imports_sees_all_forms() -> None:
    source = "import torch.nn\nfrom fastapi import x\nfrom . import y\ndef f():\n    import index.sqlite as s\n"
    tree = ast.parse(source + "if TYPE_CHECKING:\n    import app\n")
    assert imported(tree) == {"torch.nn", "fastapi", "fastapi.x", "index.sqlite", "app"}
    assert imported(tree, type_checking_only(tree) | inside_functions(tree)) == {"torch.nn", "fastapi", "fastapi.x"}


def test_the_search_for_cycles_finds_long_ones() -> None:
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert cycles({"a": {"b"}, "b": {"c"}, "c": set(), "d": {"a"}}) == []
