"""`finelap watch` against a real service: first pass, moves, changes, deletions, an unmount, a kill, references."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import watchfiles

from app.cli.folder_state import FolderState
from app.cli.upload import Checksums
from app.cli.watch import Report, Watcher, WatchOptions, run_watch
from app.client import Client
from tests.support.waiting import wait_until

SECONDS = 0.5
COMMAND = [sys.executable, "-c", "import sys; from app.cli.main import main; sys.exit(main())", "watch"]


class Desk:
    """A folder of sounds and a service; `scan` is one run of `finelap watch --once`."""

    def __init__(self, folder: Path, address: str, model: Any, sounds: SimpleNamespace) -> None:
        self.folder, self.address, self.model, self._sounds = folder / "sounds", address, model, sounds
        self.state = folder / "state.sqlite3"
        self.folder.mkdir()

    def put(self, name: str, hz: float) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self._sounds.wav(hz, SECONDS))
        return path

    def scan(self, **options: Any) -> Report:
        state = FolderState(self.state, self.address)
        wanted = WatchOptions(**{"once": True, **options})
        try:
            with Client(self.address) as client, Checksums(None) as checksums:
                watcher = Watcher(client, [self.folder], state, checksums, wanted)
                watcher.learn()
                return watcher.scan()
        finally:
            state.close()

    @property
    def clips(self) -> dict[str, str]:
        """Clip id by path."""
        page = httpx.get(f"{self.address}/clips?limit=1000").json()
        assert page["next_cursor"] is None
        return {clip["metadata"]["path"]: clip["id"] for clip in page["clips"]}

    @property
    def heard(self) -> int:
        """Files that the service has decoded."""
        metrics = httpx.get(f"{self.address}/metrics").text
        seconds = next(line for line in metrics.splitlines() if line.startswith("finelap_audio_seconds_total"))
        return round(float(seconds.split()[1]) / SECONDS)


@pytest.fixture
def desk(run_server: Callable[..., str], tmp_path: Path, fake_model: Any, sounds: SimpleNamespace) -> Iterator[Desk]:
    yield Desk(tmp_path, run_server(reference_roots=(tmp_path / "sounds",)), fake_model, sounds)


def counts(report: Report) -> dict[str, int]:
    """The numbers of a report that are not zero."""
    return {name: value for name, value in report.to_dict().items() if type(value) is int and value}


def test_a_first_pass_and_a_move_of_many_files(desk: Desk) -> None:
    for number in range(30):
        desk.put(f"rain/{number}.wav", 300 + number)
    desk.put("copy of 3.wav", 303)
    (desk.folder / "notes.txt").write_text("not audio")
    (desk.folder / ".hidden.wav").write_bytes(b"")
    (desk.folder / "broken.wav").write_bytes(b"not audio")
    first = desk.scan()
    assert counts(first) == {"added": 30, "already_there": 1}
    assert [Path(file).name for file, _ in first.failed] == ["broken.wav"]
    assert first.left_out == {"not audio (.txt)": 1, "hidden": 1}
    before, heard = desk.clips, desk.heard
    assert len(before) == 30 and heard == 30

    assert counts(desk.scan()) == {"unchanged": 31, "refused": 1}
    (desk.folder / "rain").rename(desk.folder / "weather")
    moved = desk.scan()
    assert moved.moved >= 29 and not moved.deleted and not moved.added
    after = desk.clips
    assert set(after.values()) == set(before.values()) and desk.heard == heard
    assert after["weather/7.wav"] == before["rain/7.wav"]
    assert counts(desk.scan()) == {"unchanged": 31, "refused": 1}


def test_a_clip_takes_the_name_of_its_file_unless_it_has_its_own(desk: Desk) -> None:
    """Whether the file is renamed, moved, or left as the last of its copies."""
    paths = [desk.put(f"{name}.wav", 300 + number) for number, name in enumerate(("one", "two", "three", "copy"))]
    desk.scan()
    ids = {path.stem: desk.clips[path.name] for path in paths}

    def names() -> dict[str, str]:
        page = httpx.get(f"{desk.address}/clips?limit=1000").json()
        return {clip["metadata"]["path"]: clip["filename"] for clip in page["clips"]}

    httpx.patch(f"{desk.address}/clips/{ids['two']}", json={"filename": "my own.wav"})
    shutil.copy(paths[3], desk.folder / "later.wav")
    desk.scan()
    (desk.folder / "new").mkdir()
    paths[0].rename(desk.folder / "first.wav")
    paths[1].rename(desk.folder / "second.wav")
    paths[2].rename(desk.folder / "new" / "three.wav")
    paths[3].unlink()
    heard = desk.heard
    desk.scan()
    assert names() == {
        "first.wav": "first.wav", "second.wav": "my own.wav", "new/three.wav": "three.wav", "later.wav": "later.wav"
    }  # fmt: skip
    assert set(desk.clips.values()) == set(ids.values()) and desk.heard == heard


def test_changes_and_deletions(desk: Desk) -> None:
    path = desk.put("a.wav", 300)
    desk.put("b.wav", 400)
    desk.put("same as b.wav", 400)
    desk.scan()
    before = desk.clips
    desk.put("a.wav", 500)
    assert counts(desk.scan()) == {"changed": 1, "unchanged": 2}
    assert set(desk.clips) == set(before) and desk.clips["a.wav"] != before["a.wav"]
    (desk.folder / "b.wav").unlink()
    assert "deleted" not in counts(desk.scan())  # a file with the same bytes is still there
    (desk.folder / "same as b.wav").unlink()
    os.utime(path)
    last = desk.scan()
    assert len(desk.clips) == 1 and desk.heard == 3, counts(last)
    path.unlink()
    (desk.folder / "keep").mkdir()  # the folder is not empty
    assert counts(desk.scan(once=False, grace=60)) == {}
    assert len(desk.clips) == 1  # not before it has been missing for a while
    assert counts(desk.scan(once=False, grace=0.01)) == {"deleted": 1} and desk.clips == {}


def test_a_clip_that_came_from_elsewhere_is_not_deleted(desk: Desk, sounds: SimpleNamespace) -> None:
    with Client(desk.address) as client:
        client.add(desk.put("a.wav", 300), {"path": "uploaded.wav"})
    assert counts(desk.scan()) == {"already_there": 1}
    desk.put("b.wav", 400)
    (desk.folder / "a.wav").unlink()
    desk.scan()
    assert set(desk.clips) == {"uploaded.wav", "b.wav"}


def test_an_unmounted_volume_deletes_nothing(desk: Desk, tmp_path: Path) -> None:
    for number in range(5):
        desk.put(f"{number}.wav", 300 + 20 * number)
    desk.scan()
    before = desk.clips
    away = tmp_path / "away"
    desk.folder.rename(away)
    report = desk.scan()
    assert counts(report) == {} and "is not there" in report.offline[0][1]
    desk.folder.mkdir()  # the empty mount point
    report = desk.scan()
    assert counts(report) == {} and "not mounted" in report.offline[0][1] and "nothing of it is deleted" in str(report)
    desk.folder.rmdir()
    away.rename(desk.folder)
    assert counts(desk.scan()) == {"unchanged": 5} and desk.clips == before and desk.heard == 5


def test_files_of_another_volume_that_is_not_mounted_are_kept(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A volume below the folder: its files have another device number than the mount point that they leave behind."""
    desk.put("own.wav", 300)
    desk.put("usb/other.wav", 400)
    desk.scan()
    state = FolderState(desk.state, desk.address)
    from dataclasses import replace

    known = state.files[(desk.folder / "usb" / "other.wav").resolve()]
    state.put(replace(known, device=known.device + 1))
    state.close()
    (desk.folder / "usb" / "other.wav").unlink()
    report = desk.scan()
    assert counts(report) == {"unchanged": 1, "kept": 1} and len(desk.clips) == 2


