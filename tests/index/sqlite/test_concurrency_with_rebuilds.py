"""Adds, deletes, updates and every kind of search at once, while the vector index goes to and fro between its states.

What is claimed of an answer, and checked of each: there is one moment between the question and the answer at which

- exact (flat index, few clips, segments, words): it is what an exact search of the library as it then stood gives;
- codes (the approximate index): every hit was there and passed the filter, with its exact similarity, best first, none
  twice, as many as were asked for or there; that a better clip is missing is what codes may do, and it is counted.
"""

from __future__ import annotations

import os
import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from index import NewClip, SqliteLibrary
from index.quantization import encode_frames
from index.segments import cut_segments
from index.vectors.index import Limits
from tests.support.clips import ask_for_hits

SECONDS = float(os.environ.get("FINELAP_CONCURRENCY_SECONDS", "3"))  # at least; for longer runs by hand
PATIENCE = max(180.0, 2 * SECONDS)
CLIPS, K = 200, 5
LOW, HIGH = 10, 140  # clips, between which their number goes up and down
LIMITS = Limits(flat_rows=32, exact_rows=10, spare=20)
PAUSE = 0.002  # seconds between two questions of an asker, so that changes come in between
CHECKED = 30_000  # answers; of more, every so-manieth
ONLY = {"kind": "moving"}
WAYS = {"search exact", "search codes", "search_segments exact", "search_words exact"}
Passing = Callable[[str | None], bool]  # whether a clip of this kind is meant; None: it is not there


@dataclass
class History:
    """One clip's kind (None: not there) after each of its changes, which follow one another."""

    began: list[float] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)
    after: list[str | None] = field(default_factory=list)

    def may_be(self, moment: float, passing: Passing) -> set[bool]:
        """Whether the clip was meant then: both, while a change was made that no one can tell the moment of."""
        done = bisect_left(self.ended, moment)
        found = {passing(self.after[done - 1] if done else None)}
        if done < len(self.began) and self.began[done] <= moment:
            found.add(passing(self.after[done]))
        return found


@dataclass(frozen=True)
class Answer:
    way: str
    began: float
    ended: float
    query: int
    filtered: bool
    found: tuple[int, ...]  # seeds
    similarities: tuple[float, ...]
    exact: bool

    @property
    def kind(self) -> str:
        return f"{self.way} {'exact' if self.exact else 'codes'}"


class Tide:
    """Whether clips mostly come or mostly go, for all changers together: from LOW to HIGH and back."""

    def __init__(self) -> None:
        self.changers: list[Changer] = []
        self.rising = True

    def rises(self) -> bool:
        count = sum(len(changer.ids) for changer in self.changers)
        self.rising = count < HIGH if self.rising else count <= LOW
        return self.rising


class Changer(threading.Thread):
    """Adds, updates and deletes its own clips: mostly adds while the tide rises, then mostly deletes."""

    def __init__(
        self, library: SqliteLibrary, news: dict[int, NewClip], tide: Tide, stop: threading.Event, seed: int
    ) -> None:
        super().__init__(daemon=True)
        self.library, self.news, self.stop, self.tide = library, news, stop, tide
        tide.changers.append(self)
        self.ids: dict[int, str] = {}
        self.choose = np.random.default_rng(seed)
        self.histories = {number: History() for number in news}
        self.problem: BaseException | None = None
        self.counts: Counter[str] = Counter()

    def run(self) -> None:
        ids = self.ids
        try:
            while not self.stop.is_set():
                rising = self.tide.rises()
                absent = [number for number in self.news if number not in ids]
                if not ids or (absent and self.choose.random() < (0.8 if rising else 0.05)):
                    number = int(self.choose.choice(absent))
                    self.change(number, "add", "moving", partial(self.add, number))
                elif self.choose.random() < (0.5 if rising else 0.2):
                    number = int(self.choose.choice(list(ids)))
                    kind = "still" if self.histories[number].after[-1] == "moving" else "moving"
                    update = partial(self.library.update_metadata, ids[number], {"kind": kind})
                    self.change(number, "update", kind, update)
                else:
                    number = int(self.choose.choice(list(ids)))
                    self.change(number, "delete", None, partial(self.library.delete, ids.pop(number)))
        except BaseException as error:
            self.problem = error

    def add(self, number: int) -> None:
        clip, new = self.library.add(self.news[number])
        assert new
        self.ids[number] = clip.id

    def change(self, number: int, verb: str, after: str | None, work: Callable[[], object]) -> None:
        history = self.histories[number]
        history.began.append(time.monotonic())
        history.after.append(after)  # `ended` comes last and is what a reader of it counts by
        work()
        history.ended.append(time.monotonic())
        self.counts[verb] += 1


