"""Ingest under adverse conditions: killed clients and servers, full queues, unusual files; and the checksum cache."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from app.cli import upload
from app.cli.main import main
from app.cli.upload import AUDIO_SUFFIXES, Checksums, Summary, cache_file, find_sources, ingest
from app.client import Client, ServerFault, Unreachable
from tests.support.waiting import wait_until

FILES = 60


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of the checksum cache, kept inside the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = cache_file()
    assert file is not None
    return file


@pytest.fixture
def many(tmp_path: Path, sounds: SimpleNamespace) -> Path:
    """A folder with FILES distinct sounds."""
    root = tmp_path / "many"
    root.mkdir()
    for n in range(FILES):
        (root / f"{n:03} 音.wav").write_bytes(sounds.wav(400, 0.5 + n / 1000))
    return root


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes to kill after the test."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def hold(tmp_path: Path) -> Path:
    """While this file exists, the service pauses before it has half of the files."""
    file = tmp_path / "hold"
    file.touch()
    return file


@pytest.fixture
def serve(tmp_path: Path, repo_dir: Path, processes: list[subprocess.Popen[str]]) -> Callable[[], Any]:
    """Starts the service in a separate process, each time at the same address with the same library."""
    for port in random.sample(range(20_000, 30_000), 100):  # outside the ephemeral port range
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            break

    def start() -> tuple[str, subprocess.Popen[str]]:
        command = [sys.executable, repo_dir / "tests/support/tone_server.py", str(port), tmp_path / "library"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        with Client(address) as client:
            wait_until(client.ready, 120)
        return address, process

    return start


def start_ingest(
    repo_dir: Path, processes: list[subprocess.Popen[str]], folder: Path, server: str
) -> subprocess.Popen[str]:
    code = "import sys; from app.cli.main import main; sys.exit(main())"
    arguments = ["ingest", str(folder), "--server", server, "--workers", "4", "--json"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=repo_dir,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background shell may ignore SIGINT
    )
    processes.append(process)
    return process


def names_in(server: str) -> list[str]:
    """File names of all clips in the library, with repetitions."""
    with Client(server) as client:
        return sorted(clip.filename for clip in client.clips())


def summary_of(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int = 0) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["ingest", *arguments, "--json"]) == code
    summary: dict[str, Any] = json.loads(capsys.readouterr().out)
    return summary


# Interruptions


@pytest.mark.slow
def test_a_killed_ingest_resumes(
    serve: Callable[[], Any],
    hold: Path,
    many: Path,
    repo_dir: Path,
    processes: list[subprocess.Popen[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    server, _ = serve()
    with Client(server) as client:
        first = start_ingest(repo_dir, processes, many, server)
        wait_until(lambda: client.info().clips >= 10, 120)
        first.send_signal(signal.SIGKILL)
        first.communicate()
    hold.unlink()
    summary = summary_of([str(many), "--server", server], capsys)
    assert 10 <= summary["already_there"] < FILES and summary["added"] + summary["already_there"] == FILES
    assert names_in(server) == sorted(path.name for path in many.iterdir())


@pytest.mark.slow
def test_ingest_waits_for_a_restarted_server(
    serve: Callable[[], Any], hold: Path, many: Path, repo_dir: Path, processes: list[subprocess.Popen[str]]
) -> None:
    server, process = serve()
    run = start_ingest(repo_dir, processes, many, server)
    with Client(server) as client:
        wait_until(lambda: client.info().clips >= 10, 120)
        process.send_signal(signal.SIGKILL)
        process.wait()
        hold.unlink()
        time.sleep(0.5)
        assert run.poll() is None
        serve()
        out, err = run.communicate(timeout=150)
    assert run.returncode == 0, err
    summary = json.loads(out)
    assert summary["added"] + summary["already_there"] == FILES and summary["failed"] == []
    assert names_in(server) == sorted(path.name for path in many.iterdir())


def test_ctrl_c_prints_a_summary(
    serve: Callable[[], Any], hold: Path, many: Path, repo_dir: Path, processes: list[subprocess.Popen[str]]
) -> None:
    server, _ = serve()
    run = start_ingest(repo_dir, processes, many, server)
    with Client(server) as client:
        wait_until(lambda: client.info().clips >= 5, 120)
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 130
    assert err.endswith("interrupted\n") and "Traceback" not in err
    summary = json.loads(out)
    assert summary["interrupted"] and summary["failed"] == []
    assert 0 < summary["added"] < FILES
    assert summary["added"] + summary["unsent"] == FILES


def test_a_full_queue_loses_no_file(
    run_server: Callable[..., str], many: Path, fake_model: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_model.before = lambda: time.sleep(0.02)
    server = run_server(max_queue_windows=2, max_batch_windows=2)
    summary = summary_of([str(many), "--server", server, "--workers", "16"], capsys)
    assert (summary["added"], summary["failed"]) == (FILES, [])
    assert names_in(server) == sorted(path.name for path in many.iterdir())


# Unusual files


def test_every_failed_file_is_reported(
    run_server: Callable[..., str], tmp_path: Path, sounds: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "root"
    (root / "deep").mkdir(parents=True)
    (root / "good.wav").write_bytes(sounds.wav(400))
    (root / "text.wav").write_text("text")
    (root / "empty.wav").write_bytes(b"")
    (root / "loop.wav").symlink_to("loop.wav")
    (root / "dangling.wav").symlink_to("nowhere.wav")
    (root / "pipe.txt").write_text("not a name of a sound")
    (root / "deep" / "up").symlink_to(root)  # a loop of folders
    (root / "folder.wav").mkdir()
    (root / "folder.wav" / "in.wav").write_bytes(sounds.wav(800))
    server = run_server()
    summary = summary_of([str(root), "--server", server], capsys, code=1)
    assert summary["added"] == 2
    reasons = {Path(failure["file"]).name: failure["reason"] for failure in summary["failed"]}
    assert sorted(reasons) == ["dangling.wav", "empty.wav", "loop.wav", "text.wav"]
    assert "symbolic links" in reasons["loop.wav"] and "No such file" in reasons["dangling.wav"]
    assert reasons["text.wav"].startswith("this is not an audio file") and "empty" in reasons["empty.wav"]
    main(["ingest", str(root), "--server", server])
    out, err = capsys.readouterr()
    assert "4 failed" in err and "6/6" in err
    assert [line.split(":")[0].rsplit("/", 1)[-1] for line in out.splitlines() if line.startswith("  ")] == sorted(
        reasons
    )


def test_files_above_the_size_limit_are_not_sent(
    run_server: Callable[..., str], many: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (many / "000 huge.wav").open("wb") as file:
        file.truncate(10 << 30)  # it would take minutes to read
    summary = summary_of([str(many), "--server", run_server(max_upload_mb=1)], capsys, code=1)
    assert summary["added"] == FILES
    assert [failure["reason"] for failure in summary["failed"]] == [
        "file size 10737 MB exceeds the server's limit of 1 MB"
    ]


@pytest.mark.parametrize(("answer", "says"), [("breaks", "broke"), ("full", "no room left")])
def test_file_errors_and_server_errors_are_distinguished(
    run_server: Callable[..., str], many: Path, monkeypatch: pytest.MonkeyPatch, answer: str, says: str
) -> None:
    """A lost connection affects one file; a full disk affects all the others."""
    add = Client.add

    def faulty(self: Client, file: Path, metadata: Any, track: str | None) -> Any:
        if file.name.startswith("000"):
            raise Unreachable("the connection broke") if answer == "breaks" else ServerFault("no room left", 507)
        return add(self, file, metadata, track)

    monkeypatch.setattr(Client, "add", faulty)
    with Client(run_server()) as client, Checksums(None) as sums:
        summary = ingest(client, find_sources([many], {}), sums, workers=1, progress=False)
    assert says in summary.failed[0][1]
    assert summary.added == (FILES - 1 if answer == "breaks" else 0)
    assert len(summary.failed) == FILES - summary.added


def test_files_that_disappear_are_reported_and_the_others_added(
    run_server: Callable[..., str], many: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = find_sources([many], {})
    for path in sorted(many.iterdir())[10:15]:
        path.unlink()
    with Client(run_server()) as client, Checksums(None) as sums:
        summary = ingest(client, sources, sums, workers=4, progress=False)
    assert (summary.added, summary.there, summary.unsent) == (FILES - 5, 0, 0)
    assert [Path(file).name[:3] for file, _ in summary.failed] == ["010", "011", "012", "013", "014"]
    assert all(reason == "No such file or directory" for _, reason in summary.failed)


def test_linked_folders_are_followed_once(tmp_path: Path, sounds: SimpleNamespace) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "a.wav").write_bytes(b"")
    root = tmp_path / "root"
    root.mkdir()
    (root / "one").symlink_to(elsewhere)
    (root / "two").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(root)
    assert [source.metadata["path"] for source in find_sources([root], {})] == ["one/a.wav"]
    assert len(find_sources([root, elsewhere, elsewhere / "a.wav"], {})) == 1


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="permissions do not apply here")
def test_an_unreadable_folder_is_reported(
    run_server: Callable[..., str], tmp_path: Path, sounds: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    closed = tmp_path / "root" / "closed"
    closed.mkdir(parents=True)
    closed.chmod(0)
    (tmp_path / "root" / "a.wav").write_bytes(sounds.wav(400))
    try:
        summary = summary_of([str(tmp_path / "root"), "--server", run_server()], capsys, code=1)
    finally:
        closed.chmod(0o700)
    assert summary["added"] == 1
    assert summary["failed"] == [{"file": str(closed), "reason": "Permission denied"}]


def test_unreadable_folders_reach_the_callback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def walk(folder: Path, *, followlinks: bool, onerror: Callable[[OSError], None]) -> Iterator[Any]:
        onerror(PermissionError(13, "Permission denied", "closed"))
        yield str(folder), [], ["a.wav"]

    monkeypatch.setattr("os.walk", walk)
    (tmp_path / "a.wav").touch()
    reported: list[OSError] = []
    assert len(find_sources([tmp_path], {}, reported.append)) == 1
    assert [error.filename for error in reported] == ["closed"]
    with pytest.raises(PermissionError):
        find_sources([tmp_path], {})


def test_a_revoked_key_stops_an_ingest(
    run_server: Callable[..., str], many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key revoked during an ingest: every file is reported, and no further file is sent."""
    server = run_server(api_keys="secret")
    clips = Client.clips

    def revoked(self: Client) -> Iterator[Any]:
        yield from clips(self)
        self._http.headers["Authorization"] = "Bearer another"

    monkeypatch.setattr(Client, "clips", revoked)
    with Client(server, "secret") as client, Checksums(None) as sums:
        summary = ingest(client, find_sources([many], {}), sums, workers=2, progress=False)
    assert len(summary.failed) == FILES
    assert sum("not sent" in reason for _, reason in summary.failed) >= FILES - 2


