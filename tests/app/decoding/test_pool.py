"""Isolated decoding: results, real crashes, and cleanup."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest

from app.audio.decode import DecoderFailed, MediaError, NotAudio, TooLong, TruncatedAudio, decode
from app.audio.tracks import Note, Track
from app.decoding import protocol
from app.decoding.fork_server import _MAIN, open_descriptor
from app.decoding.pool import DecoderPool
from app.decoding.worker import _send_all
from app.inference.batcher import Closed
from tests.support import hostile, waiting

until = partial(waiting.until, seconds=20.0)


def server_process(pool: DecoderPool) -> psutil.Process:
    assert pool._fork_server._process is not None
    return psutil.Process(pool._fork_server._process.pid)


def fork_pid(pool: DecoderPool) -> int | None:
    """The pid of the fork server, which may have exited; None if there is none."""
    return pool._fork_server._process.pid if pool._fork_server._process is not None else None


def has_ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def busy_pid(pool: DecoderPool) -> int:
    """The pid of the only busy worker."""
    (worker,) = pool._alive - set(pool._idle)
    return worker.pid


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def drain(pool: DecoderPool, data: bytes, name: str = "a", **options: float) -> np.ndarray:
    async with pool.open(io.BytesIO(data), name, **options) as stream:
        return np.concatenate([block async for block in stream])


@pytest.fixture
async def pool() -> AsyncIterator[DecoderPool]:
    pool = DecoderPool(workers=2, max_workers=4)
    await pool.start()
    await until(lambda: pool.alive == 2)
    yield pool
    await pool.close()


@pytest.fixture
def long_flac(sounds: SimpleNamespace) -> bytes:
    """60 s of noise, more than fits into a socket buffer."""
    return sounds.encode(np.random.default_rng(0).uniform(-0.5, 0.5, 960_000).astype(np.float32), "FLAC")


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes workers forked from now on fill each message, however long that takes."""
    main = _MAIN.replace("; main(", "; from app.decoding import worker; worker._MAX_DELAY = 3600; main(")
    monkeypatch.setattr("app.decoding.fork_server._MAIN", main)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize(("kind", "rate"), [("WAV", 44_100), ("FLAC", 8_000), ("OGG", 48_000), ("MP3", 22_050)])