class Asker(threading.Thread):
    """Asks in every way in turn and writes the answers down."""

    def __init__(self, library: SqliteLibrary, queries: np.ndarray, stop: threading.Event, seed: int) -> None:
        super().__init__(daemon=True)
        self.library, self.queries, self.stop = library, queries, stop
        self.choose = np.random.default_rng(seed)
        self.answers: list[Answer] = []
        self.kinds: set[str] = set()  # of these
        self.problem: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.stop.is_set():
                self.ask(str(self.choose.choice(["search", "search", "search_segments", "search_words"])))
                time.sleep(PAUSE)
        except BaseException as error:
            self.problem = error

    def ask(self, way: str) -> None:
        query, filtered = int(self.choose.integers(len(self.queries))), bool(self.choose.integers(2))
        vector, only = self.queries[query], ONLY if filtered else None
        index = self.library._index
        flat = index._flat
        began = time.monotonic()
        if way == "search_words":
            hits = self.library.search_words("sound", vector, CLIPS, only)
        else:
            found_now = ask_for_hits(self.library, way, vector, K, only)
            if found_now is None:
                return
            hits = found_now
        ended = time.monotonic()
        # one flat index before and after: a flat one that was left does not come back
        exact = way != "search" or (flat is not None and index._flat is flat)
        found = tuple(hit.clip.metadata["seed"] for hit in hits)
        for hit in hits:
            assert hit.clip.filename == f"sound {hit.clip.metadata['seed']}.wav"
            assert not filtered or way == "search" or hit.clip.metadata["kind"] == "moving"
        self.answers.append(Answer(way, began, ended, query, filtered, found, tuple(h.similarity for h in hits), exact))
        self.kinds.add(self.answers[-1].kind)


