"""Changes of clips: of one, or the same of many; and how often each value occurs among clips (facets)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from index.filters import COLUMNS, RECORD_FIELDS
from index.records import Clip, InvalidMetadata, check_text, dump_metadata, merge_patch, metadata_facts, nfc

DURATIONS = (0, 2, 10, 60, 600)  # seconds: the lower ends of the ranges that facets count
Facet = list[tuple[str | int | float, int]]  # values with their numbers of clips, most frequent first


@dataclass(frozen=True)
class ClipEdit:
    """A change of clips, in this order: a JSON merge patch of the metadata, values to remove from lists and to add.

    metadata: the patch (RFC 7396: null removes a key). add, remove: by metadata key. A key without a value counts as an
    empty list and a single value as a list of one; a list that loses its last value goes with its key. filename: the
    new file name.
    """

    metadata: Mapping[str, Any] = field(default_factory=dict)
    add: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    remove: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    filename: str | None = None

    def apply(self, clip: Clip) -> tuple[Clip, str]:
        """The changed clip, and its metadata as JSON. Raises InvalidMetadata."""
        metadata = merge_patch(clip.metadata, dict(self.metadata))
        for key, values in self.remove.items():
            left = [value for value in _listed(metadata.get(key)) if value not in values]
            if left:
                metadata[key] = left if isinstance(metadata[key], list) else left[0]
            else:
                metadata.pop(key, None)
        for key, values in self.add.items():
            if not values:
                continue
            own = _listed(metadata.get(key))
            metadata[key] = own + [value for value in dict.fromkeys(values) if value not in own]
        filename = clip.filename if self.filename is None else check_text(self.filename, "the file name")
        text = dump_metadata(metadata)
        return replace(clip, metadata=json.loads(text), filename=filename), text


def check_patch(changes: object) -> dict[str, Any]:
    """Returns a merge patch. Raises InvalidMetadata if it is not a JSON object."""
    if not isinstance(changes, dict):
        raise InvalidMetadata(f"a metadata patch must be a JSON object, not {type(changes).__name__}")
    dump_metadata(changes)
    return changes


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]


def count_facets(clips: Iterable[Clip], keys: Sequence[str], limit: int) -> dict[str, Facet]:
    """The `limit` most frequent values of each key among clips, ties in the order of the values.

    Keys are those of filters (index.filters); texts and numbers are counted, each value of a list once per clip. Of
    `duration`, the lower end of its range in DURATIONS is counted.
    """
    found: dict[str, Counter[str | int | float]] = {key: Counter() for key in keys}
    for clip in clips:
        facts = {(key, value) for key, kind, value in metadata_facts(clip.metadata) if kind != "boolean"}
        for key, counts in found.items():
            if key == "duration":
                counts[max(low for low in DURATIONS if low <= clip.duration)] += 1
            elif key in RECORD_FIELDS:
                counts[getattr(clip, COLUMNS.get(key, key))] += 1
            else:
                counts.update(value for own, value in facts if own == nfc(key.removeprefix("metadata.")))
    return {
        key: sorted(counts.items(), key=lambda pair: (-pair[1], str(pair[0])))[:limit] for key, counts in found.items()
    }
