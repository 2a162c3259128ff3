"""The ranking of a search, against slow references: every clip and segment compared, every word looked up."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.inference.engine import Engine
from app.services.ranking import WEIGHTS, Mode, Part, Query, Ranking, logit_of, sound_logits
from app.services.words import QueryWords, coverage
from index import Clip, Library, SqliteLibrary
from index.quantization import encode_frames
from index.segments import cut_segments
from model.concepts.head import Direction, HeadScores, Scores
from model.config import MatchingConfig
from tests.support.clips import DIM, make_clip, unit

PAIR, SEGMENT, SOUND = (0.1, -5.0), (0.2, -2.0), (0.3, -1.0)
HEAD = HeadScores(Scores(0.25, -0.5), Scores(0.15, 0.5), Scores(0.1, 0.0))  # of a concept


def make_state(model: Any, library: Library, matching: MatchingConfig | None) -> Any:
    """What a ranking uses of the service's state, without threads."""

    async def call(function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    model.config = replace(model.config, matching=matching)
    metrics = SimpleNamespace(vector_search=contextlib.nullcontext)
    return SimpleNamespace(engine=Engine(model), library=library, read=call, compute=call, metrics=metrics)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A library of 60 clips: some are named "dog" or "dog bark"; and the segments of each clip by id."""
    folder: Path = tmp_path_factory.mktemp("ranking")
    rng = np.random.default_rng(8)
    news = [
        make_clip(
            i,
            frames=unit(rng.standard_normal((1 + i % 9, DIM))),
            filename=f"{['dog', 'bark', 'x'][i % 3]} {i}.wav",
            duration=5.0 if i % 4 else 60.0,
        )
        for i in range(60)
    ]
    with SqliteLibrary.open(folder, dim=DIM, checkpoint="c") as library:
        added = [clip for clip, _ in library.add_many(news)]
        segments = [cut_segments(encode_frames(new.frames), new.frame_hop).decode() for new in news]
        yield library, added, [new.embedding for new in news], segments


def reference(
    clips: Any, vector: np.ndarray, whole: tuple[float, float], part: tuple[float, float]
) -> dict[str, float]:
    """The logits of all clips, from every clip and every segment of clips over ten seconds."""
    _, added, embeddings, segments = clips
    return {
        clip.id: max(
            float(embedding @ vector) / whole[0] + whole[1],
            float((own @ vector).max()) / part[0] + part[1] if clip.duration > 10 else -np.inf,
        )
        for clip, embedding, own in zip(added, embeddings, segments, strict=True)
    }


@settings(max_examples=60)
@given(seed=st.integers(0, 10_000), depth=st.integers(1, 70), matching=st.booleans(), sound=st.booleans())
def test_the_merged_ranking_is_that_of_the_best_of_clip_and_segments(
    clips: Any, seed: int, depth: int, matching: bool, sound: bool
) -> None:
    from tests.app.conftest import FakeModel

    vector = unit(np.random.default_rng(seed).standard_normal(DIM))
    state = make_state(FakeModel(), clips[0], MatchingConfig(0.5, SEGMENT, SOUND) if matching else None)
    pairs = (PAIR, PAIR) if not matching else (SOUND, SOUND) if sound else (PAIR, SEGMENT)
    ranking = Ranking(state, Query((Part(vector, sound),)), "semantic", None)
    ranked = asyncio.run(ranking.best(depth))
    expected = reference(clips, vector, *pairs)
    best = sorted(expected.values(), reverse=True)[:depth]
    assert [item.logit for item in ranked[:depth]] == pytest.approx(best, abs=0.02), "segments are rounded to float16"
    assert len(ranked) >= min(depth, 60) and ranking.exhausted == (depth > 60)
    for item in asyncio.run(ranking.complete(ranked)):
        own = clips[2][[clip.id for clip in clips[1]].index(item.clip_id)]
        assert item.similarity == pytest.approx(float(own @ vector), abs=1e-5)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    mode=st.sampled_from(["semantic", "hybrid", "lexical"]),
    depths=st.tuples(st.integers(1, 12), st.integers(12, 70)),
    cutoff=st.floats(0.01, 0.9),
    kind=st.sampled_from(["text", "sound", "concept"]),
    known=st.booleans(),
    rank=st.none() | st.integers(0, 10),
)
def test_matches_are_counted_as_a_deep_ranking_has_them(
    clips: Any, seed: int, mode: Mode, depths: tuple[int, int], cutoff: float, kind: str, known: bool, rank: int | None
) -> None:
    from tests.app.conftest import FakeModel

    state = make_state(FakeModel(), clips[0], MatchingConfig(cutoff, SEGMENT, SOUND))
    vector = unit(np.random.default_rng(seed).standard_normal(DIM))
    words = QueryWords("dog bark", False, ("dog", "bark"), (0.7, 0.3), known) if kind == "text" else None
    directions = (Direction(vector, HEAD),) if kind == "concept" else ()
    query = Query((Part(vector, kind == "sound", directions),), words=words)

    def matches(*depths: int) -> tuple[Ranking, set[str]]:
        """A ranking, deeper and deeper, and the matches found."""
        ranking = Ranking(state, query, mode, None)
        ranked = [item for depth in depths for item in asyncio.run(ranking.best(depth))]
        return ranking, {item.clip_id for item in ranked if ranking.is_match(item)}

    ranked = sorted(asyncio.run(Ranking(state, query, mode, None).best(70)), key=lambda item: -item.logit)
    if rank is not None and ranked:  # this clip is at the cutoff
        cutoff = min(max(ranked[min(rank, len(ranked) - 1)].score, 1e-6), 1 - 1e-6)
        state.engine.matching = replace(state.engine.matching, cutoff=cutoff)
    at_cutoff = {item.clip_id for item in ranked if abs(item.logit - logit_of(cutoff)) < 1e-4}  # cosines are float32
    ranking, found = matches(depths[0])
    found |= asyncio.run(ranking.matching(depths[1]))
    expected = matches(*depths)[1]
    enough = len(found) >= depths[1] and found <= expected | at_cutoff  # words are not read then
    assert found ^ expected <= at_cutoff or enough


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), depth=st.integers(1, 70), count=st.integers(2, 4))
def test_the_best_direction_of_a_concept_counts(clips: Any, seed: int, depth: int, count: int) -> None:
    from tests.app.conftest import FakeModel

    vectors = unit(np.random.default_rng(seed).standard_normal((count, DIM)))
    other = HeadScores(Scores(0.3, 0.1), Scores(0.2, -0.4), Scores(0.1, 0.0))
    directions = tuple(Direction(one, HEAD if n else other) for n, one in enumerate(vectors))
    state = make_state(FakeModel(), clips[0], MatchingConfig(0.5, SEGMENT, SOUND))
    ranking = Ranking(state, Query((Part(unit(vectors.sum(axis=0)), directions=directions),)), "semantic", None)
    ranked = asyncio.run(ranking.best(depth))
    pairs = [
        ((o.scores.clip.temp, o.scores.clip.bias), (o.scores.segment.temp, o.scores.segment.bias)) for o in directions
    ]
    each = [reference(clips, one.vector, *own) for one, own in zip(directions, pairs, strict=True)]
    expected = {clip_id: max(logits[clip_id] for logits in each) for clip_id in each[0]}
    best = sorted(expected.values(), reverse=True)[:depth]
    assert [item.logit for item in ranked[:depth]] == pytest.approx(best, abs=0.02), "segments are rounded to float16"
    common = ranking._query.vector
    for item in asyncio.run(ranking.complete(ranked[:depth])):
        own = clips[2][[clip.id for clip in clips[1]].index(item.clip_id)]
        assert item.similarity == pytest.approx(float(own @ common), abs=1e-5)


@pytest.mark.parametrize("depth", [7, 60, 100])
def test_words_add_to_the_logit_of_the_sound(clips: Any, fake_model: Any, depth: int) -> None:
    library, added, _, _ = clips
    vector = unit(np.random.default_rng(1).standard_normal(DIM))
    words = QueryWords("dog bark", False, ("dog", "bark"), (0.7, 0.3), True)
    query = Query((Part(vector),), words=words)
    ranked = asyncio.run(Ranking(make_state(fake_model, library, None), query, "hybrid", None).best(depth))
    expected = reference(clips, vector, PAIR, PAIR)
    for number, clip in enumerate(added):
        expected[clip.id] += WEIGHTS.words * (0.7, 0.3, 0)[number % 3]
    assert [item.logit for item in ranked] == sorted((item.logit for item in ranked), reverse=True)
    exact = [item for item in ranked if item.coverage or depth >= 60]
    assert exact and all(item.logit == pytest.approx(expected[item.clip_id], abs=0.03) for item in exact)
    lexical = asyncio.run(Ranking(make_state(fake_model, library, None), query, "lexical", None).best(depth))
    assert [item.clip_id for item in lexical] == [h.clip.id for h in library.search_words("dog bark", vector, depth)]
    assert all(item.logit == pytest.approx(expected[item.clip_id], abs=0.03) for item in lexical)


def clip(name: str, **metadata: Any) -> Clip:
    return Clip("1", name, "", 1.0, 16_000, 1, "", metadata)


def test_all_words_lift_a_middling_sound_over_a_cutoff_and_half_of_them_do_not(fake_model: Any) -> None:
    words = QueryWords("dog bark", False, ("dog", "bark"), (0.5, 0.5), True)
    columns = (WEIGHTS.name, WEIGHTS.tags, WEIGHTS.others)

    def score(sound: float, clip: Clip) -> float:
        return 1 / (1 + np.exp(-(np.log(sound / (1 - sound)) + WEIGHTS.words * coverage(words, clip, columns))))

    assert score(0.05, clip("BarkingDogs_01.wav")) > 0.7 and score(0.05, clip("x.wav", tags=["dog", "barks"])) > 0.7
    assert score(0.05, clip("x.wav", description="a dog barks")) > 0.5
    assert score(0.05, clip("dog.wav")) < 0.5 and score(0.05, clip("cat.wav")) == pytest.approx(0.05)
    assert score(0.001, clip("dog bark.wav")) < 0.2, "a name does not make a match of what sounds altogether different"


def test_the_parts_of_a_query_are_averaged_and_unwanted_examples_reduce_the_odds(fake_model: Any) -> None:
    state = make_state(fake_model, None, MatchingConfig(0.5, SEGMENT, SOUND))  # type: ignore[arg-type]
    text, sound, unwanted = unit(np.random.default_rng(2).standard_normal((3, DIM)))
    cosines = np.random.default_rng(3).uniform(-1, 1, (5, 2, 3))
    query = Query((Part(text), Part(sound, sound=True)), unlike=unwanted)
    by_text = np.maximum(cosines[:, 0, 0] / PAIR[0] + PAIR[1], cosines[:, 1, 0] / SEGMENT[0] + SEGMENT[1])
    by_sound = cosines[:, :, 1].max(axis=1) / SOUND[0] + SOUND[1]
    unlike = 1 / (1 + np.exp(-(cosines[:, :, 2].max(axis=1) / SOUND[0] + SOUND[1])))
    expected = np.exp((by_text + by_sound) / 2) * (1 - unlike)
    np.testing.assert_allclose(np.exp(sound_logits(state.engine, query, cosines)), expected, rtol=1e-9)
    direction = text + sound - 0.5 * unwanted
    np.testing.assert_allclose(query.vector, direction / np.linalg.norm(direction), rtol=1e-5)


@pytest.mark.parametrize("depth", [5, 100])
def test_several_parts_are_compared_exactly(clips: Any, fake_model: Any, depth: int) -> None:
    library, added, embeddings, _ = clips
    text, sound, unwanted = unit(np.random.default_rng(4).standard_normal((3, DIM)))
    query = Query((Part(text), Part(sound, sound=True)), unlike=unwanted)
    ranking = Ranking(make_state(fake_model, library, MatchingConfig(0.5, SEGMENT, SOUND)), query, "hybrid", None)
    ranked = asyncio.run(ranking.complete(asyncio.run(ranking.best(depth))))
    parts = [reference(clips, text, PAIR, SEGMENT), reference(clips, sound, SOUND, SOUND)]
    unlike = reference(clips, unwanted, SOUND, SOUND)
    for item in ranked:
        expected = (parts[0][item.clip_id] + parts[1][item.clip_id]) / 2 - np.logaddexp(0, unlike[item.clip_id])
        assert item.logit == pytest.approx(expected, abs=0.03)
        own = embeddings[[clip.id for clip in added].index(item.clip_id)]
        assert item.similarity == pytest.approx(float(own @ query.vector), abs=1e-5)


def test_deleted_clips_are_dropped(clips: Any, fake_model: Any) -> None:
    library = clips[0]

    class Deleting:
        """A library from which each clip vanishes after it was found."""

        def __getattr__(self, name: str) -> Any:
            return getattr(library, name)

        def clips(self, ids: Sequence[str]) -> dict[str, Clip]:
            return {}

    gone: Library = Deleting()  # type: ignore[assignment]
    ranking = Ranking(make_state(fake_model, gone, None), Query((Part(clips[2][0]),)), "semantic", None)
    ranked = asyncio.run(ranking.best(5))
    assert len(ranked) >= 5 and asyncio.run(ranking.complete(ranked)) == []
