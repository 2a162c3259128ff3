"""What MkDocs does not do by itself: pages may link to files of the checkout outside of docs/, as they do on a forge.

Such a file becomes part of the site, under source/ and its path in the checkout, and links to it are moved there.
Knows MkDocs' hooks; knows nothing of what the pages say. A link to a file that is not there is left as it is, so that
MkDocs warns of it.
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
    """Adds the files outside of docs/ that a page links to, and those that the navigation names."""
    repo = Path(config["config_file_path"]).parent
    wanted = {name for entry in config["nav"] for name in _named(entry)}
    for file in list(files.documentation_pages()):
        for _, target, _ in _LINK.findall(_CODE.sub("", file.content_string)):
            wanted.add(_place(file.src_uri, target))
    for uri in sorted(wanted):
        source = repo / uri.removeprefix(_FOLDER + "/")
        if uri.startswith(_FOLDER + "/") and source.is_file():
            files.append(File.generated(config, uri, abs_src_path=str(source)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """The page with its links to those files moved."""
    here = page.file.src_uri
    if here.startswith(_FOLDER + "/"):
        return markdown

    def moved(link: re.Match[str]) -> str:
        place = _place(here, link[2])
        if files.get_file_from_path(place) is None:
            return link[0]
        return link[1] + posixpath.relpath(place, posixpath.dirname(here) or ".") + link[3]

    return _LINK.sub(moved, markdown)


def _place(page: str, target: str) -> str:
    """Where in the site a link of a page to a file of the checkout leads."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), target))
    return f"{_FOLDER}/{path}"


def _named(entry: Any) -> list[str]:
    """The files that a part of the navigation names."""
    if isinstance(entry, str):
        return [entry]
    values = entry.values() if isinstance(entry, dict) else entry
    return [name for value in values for name in _named(value)]
