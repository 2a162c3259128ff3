"""Parses file names that follow the Universal Category System (UCS), as most commercial sound libraries do.

    CatID(-UserCategory)_(VendorCategory-)FXName_CreatorID_SourceID(_UserData).wav

Categories are those of the UCS list 8.2.1; data/ucs-8.2.1.tsv names its source and licence.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib import resources
from pathlib import PurePosixPath, PureWindowsPath

LIST = "ucs-8.2.1.tsv"
_MAX_NAME = 1_000  # characters of a name that are parsed
_PLACEHOLDER = "none"  # the convention's placeholder for an empty block


@dataclass(frozen=True)
class Category:
    """A category of the list: "DOORWood" is DOORS, WOOD. `synonyms` are in lower case."""

    cat_id: str
    category: str
    subcategory: str
    synonyms: tuple[str, ...]


@dataclass(frozen=True)
class UcsName:
    """The blocks of a file name. Missing blocks and those with NONE are empty.

    creator and source are abbreviations chosen by their owners; user_data is free text.
    """

    category: Category
    user_category: str = ""
    vendor_category: str = ""
    fx_name: str = ""
    creator: str = ""
    source: str = ""
    user_data: str = ""

    def tags(self) -> dict[str, str]:
        """The blocks as metadata, without empty ones; see docs/guide/library.md."""
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
    """The list of categories by CatID."""
    text = (resources.files("app") / "data" / LIST).read_text(encoding="utf-8")
    rows = (line.split("\t") for line in text.splitlines() if line and not line.startswith("#"))
    return {row[0]: Category(row[0], row[1], row[2], tuple(row[3].split(",")) if row[3] else ()) for row in rows}


def parse(filename: str) -> UcsName | None:
    """Parses a file name; None if it does not follow the convention.

    Folders and the extension are ignored. The first block must be a CatID of the list, case-sensitive, and another
    block must follow. Since CatIDs in capitals (RAIN, TEST, MIX) are ordinary words too, they require all four blocks.
    """
    blocks = _stem(filename[-_MAX_NAME:]).split("_", 4)
    head, dash, user_category = blocks[0].partition("-")
    category = categories().get(head)
    if category is None or len(blocks) < 2 or not blocks[1].strip() or (dash and not user_category.strip()):
        return None
    if head.isupper() and (len(blocks) < 4 or not all(block.strip() for block in blocks[:4])):
        return None
    texts = [_block_text(block) for block in blocks[1:]]
    texts += [""] * (4 - len(texts))
    vendor, dash, rest = texts[0].partition("-")
    return UcsName(
        category=category,
        user_category=_block_text(user_category),
        vendor_category=vendor.strip() if dash and rest.strip() else "",
        fx_name=texts[0],
        creator=texts[1],
        source=texts[2],
        user_data=texts[3],
    )


def _block_text(block: str) -> str:
    text = block.strip()
    return "" if text.lower() == _PLACEHOLDER else text


def _stem(filename: str) -> str:
    """The name without folders (POSIX or Windows) and without a file extension."""
    name = PurePosixPath(PureWindowsPath(filename).name).name
    stem, dot, ending = name.rpartition(".")
    return stem if dot and ending.isalnum() and len(ending) <= 5 and not ending.isdigit() else name