def test_a_kill_in_the_middle_loses_nothing_and_hears_nothing_twice(desk: Desk) -> None:
    for number in range(60):
        desk.put(f"{number}.wav", 300 + 5 * number)
    desk.model.before = lambda: time.sleep(0.05)
    command = [*COMMAND, str(desk.folder), "--once", "--server", desk.address, "--state", str(desk.state)]
    process = subprocess.Popen([*command, "--workers", "2"], stdout=subprocess.DEVNULL)
    wait_until(lambda: len(desk.clips) >= 10, 60)
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    some = len(desk.clips)
    assert 10 <= some < 60
    time.sleep(0.5)  # for uploads that the service has received
    desk.model.before = lambda: None
    report = desk.scan()
    assert len(desk.clips) == 60 and desk.heard == 60 and not report.failed
    assert counts(desk.scan()) == {"unchanged": 60}
    (desk.folder / "7.wav").unlink()
    assert counts(desk.scan())["deleted"] == 1


def test_references_leave_the_audio_where_it_is(desk: Desk, tmp_path: Path) -> None:
    path = desk.put("rain/a.wav", 300)
    desk.put("b.wav", 400)
    assert counts(desk.scan(reference=True)) == {"added": 2}
    stored = [file for file in (tmp_path / "data" / "audio").rglob("*") if len(file.name) == 64]
    assert len(stored) == 2 and all(file.is_symlink() for file in stored)
    clip_id = desk.clips["rain/a.wav"]
    address = f"{desk.address}/clips/{clip_id}"
    assert httpx.get(f"{address}/audio").content == path.read_bytes()
    assert httpx.get(f"{address}/audio?start=0.1&end=0.2").status_code == 200
    moved = desk.folder / "snow.wav"
    path.rename(moved)
    assert httpx.get(f"{address}/audio").status_code == 404
    assert counts(desk.scan(reference=True)) == {"moved": 1, "unchanged": 1} and desk.heard == 2
    assert httpx.get(f"{address}/audio").content == moved.read_bytes()
    httpx.delete(f"{desk.address}/clips/{desk.clips['b.wav']}").raise_for_status()
    assert (desk.folder / "b.wav").exists()  # it is not the library's
    content = moved.read_bytes()
    os.utime(moved, (1, 1))
    assert httpx.get(f"{address}/audio").json()["type"].endswith("audio-missing")  # it may have changed
    moved.write_bytes(content)
    desk.scan(reference=True)
    assert httpx.get(f"{address}/audio").content == content


