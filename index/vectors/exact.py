"""The slow, obvious reference that tests compare every faster search with: a dictionary and a NumPy product."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from index.records import nfc


def matches(metadata: dict[str, Any], filter: dict[str, Any] | None, record: dict[str, Any] | None = None) -> bool:
    """Whether a clip passes a valid filter (index.filters). `record`: its record fields, which precede metadata."""
    for key, wanted in (filter or {}).items():
        record = record or {}
        have = record[key] if key in record else metadata.get(key.removeprefix("metadata."))
        have_values = have if isinstance(have, list) else [have]
        if isinstance(wanted, dict):
            if not any(all(_within(value, *bound) for bound in wanted.items()) for value in have_values):
                return False
            continue
        wanted_values = wanted if isinstance(wanted, list) else [wanted]
        if not any(_same(a, b) for a in have_values for b in wanted_values):
            return False
    return True


def _within(value: object, bound: str, limit: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (str if isinstance(limit, str) else (int, float))):
        return False
    compare = {"gt": operator.gt, "gte": operator.ge, "lt": operator.lt, "lte": operator.le}[bound]
    return bool(compare(value, limit))


def _same(a: object, b: object) -> bool:
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    both_numbers = isinstance(a, (int, float)) and isinstance(b, (int, float))
    both_text = isinstance(a, str) and isinstance(b, str)
    return (both_numbers or both_text) and (nfc(a) == nfc(b) if isinstance(a, str) and isinstance(b, str) else a == b)


@dataclass
class ExactLibrary:
    """Clips in memory, in insertion order: unit vectors (D,) and metadata by id."""

    vectors: dict[str, np.ndarray] = field(default_factory=dict)
    metadata: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, clip_id: str, vector: np.ndarray, metadata: dict[str, Any]) -> None:
        self.vectors[clip_id] = vector
        self.metadata[clip_id] = metadata

    def delete(self, clip_id: str) -> None:
        del self.vectors[clip_id]
        del self.metadata[clip_id]

    def passing(self, filter: dict[str, Any] | None = None) -> list[str]:
        """Returns the ids of clips that pass, newest first."""
        return [clip_id for clip_id in reversed(self.vectors) if matches(self.metadata[clip_id], filter)]

    def search(self, query: np.ndarray, k: int, filter: dict[str, Any] | None = None) -> list[tuple[str, float]]:
        """Returns (id, similarity) of the k passing clips most similar to `query` (D,), best first."""
        scored = [(clip_id, float(self.vectors[clip_id] @ query)) for clip_id in self.passing(filter)]
        return sorted(scored, key=lambda pair: -pair[1])[:k]