async def test_pool_matches_in_process_decoding(
    sounds: SimpleNamespace, pool: DecoderPool, kind: str, rate: int
) -> None:
    data = sounds.encode(np.stack([sounds.tone(440, 7.3, rate), sounds.tone(1000, 7.3, rate)], 1), kind, rate)
    expected = decode(data, "a")
    async with pool.open(io.BytesIO(data), "a") as stream:
        assert (stream.sample_rate, stream.channels) == (rate, 2)
        blocks = [block async for block in stream]
    assert [len(block) // 16_000 for block in blocks] == [7] and all(b.dtype == np.float32 for b in blocks)
    np.testing.assert_array_equal(np.concatenate(blocks), expected.samples)
    assert stream.duration == expected.duration
    assert stream.decode_s > 0 and stream.resample_s > 0


async def test_worker_killed_after_its_last_message_is_replaced(sounds: SimpleNamespace, pool: DecoderPool) -> None:
    async with pool.open(io.BytesIO(sounds.wav(440, 2.0)), "a") as stream:
        (worker,) = pool._alive - set(pool._idle)
        process = psutil.Process(worker.pid)
        await until(
            lambda: process.status() == psutil.STATUS_SLEEPING
        )  # everything is in the socket: the worker waits for its next file
        os.kill(worker.pid, signal.SIGKILL)
        await worker.exited
        assert sum([len(block) async for block in stream]) == 32_000
    assert worker not in pool._alive
    await until(lambda: len(pool._idle) == 2 and all(not other.exited.done() for other in pool._idle))


async def test_workers_are_reused(sounds: SimpleNamespace, pool: DecoderPool) -> None:
    before = {worker.pid for worker in pool._alive}
    for _ in range(20):
        await drain(pool, sounds.wav())
    assert {worker.pid for worker in pool._alive} == before


async def test_files_of_every_kind(sounds: SimpleNamespace, pool: DecoderPool, tmp_path: Path) -> None:
    data = sounds.wav(seconds=1.5)
    path = tmp_path / "声\n.wav"
    path.write_bytes(data)
    expected = decode(data, "a").samples
    with tempfile.SpooledTemporaryFile(max_size=1 << 20) as spooled, path.open("rb") as opened:
        spooled.write(data)
        opened.seek(7)
        for file in (path, opened, spooled, io.BytesIO(data)):
            async with pool.open(file, "a") as stream:
                np.testing.assert_array_equal(np.concatenate([block async for block in stream]), expected)
        assert opened.tell() == 7 and spooled.tell() == len(data)
    with pytest.raises(FileNotFoundError):
        async with pool.open(tmp_path / "none.wav", "none.wav"):
            pass


async def test_concurrent_decoding_of_one_file(sounds: SimpleNamespace, pool: DecoderPool) -> None:
    data = sounds.encode(np.random.default_rng(1).uniform(-1, 1, 80_000).astype(np.float32))
    expected = decode(data, "a").samples
    with tempfile.TemporaryFile() as file:
        file.write(data)

        async def one() -> np.ndarray:
            async with pool.open(file, "a") as stream:
                return np.concatenate([block async for block in stream])

        for samples in await asyncio.gather(*(one() for _ in range(12))):
            np.testing.assert_array_equal(samples, expected)


async def test_media_errors_are_passed_on(sounds: SimpleNamespace, pool: DecoderPool) -> None:
    wav = sounds.encode(sounds.tone(440, 8), subtype="PCM_16")
    with pytest.raises(TruncatedAudio, match="半.wav: the file is truncated") as truncated:
        await drain(pool, wav[: len(wav) // 2], "半.wav")
    assert truncated.value.read == pytest.approx(4, abs=0.01)
    with pytest.raises(NotAudio, match="letter: "):
        await drain(pool, b"a letter " * 100, "letter")
    with pytest.raises(TooLong, match="limit of 2 s"):
        await drain(pool, wav, max_duration=2.0)
    await until(lambda: pool.alive == 2)
    assert len(await drain(pool, wav)) == 128_000


async def test_crash_before_the_first_block_is_retried(pool: DecoderPool, long_flac: bytes) -> None:
    for worker in list(pool._alive):  # both idle: the pool may notice before the request, or not
        os.kill(worker.pid, signal.SIGSEGV)
    assert len(await drain(pool, long_flac)) == 960_000
    async with pool.open(io.BytesIO(long_flac), "a") as stream:
        await anext(stream)
        os.kill(busy_pid(pool), signal.SIGKILL)
        with pytest.raises(DecoderFailed):  # some blocks were delivered, so there is no retry
            async for _ in stream:
                pass
    await until(lambda: pool.alive == 2)


async def test_crash_after_the_first_block_is_reported(
    pool: DecoderPool, long_flac: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.decoding.pool._EXIT_TIMEOUT", 60)
    with pytest.raises(DecoderFailed, match=r"boom\.flac: the decoder crashed \(Segmentation fault\)"):
        async with pool.open(io.BytesIO(long_flac), "boom.flac") as stream:
            async for _ in stream:
                if stream._delivered and pool._alive - set(pool._idle):
                    with contextlib.suppress(ProcessLookupError):  # messages sent before its exit are still read
                        os.kill(busy_pid(pool), signal.SIGSEGV)
    await until(lambda: pool.alive == 2)
    assert len(await drain(pool, long_flac)) == 960_000


async def test_hung_decoder_is_reported(long_flac: bytes) -> None:
    pool = DecoderPool(workers=1, stall_s=0.3)
    await pool.start()
    await until(lambda: pool.alive == 1)
    (worker,) = pool._alive
    os.kill(worker.pid, signal.SIGSTOP)
    heard = asyncio.create_task(drain(pool, long_flac))
    await until(lambda: not pool._idle)  # its 0.3 s start here
    pool._stall_s = 60  # of the next worker, which may be slow on a busy machine
    assert len(await heard) == 960_000
    assert worker not in pool._alive and pool.alive == 1
    await asyncio.wait_for(worker.exited, 60)
    async with pool.open(io.BytesIO(long_flac), "a") as stream:
        await anext(stream)
        os.kill(busy_pid(pool), signal.SIGSTOP)
        pool._stall_s = 0.3
        with pytest.raises(DecoderFailed, match="stalled for 0.3 s"):
            async for _ in stream:
                pass
    await pool.close()


async def test_memory_limit(sounds: SimpleNamespace) -> None:
    pool = DecoderPool(workers=1, memory_mb=32)
    await pool.start()
    with pytest.raises(DecoderFailed, match=r"b\.mov: the decoder exceeded its memory limit of 32 MB"):
        await drain(pool, hostile.balloon(64), "b.mov")
    with pytest.raises(NotAudio):
        await drain(pool, hostile.balloon(8), "b.mov")
    assert len(await drain(pool, sounds.wav(seconds=3))) == 48_000
    await pool.close()


async def test_paused_reader_pauses_the_decoder(pool: DecoderPool, long_flac: bytes) -> None:
    async with pool.open(io.BytesIO(long_flac), "a") as stream:
        process = psutil.Process(busy_pid(pool))
        first = await anext(stream)
        await until(lambda: process.status() == psutil.STATUS_SLEEPING)
        await asyncio.sleep(0.1)
        used = process.cpu_times()
        await asyncio.sleep(0.3)
        assert process.cpu_times()[:2] == used[:2]
        rest = [block async for block in stream]
    np.testing.assert_array_equal(np.concatenate([first, *rest]), decode(long_flac, "a").samples)


async def test_leaving_early_cleans_up(pool: DecoderPool, long_flac: bytes) -> None:
    await drain(pool, long_flac)
    gc.collect()
    before = descriptors()
    for _ in range(10):
        async with pool.open(io.BytesIO(long_flac), "a") as stream:
            await anext(stream)
    await until(lambda: pool.alive == 2)
    assert descriptors() == before
    await until(lambda: {child.pid for child in server_process(pool).children()} == {w.pid for w in pool._alive})


async def test_the_pool_grows_and_shrinks(pool: DecoderPool, long_flac: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.decoding.pool._IDLE_TIMEOUT", 0.1)
    read_on = asyncio.Event()

    async def one() -> None:
        async with pool.open(io.BytesIO(long_flac), "a") as stream:
            await anext(stream)
            await read_on.wait()  # paused
            async for _ in stream:
                pass

    tasks = [asyncio.create_task(one()) for _ in range(6)]
    await until(lambda: pool.alive == 4 and len(pool._waiters) == 2)
    read_on.set()
    await asyncio.gather(*tasks)
    await until(lambda: pool.alive == 2)
    await until(lambda: len(server_process(pool).children()) == 2)


async def test_workers_in_use_do_not_shrink(
    pool: DecoderPool, monkeypatch: pytest.MonkeyPatch, long_flac: bytes
) -> None:
    """Workers that are idle only between two files are kept at every shrink."""
    monkeypatch.setattr("app.decoding.pool._IDLE_TIMEOUT", 3600)  # shrinking is triggered by this test
    all_four = asyncio.Barrier(4)

    async def one() -> None:
        async with pool.open(io.BytesIO(long_flac), "a") as stream:
            await anext(stream)
            await all_four.wait()
            async for _ in stream:
                pass

    await asyncio.gather(*(one() for _ in range(4)))
    pool._schedule_shrink()
    for _ in range(3):
        await asyncio.gather(*(one() for _ in range(4)))
        assert len(pool._idle) == 4
        pool._shrink()
        assert pool.alive == 4
    pool._shrink()
    assert pool.alive == 2


async def test_too_few_workers_do_not_shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a shrink there may be fewer workers than the warm ones, if some have just died."""
    pool = DecoderPool(workers=3)
    await pool.start()
    try:
        await until(lambda: len(pool._idle) == 3)
        monkeypatch.setattr(pool, "_grow", lambda: None)
        pool._discard(pool._idle[0])
        pool._unused = 2
        pool._shrink()
        assert pool.alive == 2
    finally:
        await pool.close()


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="this system has no files in memory")
async def test_small_uploads_stay_in_memory() -> None:
    with tempfile.SpooledTemporaryFile(max_size=1 << 20) as small, tempfile.SpooledTemporaryFile(max_size=10) as large:
        for file, in_memory in ((small, True), (large, False)):
            file.write(b"some sound")
            file.write(b", and more")
            file.seek(3)
            descriptor = await open_descriptor(file)  # type: ignore[arg-type]
            assert os.readlink(f"/proc/self/fd/{descriptor}").startswith("/memfd:") == in_memory
            assert os.read(descriptor, 100) == b"some sound, and more" and file.tell() == 3
            os.close(descriptor)


@pytest.mark.parametrize(("pause", "sizes"), [(0.0, [12, 12, 6]), (0.03, [1] * 30)])
def test_messages_are_batched_up_to_a_delay(monkeypatch: pytest.MonkeyPatch, pause: float, sizes: list[int]) -> None:
    """Audio that is decoded quickly is sent together; slow audio is sent without waiting."""
    now = 0.0

    class Slow:
        rate, sample_rate, channels, duration, decode_s, resample_s = 16_000, 16_000, 1, 30.0, 0.0, 0.0
        track, notes = Track(0, 1), (Note("silent", "every sample is 0"),)

        def __iter__(self) -> Iterator[np.ndarray]:
            nonlocal now
            for second in range(30):
                now += pause
                yield np.full(16_000, second, np.float32)

    sent: list[list[tuple[Any, ...]]] = []
    monkeypatch.setattr("app.decoding.worker.time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr("app.decoding.worker._send", lambda sock, *messages: sent.append(list(messages)))
    _send_all(None, io.BytesIO(), Slow())  # type: ignore[arg-type]
    sound = [message for together in sent for message in together if message[0] == protocol.AUDIO]
    assert [len(message) - 1 for message in sound] == sizes
    assert [kind for together in sent for kind, *_ in together] == [
        protocol.INFO,
        *[protocol.AUDIO] * len(sizes),
        protocol.END,
    ]
    assert len(sent) <= len(sizes) + 1 and sent[0][0][0] == protocol.INFO
    heard = np.concatenate([np.frombuffer(block, np.float32) for message in sound for block in message[1:]])
    np.testing.assert_array_equal(heard, np.repeat(np.arange(30, dtype=np.float32), 16_000))


async def test_callers_wait_in_order(sounds: SimpleNamespace) -> None:
    pool = DecoderPool(workers=1, max_workers=1)
    await pool.start()
    served: list[int] = []

    async def one(number: int) -> None:
        async with pool.open(io.BytesIO(sounds.wav()), "a") as stream:
            served.append(number)
            async for _ in stream:
                pass

    async with pool.open(io.BytesIO(sounds.wav()), "a"):
        tasks = []
        for number in range(6):
            tasks.append(asyncio.create_task(one(number)))
            await until(lambda: len(pool._waiters) == len(tasks))
        tasks[2].cancel()
        await until(lambda: len(pool._waiters) == 5)
    await asyncio.wait(tasks)
    assert served == [0, 1, 3, 4, 5]
    await pool.close()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
async def test_many_callers_cancellations_and_crashes(sounds: SimpleNamespace, long_flac: bytes, seed: int) -> None:
    rng = random.Random(seed)
    pool = DecoderPool(workers=2, max_workers=6, stall_s=60)
    await pool.start()
    await until(lambda: pool.alive == 2)
    files = [sounds.wav(seconds=3), long_flac, b"no sound at all", sounds.wav(seconds=0.01)]
    await drain(pool, files[0])
    gc.collect()
    before = descriptors()
    done = {"whole": 0, "refused": 0, "crashed": 0, "cancelled": 0}
    ended = asyncio.Semaphore(0)

    async def one() -> None:
        which = rng.choice(files)
        try:
            await asyncio.sleep(rng.random())
            samples = await drain(pool, which)
            assert len(samples) == (48_000 if which is files[0] else 960_000)
            done["whole"] += 1
        except DecoderFailed:
            done["crashed"] += 1
        except MediaError:
            assert which not in files[:2]
            done["refused"] += 1
        except asyncio.CancelledError:
            done["cancelled"] += 1
        finally:
            ended.release()

    async def wreck() -> None:
        while True:
            for _ in range(rng.randint(1, 7)):  # as many files as when it was fastest
                await ended.acquire()
            await asyncio.sleep(rng.random() * 0.02)
            if pool._alive:
                victim = rng.choice([worker.pid for worker in pool._alive])
                if victim in {child.pid for child in server_process(pool).children()}:
                    os.kill(victim, rng.choice([signal.SIGSEGV, signal.SIGKILL]))

    async def lose_patience(tasks: list[asyncio.Task[None]]) -> None:
        for task in rng.sample(tasks, len(tasks) // 3):
            await asyncio.sleep(rng.random() * 0.02)
            task.cancel()

    tasks = [asyncio.create_task(one()) for _ in range(200)]
    wrecker = asyncio.create_task(wreck())
    await lose_patience(tasks)
    await asyncio.wait(tasks)
    wrecker.cancel()
    assert done["whole"] > 30 and done["cancelled"] > 10 and done["refused"] > 10, done
    await until(lambda: len(pool._idle) == pool.alive >= 2 and not pool._waiters)
    assert len(await drain(pool, long_flac)) == 960_000
    await until(lambda: len(server_process(pool).children()) == pool.alive)  # the last exits may not have been noticed
    assert pool.alive <= 6
    gc.collect()
    assert descriptors() == before + pool.alive - 2  # one socket per worker
    server = server_process(pool)
    await pool.close()
    assert not server.is_running() and pool.alive == 0


async def test_fork_server_is_restarted(pool: DecoderPool, long_flac: bytes) -> None:
    server = server_process(pool)
    workers = server.children()
    server.kill()
    await until(lambda: fork_pid(pool) not in (None, server.pid))
    assert len(await drain(pool, long_flac)) == 960_000
    await until(lambda: pool.alive == 2)
    assert server_process(pool).pid != server.pid
    await until(lambda: all(has_ended(worker.pid) for worker in workers))


async def test_fork_server_that_cannot_start(monkeypatch: pytest.MonkeyPatch, pool: DecoderPool) -> None:
    monkeypatch.setattr("app.decoding.fork_server._MAIN", "raise SystemExit(3)")
    with pytest.raises(RuntimeError, match="cannot be started"):
        await DecoderPool().start()
    server_process(pool).kill()
    await until(lambda: pool._fork_server._watcher is not None and pool._fork_server._watcher.done())
    with pytest.raises(RuntimeError, match="cannot be started"):
        await drain(pool, b"RIFF")
    monkeypatch.undo()
    with pytest.raises(NotAudio):  # the next request retries
        await drain(pool, b"RIFF")


async def test_close_ends_all_processes(long_flac: bytes) -> None:
    before = descriptors()
    pool = DecoderPool(workers=1, max_workers=2)
    await pool.start()
    server = server_process(pool)
    inside = asyncio.Event()

    async def one() -> None:
        async with pool.open(io.BytesIO(long_flac), "a") as stream:
            await anext(stream)
            inside.set()
            await asyncio.sleep(0.2)
            async for _ in stream:
                pass

    tasks = [asyncio.create_task(one()) for _ in range(5)]
    await inside.wait()
    workers = server.children()
    await pool.close()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, Closed) for result in results), results
    assert not server.is_running() and not any(worker.is_running() for worker in workers)
    with pytest.raises(Closed):
        await drain(pool, long_flac)
    await asyncio.sleep(0)
    assert descriptors() == before


async def test_worker_limits_and_descriptors(pool: DecoderPool) -> None:
    """Workers are small, niced and confined, and have none of the server's sockets or secrets."""
    listening = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    more = DecoderPool(workers=1)
    await more.start()
    await until(lambda: more.alive == 1)
    server = server_process(more)
    (worker,) = server.children()
    await until(lambda: worker.status() == psutil.STATUS_SLEEPING)  # it is confined and idle
    for process in (server, worker):
        mapped = {Path(region.path).name for region in process.memory_maps()}
        assert not any("torch" in name for name in mapped) and any("sndfile" in name for name in mapped)
        assert process.nice() == min(psutil.Process().nice() + 5, 19)
        assert set(process.environ()) <= {
            *("PATH", "LD_LIBRARY_PATH", "PYTHONHOME", "LANG", "LC_ALL", "LC_CTYPE", "TMPDIR", "VIRTUAL_ENV"),
            *("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "PYTHONUTF8"),
        }
        assert process.num_threads() == 1
    assert worker.net_connections("inet") == []
    sockets = [os.readlink(f"/proc/{worker.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{worker.pid}/fd")]
    assert sum(name.startswith("socket:") for name in sockets) == 1
    assert worker.rlimit(psutil.RLIMIT_CORE) == worker.rlimit(psutil.RLIMIT_FSIZE) == (0, 0)
    assert worker.rlimit(psutil.RLIMIT_NOFILE)[1] < 100
    assert worker.rlimit(psutil.RLIMIT_AS)[1] - worker.memory_info().vms == pytest.approx(1024 << 20, rel=0.1)
    for number in (signal.SIGINT, signal.SIGTERM):
        worker.send_signal(number)
    await until(lambda: worker.status() == psutil.STATUS_SLEEPING)  # a signal that is handled would wake it at once
    assert worker.is_running()
    await more.close()
    listening.close()


def test_worker_imports_no_heavy_modules(repo_dir: Path) -> None:
    code = "import sys, app.decoding.worker; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=repo_dir, capture_output=True, text=True, check=True)
    heavy = {"torch", "fastapi", "starlette", "pydantic", "transformers", "asyncio", "threading.local"}
    assert not heavy & {name.split(".")[0] for name in loaded.stdout.split()}


_SCRIPT = """
import asyncio, io, os, sys
raise_if_imported_again = os.mkdir(sys.argv[1])
from app.decoding.pool import DecoderPool
import numpy as np, soundfile
async def main():
    file = io.BytesIO()
    soundfile.write(file, np.zeros(960_000, np.float32), 16_000, format="FLAC")
    pool = DecoderPool(workers=2)
    await pool.start()
    async with pool.open(file, "a") as stream:
        total = 0
        async for block in stream:
            total += len(block)
            if sys.argv[2] == "die":
                print(pool._fork_server._process.pid, *(worker.pid for worker in pool._alive), flush=True)
                os.kill(os.getpid(), 9)
    await pool.close()
    print(total)
asyncio.run(main())
"""


def test_pool_in_a_script_without_main_guard(repo_dir: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT)
    command = [sys.executable, str(script), str(tmp_path / "once"), "live"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(repo_dir)}, capture_output=True, text=True)
    assert done.stdout == "960000\n" and done.stderr == ""


async def test_processes_end_with_the_server(repo_dir: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT)
    command = [sys.executable, str(script), str(tmp_path / "once"), "die"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(repo_dir)}, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) > 1
    await until(lambda: all(map(has_ended, pids)))


async def test_library_output_is_silenced(
    sounds: SimpleNamespace, pool: DecoderPool, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = sounds.encode(np.random.default_rng(0).uniform(-0.5, 0.5, 80_000), "MP3")
    joined = whole + whole  # whose header counts a half of it
    with contextlib.suppress(MediaError):
        decode(joined, "a")
    assert "stream size off" in capfd.readouterr().err  # otherwise the test proves nothing
    with contextlib.suppress(MediaError):
        await drain(pool, joined)
    assert capfd.readouterr() == ("", "")
