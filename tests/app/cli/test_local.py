"""The commands without a server: constant memory for long recordings, progress during the analysis."""

from __future__ import annotations

import io
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
from tqdm import tqdm

from app.cli import local, remote
from app.cli.main import main
from app.client.types import DetectionEnd, DetectionProgress
from app.services import detection

MINUTES = 40


@pytest.fixture(autouse=True)
def here(fake_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Local commands use the fake model."""
    monkeypatch.delenv("FINELAP_SERVER", raising=False)
    monkeypatch.setattr(local, "load_model", lambda settings: fake_model)


@pytest.fixture
def long(tmp_path: Path, sounds: SimpleNamespace) -> Path:
    """MINUTES of silence at 8 kHz, with 400 Hz in its second minute and in the last second but one."""
    path = tmp_path / "long.wav"
    with soundfile.SoundFile(path, "w", 8000, 1, "PCM_16") as file:
        tone = sounds.tone(400, 1.6, 8000)
        for minute in range(MINUTES):
            samples = np.zeros(60 * 8000, np.float32)
            at = {1: 16 * 8000, MINUTES - 1: round(57.6 * 8000)}.get(minute)
            if at is not None:
                samples[at : at + len(tone)] = tone
            file.write(samples)
    return path


def peak_of(command: Callable[[], object]) -> int:
    """Peak bytes of Python and NumPy memory during a command."""
    tracemalloc.start()
    try:
        command()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_recording(
    long: Path, tmp_path: Path, sounds: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    (short := tmp_path / "short.wav").write_bytes(sounds.wav(400, 1.0))
    assert main(["detect", str(short), "-p", "tone 400", "--json"]) == 0  # loads modules, so that imports do not count
    capsys.readouterr()
    whole = MINUTES * 60 * 16_000 * 4  # what its samples would take; two batches of windows are a seventh of it
    peak = peak_of(lambda: main(["detect", str(long), "-p", "tone 400", "--json"]))
    (phrase,) = json.loads(capsys.readouterr().out)["phrases"]
    assert [(e["onset"], e["offset"]) for e in phrase["events"]] == [
        (pytest.approx(76, abs=0.2), pytest.approx(77.6, abs=0.2)),
        (pytest.approx(MINUTES * 60 - 2.4, abs=0.2), pytest.approx(MINUTES * 60 - 0.8, abs=0.2)),
    ]
    assert peak < whole / 5
    peak = peak_of(lambda: main(["embed", str(long), "-o", str(tmp_path / "out.npz")]))
    assert peak < whole / 5
    with np.load(tmp_path / "out.npz") as arrays:
        assert arrays["durations"].tolist() == [MINUTES * 60.0]


def test_progress_is_reported_during_a_long_detection(
    long: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(detection, "_PROGRESS_INTERVAL_S", 0.0)
    positions: list[float] = []
    write = remote.Writer.write

    def watch(self: Any, message: Any) -> None:
        if isinstance(message, DetectionProgress):
            positions.append(message.position)
        write(self, message)

    monkeypatch.setattr(remote.Writer, "write", watch)
    assert main(["detect", str(long), "-p", "tone 400", "--format", "ndjson"]) == 0
    assert positions == sorted(positions) and len(positions) > MINUTES
    assert positions[-1] == pytest.approx(MINUTES * 60, abs=11)
    types = [json.loads(line)["type"] for line in capsys.readouterr().out.splitlines()]
    assert types == ["start", "event", "event", "end"]  # progress is not part of the output


def test_progress_bar_counts_seconds_of_audio() -> None:
    screen = io.StringIO()
    with tqdm(desc="analysing", bar_format=remote._BAR, file=screen, mininterval=0) as bar:
        bar._time = lambda: bar.start_t  # freezes the elapsed time
        writer = remote.Writer(None, None, "table", bar)  # type: ignore[arg-type]  # no file is opened
        for position in (10.0, 61.5, 3600.0):
            writer.write(DetectionProgress(position))
    assert screen.getvalue().rstrip().endswith("analysing: 3600 s of audio in 00:00")


def test_frames_of_several_files_are_separated(
    tmp_path: Path, sounds: SimpleNamespace, fake_model: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    for n, hz in enumerate(sounds.TONES):
        (tmp_path / f"{n}.wav").write_bytes(sounds.wav(hz, 0.5 + 3.7 * n))
    (tmp_path / "gone.wav").symlink_to("nowhere")
    assert main(["embed", str(tmp_path), "-o", str(tmp_path / "out.npz"), "--frames"]) == 1
    assert "gone.wav: No such file" in capsys.readouterr().err
    with np.load(tmp_path / "out.npz") as arrays:
        assert arrays["filenames"].tolist() == [f"{n}.wav" for n in range(len(sounds.TONES))]
        for n, (first, stop) in enumerate(zip(arrays["frame_offsets"], arrays["frame_offsets"][1:], strict=False)):
            assert stop - first == np.ceil((0.5 + 3.7 * n) / fake_model.frame_hop)
            assert (arrays["frames"][first : stop - 1].argmax(axis=1) == n).all()


def test_end_message_has_the_full_duration(long: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[DetectionEnd] = []
    monkeypatch.setattr(remote.Writer, "write", lambda self, m: ends.append(m) if isinstance(m, DetectionEnd) else None)
    main(["detect", str(long), "-p", "tone 400", "--plot", str(tmp_path / "long.png")])
    assert ends[0].detection.duration == MINUTES * 60.0
    assert (tmp_path / "long.png").read_bytes().startswith(b"\x89PNG")