class Watcher(threading.Thread):
    """Notes the states that the vector index goes through, and how often codes were made."""

    def __init__(self, library: SqliteLibrary, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.index, self.stop = library._index, stop
        self.states = [self.index.state]
        self.codes: list[object] = []

    def run(self) -> None:
        while not self.stop.wait(0.001):
            codes, state = self.index._codes, self.index.state
            if state != self.states[-1]:
                self.states.append(state)
            if codes is not None and (not self.codes or self.codes[-1] is not codes):
                self.codes.append(codes)

    @property
    def enough(self) -> bool:
        """To codes, made anew while they served, and back to flat."""
        return self.states[:3] == ["flat", "codes", "flat"] and len(self.codes) > self.states.count("codes")


@pytest.mark.slow
@pytest.mark.timeout(600 + 3 * SECONDS)
def test_every_answer_is_the_librarys_at_one_moment(tmp_path: Path, new_clip: Callable[..., NewClip]) -> None:
    news = {seed: new_clip(seed, {"seed": seed, "kind": "moving"}) for seed in range(CLIPS)}
    queries = np.stack([new_clip(5000 + n).embedding for n in range(20)])
    stop = threading.Event()
    with SqliteLibrary.open(tmp_path / "library", dim=16, checkpoint="a", limits=LIMITS) as library:
        tide = Tide()
        changers = [Changer(library, {n: news[n] for n in range(i, CLIPS, 2)}, tide, stop, i) for i in range(2)]
        askers = [Asker(library, queries, stop, 10 + i) for i in range(2)]
        watcher = Watcher(library, stop)
        threads: list[threading.Thread] = [*changers, *askers, watcher]
        for thread in threads:
            thread.start()
        begun = time.monotonic()
        while all(thread.is_alive() for thread in threads) and time.monotonic() - begun < PATIENCE:
            time.sleep(0.05)
            seen = set().union(*(asker.kinds for asker in askers))
            if time.monotonic() - begun >= SECONDS and watcher.enough and seen == WAYS:
                break
        stop.set()
        for thread in threads:
            thread.join()
        for problem in [*(changer.problem for changer in changers), *(asker.problem for asker in askers)]:
            if problem is not None:
                raise problem
        kept = {clip.metadata["seed"]: clip.metadata["kind"] for clip in library.list(CLIPS)[0]}
    histories = {number: history for changer in changers for number, history in changer.histories.items()}
    assert kept == {n: history.after[-1] for n, history in histories.items() if history.after and history.after[-1]}
    assert watcher.enough, (watcher.states, len(watcher.codes))

    answers = [answer for asker in askers for answer in asker.answers]
    judge = Judge(news, queries, histories)
    for answer in answers[:: max(1, len(answers) // CHECKED)]:
        judge.check(answer)
    changes = sum((changer.counts for changer in changers), Counter())
    print(
        f"{time.monotonic() - begun:.0f} s, {dict(changes)}, {len(answers)} searches, of these checked "
        f"{dict(judge.checked)}; codes held {judge.held} of the {judge.best} best; the index was {len(watcher.states)} "
        f"times another and its codes made {len(watcher.codes)} times"
    )
    assert judge.checked.keys() == WAYS
    assert judge.held > 0.8 * judge.best  # an index so small, of random vectors, has few candidates


class Judge:
    """Whether an answer can be the library's at one moment."""

    def __init__(self, news: dict[int, NewClip], queries: np.ndarray, histories: dict[int, History]) -> None:
        self.histories = histories
        whole = np.stack([new.embedding for new in news.values()])
        frames = [encode_frames(np.asarray(new.frames)) for new in news.values()]
        segments = [
            cut_segments(codes, new.frame_hop).decode() for codes, new in zip(frames, news.values(), strict=True)
        ]
        exact = queries @ whole.T
        nearest = np.stack([(queries @ part.T).max(axis=1) for part in segments], axis=1)
        self.similarities = {"search": exact, "search_words": exact, "search_segments": nearest}
        self.checked: Counter[str] = Counter()
        self.held = self.best = 0  # of the exact best clips, those that codes found

    def check(self, answer: Answer) -> None:
        about = self.similarities[answer.way][answer.query]
        found = list(answer.found)
        assert len(set(found)) == len(found), answer
        tolerance = 1e-3 if answer.way == "search_segments" else 1e-5
        np.testing.assert_allclose(answer.similarities, about[found], atol=tolerance)
        if answer.way != "search_words":
            assert list(answer.similarities) == sorted(answer.similarities, reverse=True), answer
        passing: Passing = (lambda kind: kind == "moving") if answer.filtered else (lambda kind: kind is not None)
        k = CLIPS if answer.way == "search_words" else K
        last = min(answer.similarities) + 2 * tolerance if len(found) == k else -np.inf
        assert any(self.holds(answer, moment, passing, k, about, last) for moment in self.moments(answer)), answer
        self.checked[answer.kind] += 1

    def moments(self, answer: Answer) -> list[float]:
        """Moments of every order of the changes that were made meanwhile."""
        inside = {answer.began, answer.ended}
        for history in self.histories.values():
            first = max(0, bisect_left(history.ended, answer.began))
            for at in range(first, len(history.ended)):
                if history.began[at] > answer.ended:
                    break
                inside.update(t for t in (history.began[at], history.ended[at]) if answer.began < t < answer.ended)
        ordered = sorted(inside)
        return [(a + b) / 2 for a, b in zip(ordered, ordered[1:], strict=False)] or [answer.began]

    def holds(self, answer: Answer, moment: float, passing: Passing, k: int, about: np.ndarray, last: float) -> bool:
        """Whether the answer is right for the library as it stood at the moment, give or take changes under way."""
        may_be = {number: history.may_be(moment, passing) for number, history in self.histories.items()}
        if not all(True in may_be[number] for number in answer.found):
            return False
        surely = [number for number, what in may_be.items() if what == {True}]
        if answer.exact:
            # whoever was surely there and stands before the last one found must have been found
            return all(number in answer.found for number in surely if about[number] > last)
        if len(answer.found) < min(k, len(surely)):
            return False
        ideal = sorted(set(surely) | set(answer.found), key=lambda number: -about[number])[: len(answer.found)]
        self.held, self.best = self.held + len(set(ideal) & set(answer.found)), self.best + len(ideal)
        return True


@pytest.mark.parametrize("wrong", ["lost", "made up", "two moments"])
def test_the_judge_sees_what_is_wrong(new_clip: Callable[..., NewClip], wrong: str) -> None:
    news = {seed: new_clip(seed) for seed in range(4)}
    queries = new_clip(9).embedding[None]
    histories = {0: History([1.0], [2.0], ["moving"]), 1: History([1.0], [2.0], ["moving"]), 2: History(), 3: History()}
    histories[3] = History([1.0, 12.0], [2.0, 13.0], ["moving", None])  # gone for good before 2 comes
    histories[2] = History([15.0], [16.0], ["moving"])
    about = queries[0] @ np.stack([new.embedding for new in news.values()]).T
    found = {"lost": [0, 3], "made up": [0, 1, 2, 3], "two moments": [0, 1, 2, 3]}[wrong]
    spans = {"lost": (5.0, 6.0), "made up": (5.0, 6.0), "two moments": (5.0, 20.0)}[wrong]
    judge = Judge(news, queries, histories)

    def answer(seeds: list[int]) -> Answer:
        seeds = sorted(seeds, key=lambda seed: -about[seed])
        return Answer("search", *spans, 0, False, tuple(seeds), tuple(float(about[s]) for s in seeds), True)

    with pytest.raises(AssertionError):
        judge.check(answer(found))
    judge.check(answer([0, 1, 3]))
    if wrong == "two moments":
        judge.check(answer([0, 1]))
        judge.check(answer([0, 1, 2]))
