"""File names after the Universal Category System (UCS), as most commercial sound libraries have them.

    CatID(-UserCategory)_(VendorCategory-)FXName_CreatorID_SourceID(_UserData).wav

The names of the categories are those of the UCS list 8.2.1 (its source and licence stand in data/ucs-8.2.1.tsv). Knows
names only, no files.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib import resources
from pathlib import PurePosixPath, PureWindowsPath

LIST = "ucs-8.2.1.tsv"
_LONGEST = 1_000  # characters of a name worth reading
_PLACEHOLDER = "none"  # what the convention writes where there is nothing to say


@dataclass(frozen=True)
class Category:
    """An entry of the list: "DOORWood" is DOORS, WOOD. `synonyms` are lower-case words that people use for it."""

    cat_id: str
    category: str
    subcategory: str
    synonyms: tuple[str, ...]


@dataclass(frozen=True)
class UcsName:
    """What a file name says. Blocks that are not there, or say NONE, are empty.

    creator and source are abbreviations of their owners' choice; user_data is free.
    """

    category: Category
    user_category: str = ""
    vendor_category: str = ""
    fx_name: str = ""
    creator: str = ""
    source: str = ""
    user_data: str = ""

    def tags(self) -> dict[str, str]:
        """As metadata; see docs/library.md. Only what is there."""
        values = {
            "category": self.category.category,
            "subcategory": self.category.subcategory,
            "cat_id": self.category.cat_id,
            "user_category": self.user_category,
            "vendor_category": self.vendor_category,
            "fx_name": self.fx_name,
            "creator": self.creator,
            "source": self.source,
            "user_data": self.user_data,
        }
        return {name: value for name, value in values.items() if value}


@functools.cache
def categories() -> dict[str, Category]:
    """The whole list, by CatID."""
    text = (resources.files("app") / "data" / LIST).read_text(encoding="utf-8")
    rows = (line.split("\t") for line in text.splitlines() if line and not line.startswith("#"))
    return {row[0]: Category(row[0], row[1], row[2], tuple(row[3].split(",")) if row[3] else ()) for row in rows}


def parse(filename: str) -> UcsName | None:
    """What a file name says by the convention; None for any other name.

    Folders and the ending are left away. The first block must be a CatID of the list, in its own case, and another
    block must follow. CatIDs all in capitals (RAIN, TEST, MIX) are ordinary words too: with those all four blocks must
    be there.
    """
    blocks = _stem(filename[-_LONGEST:]).split("_", 4)
    head, dash, user_category = blocks[0].partition("-")
    category = categories().get(head)
    if category is None or len(blocks) < 2 or not blocks[1].strip() or (dash and not user_category.strip()):
        return None
    if head.isupper() and (len(blocks) < 4 or not all(block.strip() for block in blocks[:4])):
        return None
    texts = [_said(block) for block in blocks[1:]]
    texts += [""] * (4 - len(texts))
    vendor, dash, rest = texts[0].partition("-")
    return UcsName(
        category=category,
        user_category=_said(user_category),
        vendor_category=vendor.strip() if dash and rest.strip() else "",
        fx_name=texts[0],
        creator=texts[1],
        source=texts[2],
        user_data=texts[3],
    )


def _said(block: str) -> str:
    text = block.strip()
    return "" if text.lower() == _PLACEHOLDER else text


def _stem(filename: str) -> str:
    """The name without folders, of either system's, and without what looks like a file's ending."""
    name = PurePosixPath(PureWindowsPath(filename).name).name
    stem, dot, ending = name.rpartition(".")
    return stem if dot and ending.isalnum() and len(ending) <= 5 and not ending.isdigit() else name
