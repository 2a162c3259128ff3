"""The documentation is consistent: the site builds without warnings, links and paths exist, nothing is external."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

from tests.docs.blocks import without_code

_LINK = re.compile(r"\]\(([^)\s]+)\)|<(?:img|a)\b[^>]*?\b(?:src|href)=\"([^\"]+)\"")
_PICTURES = {".png", ".svg", ".jpg"}
_FETCHED = {
    "script": "src",
    "img": "src",
    "link": "href",
    "iframe": "src",
    "source": "src",
    "audio": "src",
    "video": "src",
}
_NEEDED = {"stylesheet", "icon", "preload", "modulepreload", "preconnect", "prefetch"}


def anchor(heading: str) -> str:
    """The anchor of a heading, as GitHub and MkDocs generate it."""
    words = re.sub(r"[^\w\s-]", "", re.sub(r"[`*]|\]\([^)]*\)", "", heading).strip().lower())
    return re.sub(r"\s", "-", words)


def anchors(page: Path) -> set[str]:
    """All link targets in a page."""
    source = re.sub(r"^ *```.*?^ *```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    targets = {anchor(heading) for heading in re.findall(r"^#+ +(.*?) *#*$", source, re.MULTILINE)}
    return targets | set(re.findall(r"\bid=\"([^\"]+)\"", source))


def pages(repo: Path) -> list[Path]:
    """The README, the changelog and every page of docs/."""
    return [repo / "README.md", repo / "CHANGELOG.md", *sorted((repo / "docs").rglob("*.md"))]


def test_links_resolve(repo_dir: Path) -> None:
    wrong, seen = [], 0
    for page in pages(repo_dir):
        for match in _LINK.finditer(without_code(page.read_text(encoding="utf-8"))):
            link = match[1] or match[2]
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            seen += 1
            target = page if not parts.path else (page.parent / unquote(parts.path)).resolve()
            if not target.exists() or not target.is_relative_to(repo_dir):
                wrong.append(f"{page.relative_to(repo_dir)}: {link} does not exist")
            elif parts.fragment and unquote(parts.fragment) not in anchors(target):
                wrong.append(f"{page.relative_to(repo_dir)}: {link} has no such heading")
    assert not wrong, "\n".join(wrong)
    assert seen > 50


def test_paths_in_pages_exist(repo_dir: Path) -> None:
    """Paths of the checkout, such as app/export/formats.py, in prose, tables and code."""
    roots = "app|model|index|training|tests|benchmarks|checkpoints|demo|docs|docker"
    path = re.compile(
        rf"(?<!\]\()(?<![\w/.-])((?:{roots})/[\w./-]+?\.(?:py|md|ya?ml|jsonl|csv|tsv|json|png|js|css|html)(?:\.gz)?)\b"
    )
    extra = [repo_dir / "checkpoints" / "finelap-small" / "README.md"]
    wrong = [
        f"{page.relative_to(repo_dir)}: {name}"
        for page in [*pages(repo_dir), *extra]
        for name in path.findall(page.read_text(encoding="utf-8"))
        if not (repo_dir / name).exists()
    ]
    assert not wrong, "\n".join(wrong)


def test_dotted_names_in_pages_exist(repo_dir: Path) -> None:
    """Modules and their attributes in inline code, such as `app.export.formats.from_cell`."""
    dotted = re.compile(r"`(?:python3? -m )?((?:app|model|index|training|benchmarks)(?:\.\w+)+)(?:\([^`]*\))?[^`\n]*`")
    wrong, seen = [], 0
    for page in [repo_dir / "README.md", *sorted((repo_dir / "docs").rglob("*.md"))]:
        for name in dotted.findall(page.read_text(encoding="utf-8")):
            if name.startswith(("app.access", "model.safetensors")) or name.endswith(
                (".py", ".html", ".md")
            ):  # no module
                continue
            seen += 1
            if not _resolves(name, repo_dir):
                wrong.append(f"{page.relative_to(repo_dir)}: {name}")
    assert not wrong, "\n".join(wrong)
    assert seen > 10


def test_architecture_page_matches_the_tree(repo_dir: Path) -> None:
    """The map lists every folder with modules, and the files and names that the page mentions exist."""
    page = (repo_dir / "docs" / "development" / "architecture.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([\w/]+)/` \| [^|]+ \| (.+) \|$", page, re.MULTILINE))
    packages = ("app", "index", "model", "training")
    modules = [path for package in packages for path in (repo_dir / package).rglob("*.py")]
    folders = {path.parent.relative_to(repo_dir).as_posix() for path in modules if "node_modules" not in path.parts}
    assert folders == set(rows)
    for folder, cell in rows.items():
        for name in re.findall(r"`([\w-]+\.(?:py|js|html))`", cell):
            assert (repo_dir / folder / name).is_file(), f"{folder}/{name}"
    mentions = re.findall(r"((?:`\w+`(?:, | and )?)+)\s+in\s+`([\w/]+\.py)`", page)
    assert len(mentions) > 15
    for names, path in mentions:
        source = (repo_dir / path).read_text(encoding="utf-8")
        for name in re.findall(r"`(\w+)`", names):
            assert re.search(rf"\b{name}\b", source), f"{name} in {path}"


def _resolves(name: str, repo: Path) -> bool:
    """Whether a dotted name is a module or folder of the checkout, or is bound or mentioned in one."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        folder = repo.joinpath(*parts[:length])
        module = folder.with_suffix(".py") if length > 1 else folder / "__init__.py"
        if not module.is_file():
            module = folder / "__init__.py"
        if length == len(parts) and (module.is_file() or folder.is_dir()):
            return True
        if module.is_file():
            source = module.read_text(encoding="utf-8")
            return all(re.search(rf"\b{part}\b", source) for part in parts[length:])
    return False


