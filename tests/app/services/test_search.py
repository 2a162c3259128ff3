"""Reciprocal rank fusion, against its formula."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from app.services.search import fuse
from index.records import Clip, Hit


def hit(number: int, similarity: float = 0.5) -> Hit:
    return Hit(Clip(str(number), f"{number}.wav", "", 1.0, 16_000, 1, "", {}), similarity)


@given(st.lists(st.lists(st.integers(0, 12), unique=True, max_size=10), max_size=3))
def test_fused_order_follows_the_formula(rankings: list[list[int]]) -> None:
    fused = [int(h.clip.id) for h in fuse([[hit(n, 1 - n / 100) for n in ranking] for ranking in rankings])]
    sums = {n: sum(1 / (61 + r.index(n)) for r in rankings if n in r) for r in rankings for n in r}
    assert fused == sorted(sums, key=lambda n: (-sums[n], n))


def test_hits_in_both_rankings_come_first() -> None:
    assert [h.clip.id for h in fuse([[hit(1), hit(2), hit(3)], [hit(4), hit(3)]])][0] == "3"
    assert fuse([]) == [] and [h.clip.id for h in fuse([[hit(1), hit(2)], []])] == ["1", "2"]