def test_references_only_in_the_allowed_folders(desk: Desk, tmp_path: Path, sounds: SimpleNamespace) -> None:
    outside = tmp_path / "secret.wav"
    outside.write_bytes(sounds.wav(800))
    (desk.folder / "link.wav").symlink_to(outside)
    os.mkfifo(desk.folder / "pipe.wav")
    ask = lambda path: httpx.post(f"{desk.address}/clips/reference", json={"path": str(path)}, timeout=10)  # noqa: E731
    for path in (outside, desk.folder / "link.wav", desk.folder / ".." / "secret.wav", tmp_path / "no such file"):
        assert ask(path).json()["detail"] == "path: is not in a folder of FINELAP_REFERENCE_ROOTS."
    assert "regular file" in ask(desk.folder / "pipe.wav").json()["detail"]
    assert "absolute" in ask("a.wav").json()["detail"] and "absolute" in ask("/a\0b").json()["detail"]
    assert "No such file" in ask(desk.folder / "none.wav").json()["detail"]
    inside = desk.put("in.wav", 300)
    clip_id = ask(inside).json()["clips"][0]["id"]
    # a link that comes into the place of a referenced file leads nowhere
    os.utime(outside, ns=(inside.stat().st_mtime_ns,) * 2)
    inside.unlink()
    inside.symlink_to(outside)
    assert httpx.get(f"{desk.address}/clips/{clip_id}/audio").status_code == 404


def test_no_references_unless_they_are_allowed(run_server: Callable[..., str], tmp_path: Path) -> None:
    response = httpx.post(f"{run_server()}/clips/reference", json={"path": str(tmp_path / "a.wav")})
    assert response.status_code == 422 and "FINELAP_REFERENCE_ROOTS" in response.json()["detail"]


def test_a_file_that_comes_before_the_folders_are_watched_is_found(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    os.utime(desk.put("a.wav", 300), (time.time() - 60,) * 2)  # complete, so the first scan waits for nothing
    watch = watchfiles.watch

    def late(*folders: Path, **options: Any) -> Iterator[set[Any]]:
        desk.put("b.wav", 400)
        return watch(*folders, **options)

    def interrupt() -> None:
        with contextlib.suppress(AssertionError):
            wait_until(lambda: len(desk.clips) == 2, 60)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("watchfiles.watch", late)
    monkeypatch.setattr("app.cli.watch.cache_file", lambda: None)
    waiting = threading.Thread(target=interrupt)
    with Client(desk.address) as client:
        waiting.start()
        assert run_watch(client, [desk.folder], WatchOptions(state=desk.state)) == 0
        waiting.join()
    assert set(desk.clips) == {"a.wav", "b.wav"}


def test_events_are_followed_until_a_signal(desk: Desk) -> None:
    desk.put("a.wav", 300)
    command = [*COMMAND, str(desk.folder), "--server", desk.address, "--state", str(desk.state), "--grace", "0.5"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: set(desk.clips) == {"a.wav"}, 60)
        desk.put("new/b.wav", 400)
        wait_until(lambda: set(desk.clips) == {"a.wav", "new/b.wav"}, 60)
        shutil.move(desk.folder / "new" / "b.wav", desk.folder / "c.wav")
        wait_until(lambda: set(desk.clips) == {"a.wav", "c.wav"}, 60)
        (desk.folder / "a.wav").unlink()
        wait_until(lambda: set(desk.clips) == {"c.wav"}, 60)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0 and desk.heard == 2
        assert process.stdout is not None and "1 added" in process.stdout.read()
    finally:
        process.kill()
