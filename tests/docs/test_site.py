"""The documentation holds together: the site builds without a warning, links lead somewhere, all of it is ours."""

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
    """The anchor of a heading, as forges and the site make it."""
    words = re.sub(r"[^\w\s-]", "", re.sub(r"[`*]|\]\([^)]*\)", "", heading).strip().lower())
    return re.sub(r"\s", "-", words)


def anchors(page: Path) -> set[str]:
    """All places in a page that a link can lead to."""
    source = re.sub(r"^ *```.*?^ *```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    places = {anchor(heading) for heading in re.findall(r"^#+ +(.*?) *#*$", source, re.MULTILINE)}
    return places | set(re.findall(r"\bid=\"([^\"]+)\"", source))


def pages(repo: Path) -> list[Path]:
    """README, the changelog and every page."""
    return [repo / "README.md", repo / "CHANGELOG.md", *sorted((repo / "docs").rglob("*.md"))]


def test_links_lead_somewhere(repo_dir: Path) -> None:
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
                wrong.append(f"{page.relative_to(repo_dir)}: {link} is not there")
            elif parts.fragment and unquote(parts.fragment) not in anchors(target):
                wrong.append(f"{page.relative_to(repo_dir)}: {link} has no such heading")
    assert not wrong, "\n".join(wrong)
    assert seen > 50


def test_pages_speak_of_files_that_are_there(repo_dir: Path) -> None:
    """Paths of the checkout in inline code, as `app/export/formats.py`."""
    roots = "app|model|index|training|tests|benchmarks|checkpoints|demo|docs|docker"
    path = re.compile(rf"`((?:{roots})/[\w./-]+?\.(?:py|md|ya?ml|jsonl|csv|tsv|json|png|js|css|html))`")
    wrong = [
        f"{page.relative_to(repo_dir)}: {name}"
        for page in pages(repo_dir)
        for name in path.findall(page.read_text(encoding="utf-8"))
        if not (repo_dir / name).exists()
    ]
    assert not wrong, "\n".join(wrong)


def test_pictures_are_shown_and_described(repo_dir: Path) -> None:
    shown = set()
    for page in pages(repo_dir):
        source = without_code(page.read_text(encoding="utf-8"))
        for text, target in re.findall(r"!\[([^\]]*)\]\(([^)\s]+)\)", source):
            assert len(text) > 20, f"{page.name}: {target} needs a description"
            shown.add((page.parent / target).resolve())
        for tag in re.findall(r"<img\b[^>]*>", source):
            text, target = (re.search(rf"\b{name}=\"([^\"]*)\"", tag) for name in ("alt", "src"))
            assert text and len(text[1]) > 20 and target, f"{page.name}: {tag}"
            assert re.search(r"\bwidth=", tag), f"{page.name}: {tag} needs a width, so that it also fits a forge's page"
            shown.add((page.parent / target[1]).resolve())
    kept = {p.resolve() for p in (repo_dir / "docs" / "images").iterdir() if p.suffix in _PICTURES}
    assert kept <= shown, "nobody shows " + ", ".join(sorted(p.name for p in kept - shown))


def test_every_page_is_in_the_navigation(repo_dir: Path) -> None:
    def named(entry: object) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        values = entry.values() if isinstance(entry, dict) else entry
        assert isinstance(values, list | type({}.values()))
        return [name for value in values for name in named(value)]

    navigation = named(yaml.safe_load((repo_dir / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    there = {page.relative_to(repo_dir / "docs").as_posix() for page in (repo_dir / "docs").rglob("*.md")}
    assert {name for name in navigation if not name.startswith("source/")} == there
    assert len(navigation) == len(set(navigation))


class _Fetches(HTMLParser):
    """Collects what a browser fetches to show a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "link" and not _NEEDED & set((values.get("rel") or "").split()):
            return
        if tag in _FETCHED and (value := values.get(_FETCHED[tag])):
            self.found.append(value)


def test_the_site_builds_and_needs_nothing_from_outside(repo_dir: Path, tmp_path: Path) -> None:
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
        outside = [url for url in reader.found if urlsplit(url).netloc]
        assert not outside, f"{page.relative_to(site)} fetches {outside}"
        lost = [url for url in reader.found if page.name != "404.html" and not _lies(page, url)]
        assert not lost, f"{page.relative_to(site)} has no {lost}"
    for sheet in site.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        assert not re.search(r"@import|url\([\"']?https?:", text), sheet


def _lies(page: Path, url: str) -> bool:
    return url.startswith("data:") or (page.parent / unquote(urlsplit(url).path)).exists()
