"""Detection metrics equal sed_scores_eval on score files, slow references, and results by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.evaluation.sed_metrics import (
    PSDS1,
    PSDS1_NO_SPREAD,
    PSDS2,
    PSDS_GROUNDING,
    MetricsMissing,
    Psds,
    Scored,
    collar_f1,
    merged,
    one_class_each,
    psds,
    psds_with,
    segment_f1,
    threshold_auc,
    toolbox,
)
from training.evaluation.validation import LabelledMixture, psds_of_mixtures

HOP = 0.5


@pytest.fixture(scope="module", autouse=True)
def box() -> Any:
    try:
        return toolbox()
    except MetricsMissing as error:
        pytest.skip(str(error))


def recording(seed: int, classes: int = 3, frames: int = 12, levels: int = 5) -> Scored:
    """Scores loosely related to the truth on a few levels, with ties; the recording ends within the last frame."""
    rng = np.random.default_rng(seed)
    truth = []
    scores = rng.integers(0, levels, (classes, frames)).astype(np.float32)
    for row in scores:
        onset = float(rng.uniform(0, 4))
        truth.append([(round(onset, 2), round(onset + float(rng.uniform(0.6, 1.9)), 2))])
        row[int(onset / HOP) : int(onset / HOP) + 3] += rng.integers(0, levels)
    return Scored(scores / (2 * levels), truth, HOP, frames * HOP - 0.2)


def test_psds_equals_that_of_score_files(tmp_path: Path, box: Any) -> None:
    """Score, truth and duration files are written line by line and read by the package's readers."""
    recordings = [recording(seed) for seed in range(6)]
    names = ["dog", "rain", "bell"]
    truth, durations = ["filename\tonset\toffset\tevent_label"], ["filename\tduration"]
    (tmp_path / "scores").mkdir()
    for number, r in enumerate(recordings):
        lines = ["\t".join(["onset", "offset", *names])]
        for t in range(r.scores.shape[1]):
            cells = [t * HOP, min((t + 1) * HOP, r.duration), *r.scores[:, t]]
            lines.append("\t".join(repr(float(c)) for c in cells))
        (tmp_path / "scores" / f"file{number}.tsv").write_text("\n".join(lines) + "\n")
        durations.append(f"file{number}.wav\t{r.duration}")
        for name, segments in zip(names, r.truth, strict=True):
            truth += [f"file{number}.wav\t{on}\t{off}\t{name}" for on, off in segments]
    (tmp_path / "truth.tsv").write_text("\n".join(truth) + "\n")
    (tmp_path / "durations.tsv").write_text("\n".join(durations) + "\n")

    from pandas import DataFrame

    class Writable(DataFrame):  # the package's compiled loops reject the read-only arrays of pandas 3
        _constructor = property(lambda self: Writable)

        def to_numpy(self, *args: Any, **named: Any) -> np.ndarray:
            return super().to_numpy(*args, **named).copy()

    files = {f.stem: Writable(box.io.read_sed_scores(f)) for f in (tmp_path / "scores").iterdir()}
    wanted = {"1": PSDS1, "1n": PSDS1_NO_SPREAD, "2": PSDS2, "long": Psds(0.6, 0.6, 0.3, 0.5, 1.0, 1500.0)}
    ours = psds_with(recordings, wanted)
    for key, s in wanted.items():
        value, classes, *_ = box.intersection_based.psds(
            files,
            tmp_path / "truth.tsv",
            tmp_path / "durations.tsv",
            dtc_threshold=s.dtc,
            gtc_threshold=s.gtc,
            cttc_threshold=s.cttc,
            alpha_ct=s.alpha_ct,
            alpha_st=s.alpha_st,
            max_efpr=s.max_efpr,
        )
        assert ours[key].value == pytest.approx(value, abs=1e-9)
        assert [ours[key].classes[c] for c in range(3)] == pytest.approx([classes[n] for n in names], abs=1e-9)
    assert 0 < ours["long"].value < 1, "the comparison has to be of something"


