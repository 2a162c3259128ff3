"""Any sequence of changes with searches beside them: each answer is the exact one for one state of the library, which
it had between the question and the answer.

A thread makes the changes that Hypothesis chooses, one after another, while others ask its questions again and again:
what falls together is left to them. The library goes to and fro across the size at which its vector index changes its
kind.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from index import Hit, SqliteLibrary
from index.quantization import encode_frames
from index.segments import cut_segments
from index.vectors.index import Limits
from tests.support.clips import ask_for_hits, make_clip

SECONDS = float(os.environ.get("FINELAP_CONCURRENCY_SECONDS", "0"))  # about; for longer runs by hand
CLIPS = 80
LIMITS = Limits(flat_rows=32)  # so few clips are compared one by one in every state of the index
NEWS = [make_clip(seed, {"seed": seed, "kind": "moving"}) for seed in range(CLIPS)]
QUERIES = [make_clip(5000 + seed).embedding for seed in range(8)]
SEGMENTS = [cut_segments(encode_frames(np.asarray(new.frames)), new.frame_hop).decode() for new in NEWS]
NEAR = {  # way of searching → similarity of each clip to each query (CLIPS, Q), exact
    "search": np.stack([new.embedding for new in NEWS]) @ np.stack(QUERIES).T,
    "search_segments": np.stack([(own @ np.stack(QUERIES).T).max(axis=0) for own in SEGMENTS]),
}
FP16 = 1e-3  # what 16 bits a number may move the similarity of a segment by
State = dict[int, str]  # clips that are there, and the kind in their metadata


@dataclass(frozen=True)
class Question:
    way: str
    query: int
    k: int
    kind: str | None

    def is_answered(self, hits: list[Hit], state: State) -> bool:
        """Whether these are the hits of an exact search of the library as it was in this state."""
        near, found = NEAR[self.way][:, self.query], [hit.clip.metadata["seed"] for hit in hits]
        passing = [seed for seed, kind in state.items() if self.kind in (None, kind)]
        if len(set(found)) != len(found) or not set(found) <= set(passing):
            return False
        kinds = {seed: hit.clip.metadata["kind"] for hit, seed in zip(hits, found, strict=True)}
        if self.way != "search" and any(kind != state[seed] for seed, kind in kinds.items()):
            return False
        best = sorted((near[seed] for seed in passing), reverse=True)[: self.k]
        told = [hit.similarity for hit in hits]
        close = 1e-5 if self.way == "search" else FP16
        return (
            len(told) == len(best)
            and np.allclose(told, best, atol=close)
            and np.allclose(told, near[found], atol=close)
        )


@dataclass(frozen=True)
class Answer:
    """`since` and `until`: the states that the library may have been in while it was looked for."""

    question: Question
    hits: list[Hit]
    since: int
    until: int


class Library(RuleBasedStateMachine):
    """A library, the states that it goes through, and answers that have not been looked at yet."""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.library = SqliteLibrary.open(self.folder, dim=16, checkpoint="stateful", limits=LIMITS)
        self.states: list[State] = [{}]  # after each change that was asked for
        self.begun = self.done = 0  # changes, counted by the thread that makes them
        self.ids: dict[int, str] = {}
        self.changer, self.askers = ThreadPoolExecutor(1), ThreadPoolExecutor(2)
        self.changes: list[Future[None]] = []
        self._start_asking()

    def _start_asking(self) -> None:
        self.questions: list[Question] = []
        self.enough = threading.Event()
        self.asking = [self.askers.submit(self._ask, number) for number in range(2)]

    def _ask(self, turn: int) -> list[Answer]:
        """Asks until it is enough, each question once at least."""
        answers: list[Answer] = []
        while not self.enough.wait(0.001) or len(answers) < len(self.questions):
            if self.questions:
                question = self.questions[turn % len(self.questions)]
                only = None if question.kind is None else {"kind": question.kind}
                since = self.done
                hits = ask_for_hits(self.library, question.way, QUERIES[question.query], question.k, only)
                turn += 1
                if hits is not None:
                    answers.append(Answer(question, hits, since, self.begun))
        return answers

    def _change(self, state: State, work: Callable[[], None]) -> None:
        def make() -> None:
            self.begun += 1
            work()
            self.done += 1

        self.states.append(state)
        self.changes.append(self.changer.submit(make))

    @rule(count=st.sampled_from([1, 3, 20]), first=st.integers(0, CLIPS - 1))
    def add(self, count: int, first: int) -> None:
        state = self.states[-1]
        absent = [seed for seed in (*range(first, CLIPS), *range(first)) if seed not in state][:count]

        def work() -> None:
            for seed, (clip, new) in zip(absent, self.library.add_many([NEWS[seed] for seed in absent]), strict=True):
                assert new
                self.ids[seed] = clip.id

        if absent:
            self._change(state | dict.fromkeys(absent, "moving"), work)

    @precondition(lambda self: self.states[-1])
    @rule(choice=st.integers(0, CLIPS - 1), count=st.sampled_from([1, 2, 15]))
    def delete(self, choice: int, count: int) -> None:
        for _ in range(min(count, len(self.states[-1]))):
            state = dict(self.states[-1])
            seed = sorted(state)[choice % len(state)]
            del state[seed]
            self._change(state, lambda seed=seed: self.library.delete(self.ids.pop(seed)))  # type: ignore[misc]

    @precondition(lambda self: self.states[-1])
    @rule(first=st.integers(0, CLIPS - 1), count=st.sampled_from([1, 5, 30]))
    def update(self, first: int, count: int) -> None:
        there = sorted(self.states[-1])
        for seed in [*there[first % len(there) :], *there[: first % len(there)]][:count]:
            kind = "still" if self.states[-1][seed] == "moving" else "moving"

            def work(seed: int = seed, kind: str = kind) -> None:
                self.library.update_metadata(self.ids[seed], {"kind": kind})

            self._change(self.states[-1] | {seed: kind}, work)

    @rule(
        way=st.sampled_from(sorted(NEAR)),
        query=st.integers(0, len(QUERIES) - 1),
        k=st.sampled_from([1, 5, 100]),
        kind=st.sampled_from([None, "moving", "still"]),
    )
    def ask(self, way: str, query: int, k: int, kind: str | None) -> None:
        self.questions.append(Question(way, query, k, kind))

    @rule()
    def look(self) -> None:
        for change in self.changes:
            change.result()
        self.enough.set()
        for answer in [answer for asker in self.asking for answer in asker.result()]:
            states = self.states[answer.since : answer.until + 1]
            assert any(answer.question.is_answered(answer.hits, state) for state in states), (answer, states)
        kept = {clip.metadata["seed"]: clip.metadata["kind"] for clip in self.library.list(CLIPS)[0]}
        assert kept == self.states[-1]
        self._start_asking()

    def teardown(self) -> None:
        if not hasattr(self, "library"):
            return
        try:
            self.look()
        finally:
            self.enough.set()
            self.askers.shutdown()
            self.changer.shutdown()
            self.library.close()
            shutil.rmtree(self.folder)


Library.TestCase.settings = settings(
    max_examples=15 + int(2 * SECONDS),
    stateful_step_count=30,
    deadline=None,
    phases=[Phase.generate],  # what fails is not made smaller: the same steps need not fail again
    suppress_health_check=list(HealthCheck),
)
TestLibrary = Library.TestCase