# Checksums


def old(path: Path, data: bytes) -> Path:
    """A file that was modified an hour ago."""
    path.write_bytes(data)
    os.utime(path, (time.time() - 3600, time.time() - 3600))
    return path


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def reads(file: Path | None, *paths: Path) -> int:
    """The number of files that a new process has to read."""
    with Checksums(file) as sums:
        for path in paths:
            assert sums.of(path) == sha(path.read_bytes())
        return sums.read


def test_unchanged_files_are_read_once(cache: Path, tmp_path: Path) -> None:
    files = [old(tmp_path / f"{n}", n.to_bytes(2, "big")) for n in range(600)]
    assert reads(cache, *files) == 600
    assert reads(cache, *files) == 0
    old(files[0], b"other")  # another size
    os.utime(files[1], (1, 1))  # another time
    files[2].write_bytes(b"now")  # modified too recently to be cached, for the whole test
    os.utime(files[2], (time.time() + 3600, time.time() + 3600))
    assert reads(cache, *files) == 3
    assert reads(cache, *files) == 1
    assert reads(None, *files) == 600


def test_ingest_of_unchanged_files_reads_none(
    run_server: Callable[..., str], many: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = run_server()
    for path in many.iterdir():
        os.utime(path, (time.time() - 3600, time.time() - 3600))
    assert summary_of([str(many), "--server", server], capsys)["added"] == FILES
    monkeypatch.setattr("hashlib.file_digest", lambda file, kind: pytest.fail(f"{file.name} was read"))
    assert summary_of([str(many), "--server", server], capsys)["already_there"] == FILES


def test_relative_and_absolute_paths_share_an_entry(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = old(tmp_path / "a", b"a")
    monkeypatch.chdir(tmp_path)
    assert reads(cache, Path("a")) == 1
    assert reads(cache, file) == 0


@pytest.mark.parametrize("damage", ["text", "empty", "folder", "shape", "half"])
def test_a_damaged_cache_is_rebuilt(cache: Path, tmp_path: Path, damage: str) -> None:
    file = old(tmp_path / "a", b"a")
    reads(cache, file)
    if damage == "text":
        cache.write_text("this is no database" * 1000)
    elif damage == "empty":
        cache.write_bytes(b"")
    elif damage == "folder":
        cache.unlink()
        cache.mkdir()
    elif damage == "shape":
        cache.unlink()
        with sqlite3.connect(cache) as db:
            db.execute("CREATE TABLE checksums (other INTEGER)")
        db.close()
    else:
        data = cache.read_bytes()
        cache.write_bytes(data[:5000] + bytes(len(data) - 5000))
    assert reads(cache, file) == 1
    assert reads(cache, file) == (1 if damage in ("folder", "shape") else 0)  # what cannot be mended is left alone


def test_an_impossible_cache_path_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = old(tmp_path / "a", b"a")
    assert reads(file / "below a file", file) == 1
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # by the custom's own rule not a place
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    if sys.platform == "linux":
        assert cache_file() is None


def test_processes_share_the_cache(cache: Path, tmp_path: Path, repo_dir: Path) -> None:
    files = [old(tmp_path / f"{n}", bytes([n % 256]) * n) for n in range(300)]
    code = """if True:
        import sys; from pathlib import Path; from app.cli.upload import Checksums
        for _ in range(3):
            with Checksums(Path(sys.argv[1])) as sums:
                for n in range(300):
                    sums.of(Path(sys.argv[2], str(n)))
    """
    runs = [subprocess.Popen([sys.executable, "-c", code, cache, tmp_path], cwd=repo_dir) for _ in range(3)]
    assert [run.wait(60) for run in runs] == [0, 0, 0]
    assert reads(cache, *files) == 0


def test_a_locked_cache_is_ignored(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "_LOCK_TIMEOUT", 0.05)
    file = old(tmp_path / "a", b"a")
    reads(cache, file)
    with sqlite3.connect(cache) as db:
        db.execute("BEGIN EXCLUSIVE")
        assert reads(cache, file) == 1
    db.close()
    assert reads(cache, file) == 0


def test_threads_share_checksums(cache: Path, tmp_path: Path) -> None:
    files = [old(tmp_path / f"{n}", bytes([n])) for n in range(100)]
    wrong: list[Path] = []
    with Checksums(cache) as sums:
        threads = [
            threading.Thread(target=lambda: wrong.extend(f for f in files if sums.of(f) != sha(f.read_bytes())))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert reads(cache, *files) == 0


def test_old_entries_expire(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = old(tmp_path / "a", b"a")
    reads(cache, file)
    monkeypatch.setattr(upload, "_MAX_AGE", -1.0)
    assert reads(cache, file) == 1


def test_every_decodable_suffix_is_sent_and_the_others_are_counted(repo_dir: Path, tmp_path: Path) -> None:
    sent = [
        "m4b",
        "3gp",
        "mp2",
        "avi",
        "ts",
        "bwf",
        "spx",
        "amr",
        "ac3",
        "wv",
        "ape",
        "tta",
        "voc",
        "M4A",
        "mts",
        "opus",
        "dts",
    ]
    for suffix in sent:
        (tmp_path / f"a.{suffix}").write_bytes(b"G\0")
    for name in ("a.txt", "b.TXT", "c.py", "README", ".hidden.txt", "module.ts.map", "d.jpg"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "code.ts").write_text("export const a = 1;\n")
    left_out: Counter[str] = Counter()
    found = find_sources([tmp_path], {}, left_out=left_out)
    assert {source.path.name for source in found} == {f"a.{suffix}" for suffix in sent}
    suffixes = {f"not audio ({suffix})": 1 for suffix in (".py", ".map", ".jpg", ".ts")}
    assert left_out == {**suffixes, "not audio (.txt)": 2, "without a file name extension": 1, "hidden": 1}
    summary = Summary(left_out=left_out)
    assert "left out" in str(summary) and "2 not audio (.txt)" in str(summary)
    script = (repo_dir / "app" / "web" / "library-files.js").read_text(encoding="utf-8")
    names = re.search(r"const NAMES = `([^`]+)`", script)
    assert names is not None and {f".{name}" for name in names[1].split()} == AUDIO_SUFFIXES