def operating_points(recordings: list[Scored], s: Psds) -> list[tuple[float, int, int]]:
    """(threshold, truths found, false alarms) of one-class recordings, threshold by threshold, event by event."""
    points = []
    for level in sorted({float(v) for r in recordings for v in r.scores[0]}):
        found = false = 0
        for r in recordings:
            events: list[list[float]] = []
            for t, score in enumerate(r.scores[0]):
                start, end = t * HOP, min((t + 1) * HOP, r.duration)
                if score >= level and events and events[-1][1] == start:
                    events[-1][1] = end
                elif score >= level:
                    events.append([start, end])
            good = []
            for on, off in events:
                shared = sum(max(0.0, min(off, d) - max(on, c)) for c, d in r.truth[0])
                good += [(on, off)] if shared >= s.dtc * (off - on) - 1e-9 else []
            false += len(events) - len(good)
            for c, d in r.truth[0]:
                shared = sum(max(0.0, min(off, d) - max(on, c)) for on, off in good)
                found += shared >= s.gtc * (d - c) - 1e-9
        points.append((level, found, false))
    return points


@given(st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_one_class_psds_and_threshold_auc_equal_the_references(seed: int) -> None:
    recordings = [recording(seed * 10 + i, classes=1) for i in range(3)]
    s = Psds(0.5, 0.5, max_efpr=2000.0)
    points, true = operating_points(recordings, s), sum(len(r.truth[0]) for r in recordings)
    hours = sum(r.duration for r in recordings) / 3600
    corners = sorted({0.0, s.max_efpr} | {false / hours for *_, false in points if false / hours < s.max_efpr})
    area = 0.0
    for left, right in zip(corners, corners[1:], strict=False):
        area += (right - left) * max([f / true for _, f, false in points if false / hours <= left + 1e-9], default=0)
    assert psds(recordings, s).value == pytest.approx(area / s.max_efpr, abs=1e-9)

    below = area = 0.0
    for level, found, false in points:  # these events hold for thresholds from the next lower score up to this one
        area += (level - below) * 2 * found / (found + false + true)
        below = level
    assert threshold_auc(recordings, s) == pytest.approx(area, abs=1e-9)


def perfect(duration: float = 6.0) -> Scored:
    scores = np.zeros((2, 12), dtype=np.float32)
    scores[0, 2:4], scores[1, 6:10] = 0.9, 0.8
    return Scored(scores, [[(1.0, 2.0)], [(3.0, 5.0)]], HOP, duration)


def test_perfect_and_wrong_scores() -> None:
    right = [perfect(), perfect()]
    wrong = [Scored(r.scores[::-1].copy(), r.truth, HOP, r.duration) for r in right]
    assert [r.value for r in psds_with(right, {"1": PSDS1, "2": PSDS2}).values()] == [1.0, 1.0]
    assert psds(wrong, PSDS1).value == 0.0
    assert collar_f1(right, 0.5).macro == segment_f1(right, 0.5).micro == 1.0
    assert collar_f1(wrong, 0.5).micro == segment_f1(wrong, 0.5).macro == 0.0
    assert threshold_auc(one_class_each(right[:1])) == pytest.approx(0.8 + 0.1 * 2 / 3)  # one of two left above 0.8


def test_collars_and_segments_by_hand() -> None:
    r = perfect()
    late = r.scores.copy()
    late[0] = np.roll(late[0], 1)  # half a second late: outside the collar, in one of two segments of a second
    recordings = [Scored(late, r.truth, HOP, r.duration)]
    assert collar_f1(recordings, 0.5).macro == pytest.approx(0.5)
    # found 1–2 and 2–3 of the true 1–2: F1 2/3; the other class is whole
    assert segment_f1(recordings, 0.5).macro == pytest.approx((2 / 3 + 1) / 2)
    assert collar_f1(recordings, 0.85).micro == 0.0, "only the late one is above"


def test_only_the_order_of_scores_matters_and_grounding_has_one_class_each() -> None:
    recordings = [recording(seed) for seed in range(4)]
    cubed = [Scored(r.scores**3 - 5, r.truth, HOP, r.duration) for r in recordings]
    assert psds(recordings, PSDS2).value == psds(cubed, PSDS2).value
    separate = one_class_each(recordings)
    assert len(separate) == 12 and all(r.scores.shape == (1, 12) for r in separate)
    assert set(psds(separate, PSDS_GROUNDING).classes) == {0}


def test_classes_without_events_are_omitted_and_no_events_are_an_error() -> None:
    r = perfect()
    loud = np.vstack([r.scores, np.ones((1, 12), np.float32)])
    assert psds([Scored(loud, [*r.truth, []], HOP, 6.0)], PSDS1).classes == {0: 1.0, 1: 1.0}
    with pytest.raises(ValueError, match="no true event"):
        psds([Scored(r.scores, [[], []], HOP, 6.0)], PSDS1)
    with pytest.raises(ValueError, match="same classes"):
        psds([r, Scored(r.scores[:1], r.truth[:1], HOP, 6.0)], PSDS1)
    with pytest.raises(ValueError, match="0 to 1"):
        threshold_auc(one_class_each([Scored(r.scores * 3, r.truth, HOP, 6.0)]))


@pytest.mark.parametrize(("duration", "end"), [(6.0, 6.0), (5.7, 5.7), (5.5, 5.5), (9.0, 6.0), (0.1, 0.1)])
def test_timestamps_end_with_the_recording(duration: float, end: float) -> None:
    stamps = perfect(duration).stamps()
    assert stamps[-1] == pytest.approx(end) and (np.diff(stamps) > 0).all()
    assert np.allclose(stamps[:-1], np.arange(len(stamps) - 1) * HOP)


def test_adjoining_annotations_are_merged() -> None:
    assert merged([(2, 3), (0, 1), (1, 2), (5, 9), (11, 12)], 8.0) == [(0, 3), (5, 8.0)]


def test_median_filter_takes_an_odd_number_of_frames() -> None:
    r = Scored(np.array([[0, 1, 0, 0, 1, 1, 1, 0]], np.float32), [[(2, 3.5)]], HOP, 4.0)
    assert r.smoothed(3).scores.tolist() == [[0, 0, 0, 0, 1, 1, 1, 0]]
    assert r.smoothed(1).scores.tolist() == r.scores.tolist()
    with pytest.raises(ValueError, match="odd"):
        r.smoothed(4)


class IndexModel:
    """Decodes the phrases of a mixture from its samples: sample n × 8000 is the phrase index of frame n."""

    def encode_text(self, texts: list[str]) -> Any:
        return [int(text.split()[1]) for text in texts]

    def encode_audio(self, waveforms: list[np.ndarray], rate: int) -> list[Any]:
        class Heard:
            frames, frame_hop = waveforms[0][:: rate // 2], 0.5

        return [Heard]

    def frame_score(self, frames: np.ndarray, texts: list[int]) -> Any:
        import torch

        return torch.from_numpy(np.stack([np.where(frames == t, 0.9, 0.1) for t in texts]))


def test_mixtures_are_scored_for_every_phrase_that_occurs() -> None:
    def mixture(numbers: list[int], segments: dict[str, list[tuple[float, float]]]) -> LabelledMixture:
        return LabelledMixture(np.repeat(np.array(numbers, np.float32), 8000), segments)

    first = mixture([0, 0, 1, 1, 1, 0, 0, 0], {"class 1": [(1.0, 2.5)], "class 7": []})
    second = mixture([0, 0, 0, 2, 2, 2, 0, 0], {"class 2": [(1.5, 3.0)]})
    model: Any = IndexModel()
    assert set(psds_of_mixtures(model, [first, second]).values()) == {100.0}
    # class 1 is detected in a mixture that doesn't list it: a false alarm
    confused = mixture([1, 1, 1, 2, 2, 2, 0, 0], {"class 2": [(1.5, 3.0)]})
    assert psds_of_mixtures(model, [first, confused])["PSDS1, no spread"] == 50.0
