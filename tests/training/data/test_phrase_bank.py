"""Cluster-based negative sampling (Algorithm 1), banks on disk, and captions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.data.phrase_bank import SHIPPED, PhraseBank, PhraseError, caption_of, phrased

CLUSTERS = [[f"c{i}p{j}" for j in range(1 + i % 4)] for i in range(40)]
BANK = PhraseBank(CLUSTERS)


@given(st.lists(st.sampled_from(sorted(BANK.cluster_of)), min_size=1, max_size=6), st.integers(0, 2**32 - 1))
def test_no_negative_shares_a_cluster_with_a_positive(positives: list[str], seed: int) -> None:
    negatives = BANK.negatives(positives, 20, np.random.default_rng(seed))
    clusters = [BANK.cluster_of[n] for n in negatives]
    assert len(negatives) == 20 and len(set(clusters)) == 20
    assert not set(clusters) & {BANK.cluster_of[p] for p in positives}


def test_too_few_clusters_give_fewer_negatives() -> None:
    assert len(PhraseBank([["a"], ["b"], ["c"]]).negatives(["a"], 10, np.random.default_rng(0))) == 2


def test_alternatives_stay_in_their_cluster() -> None:
    rng = np.random.default_rng(0)
    drawn = {BANK.alternative("c3p0", rng) for _ in range(200)}
    assert drawn == set(CLUSTERS[3])


def test_bank_reads_and_writes_the_published_form(tmp_path: Path) -> None:
    BANK.write(tmp_path / "bank.jsonl")
    assert PhraseBank.read(tmp_path / "bank.jsonl").clusters == BANK.clusters


def test_the_published_bank_is_read(shared_dir: Path) -> None:
    bank = PhraseBank.read(shared_dir / "reference" / "phrase_bank.jsonl")
    assert len(bank.clusters) == 494
    # Three phrases are in two clusters, neither of which may provide negatives for the other.
    rng = np.random.default_rng(0)
    everything = bank.negatives(["Bell"], 1000, rng)
    assert "Bell" not in everything and len(everything) == len(set(everything)) == 490


def slow_clusters(bank: PhraseBank, phrase: str) -> set[str]:
    """Phrases that share a cluster with `phrase`, transitively, computed without the bank's tables."""
    found = {phrase}
    while more := {p for c in bank.clusters if found & set(c) for p in c} - found:
        found |= more
    return found


@pytest.mark.parametrize("name", ["shipped", "published", "overlapping"])
def test_algorithm_1_over_10_000_draws(name: str, request: pytest.FixtureRequest) -> None:
    if name == "shipped":
        bank = PhraseBank.read(SHIPPED)
    elif name == "published":
        bank = PhraseBank.read(request.getfixturevalue("shared_dir") / "reference" / "phrase_bank.jsonl")
    else:
        bank = PhraseBank([[f"p{i}", f"p{i + 1}" if i % 9 == 0 else f"q{i}"] for i in range(60)])
    cluster = {phrase: slow_clusters(bank, phrase) for phrase in bank.cluster_of}
    every, rng, swapped = sorted(cluster), np.random.default_rng(7), 0
    for _ in range(10_000):
        positives = [every[i] for i in rng.choice(len(every), rng.integers(1, 7), replace=False)]
        total = int(rng.integers(len(positives), 31))
        phrases, count = bank.sample(positives, total, rng, swap=0.3)
        chosen, negatives = phrases[:count], phrases[count:]
        assert len(phrases) == len(set(phrases)) == total and count == len(positives)
        assert all(a in cluster[p] for a, p in zip(chosen, positives, strict=True))
        forbidden = set().union(*(cluster[p] for p in positives))
        assert not forbidden & set(negatives)
        assert len({min(cluster[n]) for n in negatives}) == len(negatives)
        swapped += chosen != positives
    assert swapped > 1000


def test_sampling_is_reproducible_and_swaps_only_on_request() -> None:
    first, second = (BANK.sample(["c3p0", "c7p1"], 20, np.random.default_rng(5)) for _ in range(2))
    assert first == second
    assert BANK.sample(["c3p0"], 20, np.random.default_rng(0), swap=0)[0][0] == "c3p0"
    assert BANK.sample(["c3p0"], 20, np.random.default_rng(0), swap=1)[0][0] in {"c3p1", "c3p2", "c3p3"}


@pytest.mark.parametrize(
    ("positives", "total", "message"),
    [
        (["no such"], 20, "unknown phrase 'no such'"),
        (["c0p0", "c1p0"], 1, "2 positives exceed the 1"),
        (["c0p0", "c0p0"], 20, "occurs twice"),
        (["c0p0"], 41, "40 negatives requested, but only 39"),
    ],
)
def test_impossible_samples_are_rejected(positives: list[str], total: int, message: str) -> None:
    with pytest.raises(PhraseError, match=message):
        BANK.sample(positives, total, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"phrase": "a"}', "line 2: no 'alternatives'"),
        ('{"phrase": "a", "alternatives": [" "]}', "line 2: an empty phrase"),
        ('{"phrase": "a", "alternatives": "b"}', "line 2: want"),
        ("{", "line 2: Expecting"),
    ],
)
def test_invalid_bank_lines_are_reported(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "bank.jsonl"
    file.write_text('{"phrase": "x", "alternatives": ["x"]}\n' + line)
    with pytest.raises(PhraseError, match=message):
        PhraseBank.read(file)


def test_empty_phrases_and_banks_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(PhraseError, match="an empty phrase"):
        PhraseBank([["a", " "]])
    (tmp_path / "bank.jsonl").write_text("")
    with pytest.raises(PhraseError, match="no phrases"):
        PhraseBank.read(tmp_path / "bank.jsonl")


def test_the_bundled_bank_contains_each_phrase_once() -> None:
    bank = PhraseBank.read(SHIPPED)
    phrases = [p.casefold() for cluster in bank.clusters for p in cluster]
    assert len(phrases) == len(set(phrases)) and len(bank.clusters) > 500
    assert bank.cluster_of["Bark"] == bank.cluster_of["Dog"] != bank.cluster_of["Cat"]
    assert (SHIPPED.parent / "phrase_bank.SOURCE.md").is_file()


def test_new_phrases_join_the_nearest_cluster_and_known_ones_their_own() -> None:
    axes = {"dog": [1, 0], "bell": [0, 1], "hound": [0.8, 0.6], "gong": [0.6, 0.8]}
    embed = lambda texts: np.array([axes[t] for t in texts])  # noqa: E731
    bank, cosines = PhraseBank([["dog", "chime"], ["bell"]]).extended(["gong", "hound", "CHIME", "bell"], embed)
    assert bank.clusters == [("dog", "chime", "hound", "CHIME"), ("bell", "gong")]
    assert cosines == {"gong": 0.8, "hound": 0.8}


def test_phrases_go_to_the_nearest_centroid() -> None:
    axes = {"dog": [1, 0], "bell": [0, 1], "puppy": [0.9, 0.1], "chime": [0.2, 0.98]}
    embed = lambda texts: np.array([axes[t] for t in texts])  # noqa: E731
    bank = PhraseBank.assign(["puppy", "chime", "puppy"], ["dog", "bell"], embed)
    assert bank.clusters == [("puppy",), ("chime",)]


def test_captions_name_every_sound() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        assert "dog" in phrased("dog", rng)
        caption = caption_of(["dog", "rain", "bell"], rng)
        assert all(word in caption for word in ("dog", "rain", "bell"))
