"""Sequences of moments, against every combination of them."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from app.services.moments import find_sequences, follows
from model.detection import Moment


@st.composite
def _moments(draw: st.DrawFn) -> list[Moment]:
    """Moments of one sound: disjoint, on a grid of half seconds, with coarse scores."""
    edges = sorted(draw(st.sets(st.integers(0, 24), max_size=8)))
    return [
        Moment(start / 2, end / 2, draw(st.integers(0, 10)) / 10)
        for start, end in zip(edges[::2], edges[1::2], strict=False)
    ]


@given(st.lists(_moments(), min_size=1, max_size=3), st.sampled_from([0.0, 0.5, 2.0]))
def test_sequences_against_every_combination(tracks: list[list[Moment]], max_gap: float) -> None:
    every = [
        chain
        for chain in itertools.product(*tracks)
        if all(follows(one, two, max_gap) for one, two in itertools.pairwise(chain))
    ]
    found = find_sequences(tracks, max_gap)
    assert set(found) <= set(every)
    scores = [min(part.score for part in chain) for chain in found]
    assert scores == sorted(scores, reverse=True)
    assert (scores[:1] or [None]) == [max((min(p.score for p in c) for c in every), default=None)]
    for one, two in itertools.combinations(found, 2):
        assert one[-1].end <= two[0].start or two[-1].end <= one[0].start
    if len(tracks) == 1:
        assert sorted(found, key=lambda chain: chain[0].start) == [(moment,) for moment in tracks[0]]
    for chain in every:  # each chain is found, or overlaps a found one that is at least as good
        good = min(part.score for part in chain)
        assert any(
            min(p.score for p in other) >= good
            and not (other[-1].end <= chain[0].start or chain[-1].end <= other[0].start)
            for other in found
        )


def test_follows() -> None:
    first = Moment(2, 4, 1)
    assert follows(first, Moment(4, 5, 1), 0) and follows(first, Moment(3.5, 5, 1), 0)
    assert follows(first, Moment(6, 7, 1), 2) and not follows(first, Moment(6, 7, 1), 1.9)
    assert not follows(first, Moment(3, 5, 1), 9), "half of it is at the same time"
    assert not follows(first, Moment(0, 1, 1), 9) and not follows(Moment(0, 0.3, 1), Moment(0, 0.4, 1), 9)
