"""MkDocs hook: copies the files outside docs/ that pages link to into the site.

Pages may link to any file of the checkout, as they do on GitHub. Each such file is added to the site under `source/`
plus its path in the checkout, and links to it are rewritten. Links to missing files are left unchanged, so MkDocs
warns about them.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

_LINK = re.compile(r"(\]\()(\.\./[^)#\s]+)((?:#[^)\s]*)?\))")
_CODE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
_FOLDER = "source"


def on_files(files: Files, config: Any) -> Files:
    """Add the files outside docs/ that a page or the navigation names."""
    repo = Path(config["config_file_path"]).parent
    wanted = {name for entry in config["nav"] for name in _page_names(entry)}
    for file in list(files.documentation_pages()):
        for _, target, _ in _LINK.findall(_CODE.sub("", file.content_string)):
            wanted.add(_site_path(file.src_uri, target))
    for uri in sorted(wanted):
        source = repo / uri.removeprefix(_FOLDER + "/")
        if uri.startswith(_FOLDER + "/") and source.is_file():
            files.append(File.generated(config, uri, abs_src_path=str(source)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Rewrite the page's links to those files."""
    here = page.file.src_uri
    if here.startswith(_FOLDER + "/"):
        return markdown

    def rewrite(link: re.Match[str]) -> str:
        target = _site_path(here, link[2])
        if files.get_file_from_path(target) is None:
            return link[0]
        return link[1] + posixpath.relpath(target, posixpath.dirname(here) or ".") + link[3]

    return _LINK.sub(rewrite, markdown)


def _site_path(page: str, target: str) -> str:
    """The site path of a link target: a page of docs/, or a file of the checkout under source/."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), target))
    return path.removeprefix("docs/") if path.startswith("docs/") else f"{_FOLDER}/{path}"


def _page_names(entry: Any) -> list[str]:
    """All file names in a part of the navigation."""
    if isinstance(entry, str):
        return [entry]
    values = entry.values() if isinstance(entry, dict) else entry
    return [name for value in values for name in _page_names(value)]
