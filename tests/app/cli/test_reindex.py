"""`finelap reindex` while a service runs: embedding, following changes, surviving kills; backup and restore."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from fastapi import FastAPI

from app.cli import reindex as command
from app.cli.main import main
from app.inference.engine import Engine, load_model
from app.main import create_app
from app.settings import Settings
from index import CheckpointMismatch, SqliteLibrary
from index.sqlite.reader import LibraryReader, exclusive_lock
from index.sqlite.reindex import SideDatabase, side_path
from model import FineLAP

REPO = Path(__file__).parents[3]
KILLS = 2


class Turned:
    """The model with every embedding reversed: another embedding space with its own stamp."""

    stamp = "turned-stamp"

    def __init__(self, model: Any) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def encode_windows(self, waveforms: Any) -> list[tuple[np.ndarray, np.ndarray]]:
        return [(clip[::-1].copy(), frames[:, ::-1].copy()) for clip, frames in self._model.encode_windows(waveforms)]

    def encode_text(self, texts: Any) -> np.ndarray:
        return self._model.encode_text(texts)[:, ::-1].copy()


@pytest.fixture
def turned(fake_model: Any, monkeypatch: pytest.MonkeyPatch) -> Turned:
    """The checkpoint that the command loads."""
    model = Turned(fake_model)
    monkeypatch.setattr(command, "load_model", lambda settings: model)
    monkeypatch.setattr(command, "_POLL", 0.02)
    return model


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., int]:
    return lambda *flags: main(["reindex", "--checkpoint", "new", "--data-dir", str(tmp_path / "data"), *flags])


def open_app(settings: Settings, model: Any) -> FastAPI:
    catalog = SqliteLibrary.open(settings.data_dir, dim=model.dim, checkpoint=model.stamp)
    return create_app(settings, Engine(model), catalog)


async def add(client: httpx.AsyncClient, audio: bytes, name: str) -> str:
    return (await client.post("/clips", files={"files": (name, audio)})).json()["clips"][0]["id"]


async def answers(client: httpx.AsyncClient) -> list[Any]:
    """Search results by file name, because ids differ between libraries."""
    hits = (await client.get("/search", params={"q": "tone 400", "k": 20, "moments": True})).json()["hits"]
    return [(h["clip"]["filename"], pytest.approx(h["similarity"], abs=1e-5), h.get("moments")) for h in hits]


async def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        await asyncio.sleep(0.02)


def kept(folder: Path, model: Turned) -> int:
    with SideDatabase(folder, model.stamp, model.dim) as side:
        return len(side.known)


def covered(folder: Path, model: Turned) -> bool:
    with LibraryReader(folder) as library, SideDatabase(folder, model.stamp, model.dim) as side:
        return {clip.sha256 for clip in library.clips()} <= side.known


async def test_library_changes_while_reindexing(
    make_settings: Callable[..., Settings],
    open_client: Callable[..., httpx.AsyncClient],
    turned: Turned,
    fake_model: Any,
    sounds: SimpleNamespace,
    run: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings, files = make_settings(), {f"{hz}.wav": sounds.wav(hz, 0.5 + hz / 300) for hz in sounds.TONES}
    app = open_app(settings, fake_model)
    async with app.router.lifespan_context(app), open_client(app) as client:
        for name, audio in list(files.items())[:3]:
            await add(client, audio, name)
        before = await answers(client)
        following = asyncio.create_task(asyncio.to_thread(run, "--follow"))
        err: list[str] = []
        await until(lambda: err.append(capsys.readouterr().err) or "watching" in "".join(err))  # type: ignore[func-returns-value]
        assert await answers(client) == before  # the service is unaffected
        await client.delete(f"/clips/{await add(client, sounds.wav(500), 'gone.wav')}")
        for name, audio in list(files.items())[3:]:
            await add(client, audio, name)
        await until(lambda: covered(settings.data_dir, turned))
        assert not following.done()
    app = open_app(settings, turned)
    async with app.router.lifespan_context(app), open_client(app) as client:
        assert await following == 0
        assert "the service now uses new" in capsys.readouterr().out
        changed = await answers(client)
    assert not list(settings.data_dir.glob("reindex-*"))

    app = open_app(make_settings(data_dir=tmp_path / "anew"), turned)
    async with app.router.lifespan_context(app), open_client(app) as client:
        for name, audio in files.items():
            await add(client, audio, name)
        assert await answers(client) == changed
    assert len(changed) == len(files) and changed[0][0] == "400.wav" and changed[0][2]


async def fill(
    settings: Settings, model: Any, open_client: Callable[..., httpx.AsyncClient], files: dict[str, bytes]
) -> None:
    app = open_app(settings, model)
    async with app.router.lifespan_context(app), open_client(app) as client:
        for name, audio in files.items():
            await add(client, audio, name)


@pytest.fixture
async def library(
    make_settings: Callable[..., Settings],
    open_client: Callable[..., httpx.AsyncClient],
    fake_model: Any,
    sounds: SimpleNamespace,
) -> Path:
    """A library of six tones, closed."""
    await fill(make_settings(), fake_model, open_client, {f"{hz}.wav": sounds.wav(hz) for hz in sounds.TONES})
    return make_settings().data_dir


def audio_of(library: Path, name: str) -> Path:
    with LibraryReader(library) as reader:
        return next(reader.audio_path(clip.sha256) for clip in reader.clips() if clip.filename == name)


async def test_no_clip_is_embedded_twice(library: Path, turned: Turned, run: Callable[..., int], capsys: Any) -> None:
    calls = turned.audio_batches
    calls.clear()
    assert await asyncio.to_thread(run) == 0
    first = sum(calls)
    assert "ready: restart the service with --checkpoint new to switch" in capsys.readouterr().out
    calls.clear()
    assert await asyncio.to_thread(run) == 0
    assert sum(calls) < first - 5  # warming up alone
    with SqliteLibrary.open(library, dim=turned.dim, checkpoint=turned.stamp) as catalog:
        assert len(catalog) == 6
    assert await asyncio.to_thread(run) == 0
    assert "nothing to do" in capsys.readouterr().err


async def test_clips_that_cannot_be_embedded_are_reported(
    library: Path, turned: Turned, fake_model: Any, run: Callable[..., int], capsys: Any
) -> None:
    lost, broken = audio_of(library, "200.wav"), audio_of(library, "800.wav")
    kept = lost.read_bytes(), broken.read_bytes()
    lost.unlink()
    broken.write_bytes(b"not a sound")
    assert await asyncio.to_thread(run) == 1
    out, err = capsys.readouterr()
    assert "2 clips could not be embedded" in out
    assert "200.wav (clip " in err and "its audio file is missing" in err and "800.wav (clip " in err
    with pytest.raises(CheckpointMismatch, match="remaining 2"):
        SqliteLibrary.open(library, dim=turned.dim, checkpoint=turned.stamp)
    lost.write_bytes(kept[0])
    with SqliteLibrary.open(library, dim=fake_model.dim, checkpoint=fake_model.stamp) as catalog:
        catalog.delete(next(clip.id for clip in catalog.list(9)[0] if clip.filename == "800.wav"))
    assert await asyncio.to_thread(run) == 0
    with SqliteLibrary.open(library, dim=turned.dim, checkpoint=turned.stamp) as catalog:
        assert len(catalog) == 5


async def test_restored_audio_is_embedded_while_following(
    library: Path, turned: Turned, run: Callable[..., int], capsys: Any
) -> None:
    lost = audio_of(library, "200.wav")
    content = lost.read_bytes()
    lost.unlink()
    following = asyncio.create_task(asyncio.to_thread(run, "--follow"))
    err: list[str] = []
    await until(lambda: err.append(capsys.readouterr().err) or "watching" in "".join(err))  # type: ignore[func-returns-value]
    lost.write_bytes(content)
    await until(lambda: covered(library, turned))
    SqliteLibrary.open(library, dim=turned.dim, checkpoint=turned.stamp).close()
    assert await following == 0


async def test_unusable_libraries_are_rejected(
    library: Path, turned: Turned, run: Callable[..., int], tmp_path: Path, capsys: Any
) -> None:
    with exclusive_lock(library / "reindex.lock", ""):
        assert await asyncio.to_thread(run) == 1
    assert capsys.readouterr().err == f"finelap reindex: already running on {library}\n"
    assert await asyncio.to_thread(run, "--data-dir", str(tmp_path / "nothing")) == 1
    assert capsys.readouterr().err == f"finelap reindex: there is no library in {tmp_path / 'nothing'}\n"
    SqliteLibrary.open(tmp_path / "empty", dim=4, checkpoint="any").close()
    assert await asyncio.to_thread(run, "--data-dir", str(tmp_path / "empty")) == 0
    assert "the library is empty" in capsys.readouterr().err
    assert not list(tmp_path.glob("*/reindex-*"))


@pytest.mark.parametrize("words", [["reindex"], ["backup", "there"], ["restore", "there"]])
def test_commands_need_a_library_in_a_folder(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("FINELAP_INDEX_URL", "milvus://host:19530")
    assert main(words) == 2
    assert capsys.readouterr().err.endswith("the library of FINELAP_INDEX_URL=milvus://host:19530 is not in a folder\n")


KILLED = """
import importlib.util, sys, time
from pathlib import Path
def load(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
from app.cli import reindex
model = load("tests_conftest", "tests/app/conftest.py").FakeModel()
turned = load("tests_reindex", "tests/app/cli/test_reindex.py").Turned(model)
most = int(sys.argv[2])
model.before = lambda: time.sleep(0.05 if sum(model.audio_batches) < most else 60)
reindex._PARALLEL_FILES = 2
reindex.load_model = lambda settings: turned
from app.cli.main import main
print("begun", flush=True)
sys.exit(main(["reindex", "--checkpoint", "new", "--data-dir", sys.argv[1]]))
"""


@pytest.mark.slow
async def test_reindex_survives_kills_at_random_moments(
    make_settings: Callable[..., Settings],
    open_client: Callable[..., httpx.AsyncClient],
    fake_model: Any,
    turned: Turned,
    sounds: SimpleNamespace,
    tmp_path: Path,
) -> None:
    from tests.support.clips import nearest_hits  # not above: the process that is killed loads this file alone

    settings = make_settings()
    files = {f"{n}.wav": sounds.wav(sounds.TONES[n % 6], 0.3 + n / 50) for n in range(40)}
    await fill(settings, fake_model, open_client, files)
    choose, progress, code = random.Random(2), [0], -signal.SIGKILL
    while code == -signal.SIGKILL:
        most = 15 if len(progress) <= KILLS else 1000  # windows: a process to be killed stops well before the end
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(settings.data_dir), str(most)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=REPO,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert process.stdout
        with process.stdout:
            assert process.stdout.readline() == b"begun\n"
            if len(progress) <= KILLS:
                goal = progress[-1] + choose.randint(0, 5)
                await until(lambda: side_path(settings.data_dir, turned.stamp).is_file())
                await until(lambda goal=goal: kept(settings.data_dir, turned) >= goal)  # type: ignore[misc]
                await asyncio.sleep(choose.uniform(0, 0.1))
                process.send_signal(signal.SIGKILL)
            code = await asyncio.to_thread(process.wait, 60)
        progress.append(kept(settings.data_dir, turned))
        assert progress[-1] >= progress[-2]  # stored results are never lost
        if progress[-1] < len(files):
            with pytest.raises(CheckpointMismatch):
                SqliteLibrary.open(settings.data_dir, dim=turned.dim, checkpoint=turned.stamp)
            SqliteLibrary.open(settings.data_dir, dim=fake_model.dim, checkpoint=fake_model.stamp).close()
    assert code == 0 and any(0 < number < len(files) for number in progress)  # at least one kill came midway
    await fill(make_settings(data_dir=tmp_path / "anew"), turned, open_client, files)
    with (
        SqliteLibrary.open(settings.data_dir, dim=turned.dim, checkpoint=turned.stamp) as changed,
        SqliteLibrary.open(tmp_path / "anew", dim=turned.dim, checkpoint=turned.stamp) as anew,
    ):
        query = turned.encode_text(["tone 800"])[0]
        found, expected = ([(h.clip.sha256, h.similarity) for h in nearest_hits(c, query, 99)] for c in (changed, anew))
        assert len(found) == len(files)
        assert dict(found) == pytest.approx(dict(expected), abs=1e-5)


async def test_backup_and_restore(
    library: Path, fake_model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with SqliteLibrary.open(library, dim=fake_model.dim, checkpoint=fake_model.stamp) as catalog:
        clips = catalog.list(10)[0]
        assert main(["backup", str(tmp_path / "b"), "--data-dir", str(library)]) == 0
        out, err = capsys.readouterr()
        assert out.endswith(": 6 clips, 6 new audio files\n") and "audio files: 100%" in err
        assert main(["restore", str(tmp_path / "b"), "--data-dir", str(library)]) == 1
        assert capsys.readouterr().err.endswith("not empty: restore to another folder, or move its files away\n")
    audio_of(library, "800.wav").unlink()
    assert main(["backup", str(tmp_path / "b"), "--data-dir", str(library)]) == 0  # it has that file from before
    new = tmp_path / "new"
    assert main(["restore", str(tmp_path / "b"), "--data-dir", str(new)]) == 0
    assert f"{new}: 6 clips, as of 2" in capsys.readouterr().out
    with SqliteLibrary.open(new, dim=fake_model.dim, checkpoint=fake_model.stamp) as catalog:
        assert catalog.list(10)[0] == clips and catalog.recovery_report == []
    assert main(["backup", str(tmp_path / "c"), "--data-dir", str(library)]) == 1
    assert "missing in the library" in capsys.readouterr().err
    assert main(["restore", str(tmp_path / "nowhere"), "--data-dir", str(tmp_path / "x")]) == 1
    assert capsys.readouterr().err == f"finelap restore: {tmp_path / 'nowhere'} is not a folder of backups\n"


async def test_concepts_survive_backup_restore_and_reindex(
    make_settings: Callable[..., Settings],
    open_client: Callable[..., httpx.AsyncClient],
    turned: Turned,
    fake_model: Any,
    sounds: SimpleNamespace,
    tmp_path: Path,
) -> None:
    settings, folders = make_settings(), (tmp_path / "data", tmp_path / "restored")

    async def found(client: httpx.AsyncClient) -> list[str]:
        hits = (await client.get("/search", params={"q": "concept:high beep", "k": 3})).json()["hits"]
        return sorted(hit["clip"]["filename"] for hit in hits if hit["score"] > 0.5)

    app = open_app(settings, fake_model)
    async with app.router.lifespan_context(app), open_client(app) as client:
        ids = {name: await add(client, sounds.wav(hz, seconds), name) for name, hz, seconds in (
            ("a.wav", 3200, 1), ("b.wav", 3200, 2), ("c.wav", 200, 1), ("d.wav", 400, 1), ("e.wav", 800, 3)
        )}  # fmt: skip
        files = {"positive": ("example.wav", sounds.wav(3200, 1.5))}
        form = {"name": "high beep", "examples": json.dumps([{"clip_id": ids["c.wav"], "label": False}])}
        assert (await client.post("/concepts", data=form, files=files)).status_code == 201
        before = (await client.get("/concepts/high beep")).json()
        assert await found(client) == ["a.wav", "b.wav"]
        assert main(["backup", str(tmp_path / "backups"), "--data-dir", str(folders[0])]) == 0
    assert main(["restore", str(tmp_path / "backups"), "--data-dir", str(folders[1])]) == 0
    assert await asyncio.to_thread(main, ["reindex", "--checkpoint", "new", "--data-dir", str(folders[0])]) == 0
    for folder, model in ((folders[1], fake_model), (folders[0], turned)):
        app = open_app(make_settings(data_dir=folder), model)
        async with app.router.lifespan_context(app), open_client(app) as client:
            assert await found(client) == ["a.wav", "b.wav"], model
            assert (await client.get("/concepts/high beep")).json() == before
            example = (await client.get("/concepts/high beep/examples")).json()["examples"][-1]
            audio = await client.get(f"/concepts/high beep/examples/{example['id']}/audio")
            assert audio.content == sounds.wav(3200, 1.5)


@pytest.mark.slow
async def test_finelap_small_with_changed_weights(
    make_settings: Callable[..., Settings],
    open_client: Callable[..., httpx.AsyncClient],
    sounds: SimpleNamespace,
    run: Callable[..., int],
    repo_dir: Path,
    tmp_path: Path,
) -> None:
    """The bundled checkpoint and another one on disk, loaded as the command and the service load them."""
    small, changed = str(repo_dir / "checkpoints/finelap-small"), str(tmp_path / "changed")
    old = await asyncio.to_thread(FineLAP.from_pretrained, small)
    with torch.no_grad():
        for parameter in old.parameters():
            parameter.mul_(1.01)
    old.save_pretrained(changed)
    files = {f"{hz}.wav": sounds.wav(hz, 1.0 + hz / 500) for hz in sounds.TONES}
    await fill(make_settings(), load_model(make_settings(checkpoint=small)), open_client, files)
    assert await asyncio.to_thread(run, "--checkpoint", changed) == 0
    model = load_model(make_settings(checkpoint=changed))
    await fill(make_settings(), model, open_client, {})  # the service starts with it
    await fill(make_settings(data_dir=tmp_path / "anew"), model, open_client, files)
    with (
        SqliteLibrary.open(tmp_path / "data", dim=model.dim, checkpoint=model.stamp) as ours,
        SqliteLibrary.open(tmp_path / "anew", dim=model.dim, checkpoint=model.stamp) as anew,
    ):
        for clip in anew.list(9)[0]:
            found = ours.find(clip.sha256)
            assert found is not None
            np.testing.assert_allclose(ours.clip_vector(found.id), anew.clip_vector(clip.id), atol=1e-4)
            np.testing.assert_allclose(ours.frames(found.id)[0], anew.frames(clip.id)[0], atol=5e-3)