def test_pictures_are_used_and_described(repo_dir: Path) -> None:
    shown = set()
    for page in pages(repo_dir):
        source = without_code(page.read_text(encoding="utf-8"))
        for text, target in re.findall(r"!\[([^\]]*)\]\(([^)\s]+)\)", source):
            assert len(text) > 20, f"{page.name}: {target} needs a description"
            shown.add((page.parent / target).resolve())
        for tag in re.findall(r"<img\b[^>]*>", source):
            text, target = (re.search(rf"\b{name}=\"([^\"]*)\"", tag) for name in ("alt", "src"))
            assert text and len(text[1]) > 20 and target, f"{page.name}: {tag}"
            assert re.search(r"\bwidth=", tag), f"{page.name}: {tag} needs a width, to fit the page on GitHub"
            shown.add((page.parent / target[1]).resolve())
    files = {p.resolve() for p in (repo_dir / "docs" / "images").iterdir() if p.suffix in _PICTURES}
    assert files <= shown, "unused: " + ", ".join(sorted(p.name for p in files - shown))


def test_every_page_is_in_the_navigation(repo_dir: Path) -> None:
    def named(entry: object) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        values = entry.values() if isinstance(entry, dict) else entry
        assert isinstance(values, list | type({}.values()))
        return [name for value in values for name in named(value)]

    navigation = named(yaml.safe_load((repo_dir / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    existing = {page.relative_to(repo_dir / "docs").as_posix() for page in (repo_dir / "docs").rglob("*.md")}
    assert {name for name in navigation if not name.startswith("source/")} == existing
    assert len(navigation) == len(set(navigation))


class _Fetches(HTMLParser):
    """Collects the URLs that a browser fetches to show a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "link" and not _NEEDED & set((values.get("rel") or "").split()):
            return
        if tag in _FETCHED and (value := values.get(_FETCHED[tag])):
            self.found.append(value)


def test_site_builds_without_external_resources(repo_dir: Path, tmp_path: Path) -> None:
    for package in ("mkdocs", "material"):
        if importlib.util.find_spec(package) is None:
            pytest.skip("MkDocs is not installed: pip install -e '.[docs]'")
    site = tmp_path / "site"
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(build, cwd=repo_dir, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    built = sorted(site.rglob("*.html"))
    assert len(built) >= len(list((repo_dir / "docs").rglob("*.md")))
    for page in built:
        reader = _Fetches()
        reader.feed(page.read_text(encoding="utf-8"))
        external = [url for url in reader.found if urlsplit(url).netloc]
        assert not external, f"{page.relative_to(site)} fetches {external}"
        missing = [url for url in reader.found if page.name != "404.html" and not _exists(page, url)]
        assert not missing, f"{page.relative_to(site)} has no {missing}"
    for sheet in site.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        assert not re.search(r"@import|url\([\"']?https?:", text), sheet


def _exists(page: Path, url: str) -> bool:
    return url.startswith("data:") or (page.parent / unquote(urlsplit(url).path)).exists()
