"""Two rankings of the same library made one, by reciprocal rank fusion (Cormack, Clarke, Büttcher, SIGIR 2009).

Knows hits and their order; neither what ranked them nor their scores, which cannot be compared.
"""

from __future__ import annotations

from collections.abc import Sequence

from index import Hit

_K = 60  # of the paper: how little the first places differ


def fuse(rankings: Sequence[Sequence[Hit]]) -> list[Hit]:
    """All hits of the rankings, each once, best first: by the sum of 1 / (60 + rank) over the rankings it is in.

    Equal sums come in order of similarity. Of a clip that is in several rankings the first one's hit is kept.
    """
    sums: dict[str, float] = {}
    hits: dict[str, Hit] = {}
    for ranking in rankings:
        for rank, hit in enumerate(ranking, start=1):
            sums[hit.clip.id] = sums.get(hit.clip.id, 0.0) + 1 / (_K + rank)
            hits.setdefault(hit.clip.id, hit)
    return sorted(hits.values(), key=lambda hit: (-sums[hit.clip.id], -hit.similarity))
