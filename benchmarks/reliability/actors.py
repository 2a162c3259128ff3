"""What else happens to a service during the soak test: concepts, jobs, live streams, and a folder in place.

Each actor has a thread and a model of what it has made. `check` compares that model with a service: the one that ran,
and one that was restored from a backup.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from app.client import Client, ServerError
from benchmarks import common
from benchmarks.common import Tape, encode
from model.config import SAMPLE_RATE

_MOST = 8  # concepts, and files in the folder
PLACE = "place"  # the folder's name

Wrong = Callable[[str], None]
Count = Callable[[str, int], None]


class Actor(threading.Thread):
    """Does `act` again and again. `wrong` takes a problem, `count` an action and its status."""

    pause = 0.5  # seconds between acts

    def __init__(self, address: str, wrong: Wrong, count: Count, stop: threading.Event) -> None:
        super().__init__(daemon=True, name=type(self).__name__)
        self.client = Client(address)
        self.address, self.count, self.stopping = address, count, stop
        self.choose = random.Random(self.name)
        self.tape = Tape(sum(map(ord, self.name)), pause=0.2)
        self._wrong = wrong

    def run(self) -> None:
        while not self.stopping.wait(self.pause):
            try:
                self.act()
            except Exception as error:
                self.wrong(f"{type(error).__name__}: {error}")

    def act(self) -> None:
        raise NotImplementedError

    def check(self, client: Client) -> list[str]:
        """What differs in a service from the model; its own service, or a restored backup."""
        return []

    def wrong(self, problem: str) -> None:
        self._wrong(f"{self.name}: {problem}")

    def file(self, seconds: float = 1.0) -> tuple[str, bytes]:
        """A `sound` with a name, as the client takes it."""
        return "sound.wav", self.sound(seconds)

    def sound(self, seconds: float = 1.0) -> bytes:
        """A WAV file that nobody else has."""
        return encode(self.tape.read(int(seconds * SAMPLE_RATE)), tag=f"{self.name} {self.choose.random()}")


class Teacher(Actor):
    """Teaches concepts from files, uses them in searches and detection, renames and deletes them."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.known: dict[str, int] = {}  # name → positive examples
        self._made = 0

    def act(self) -> None:
        verb = self.choose.choice([self.teach, self.teach, self.add, self.use, self.use, self.rename, self.forget])
        if self.known or verb == self.teach:
            verb()
            self.count(f"concepts: {verb.__name__}", 200)

    def some(self) -> str:
        return self.choose.choice(list(self.known))

    def teach(self) -> None:
        if len(self.known) >= _MOST:
            return self.forget()
        self._made += 1
        name = f"soak {self._made}"
        made = self.client.create_concept(name, "a sound", positive_files=self.file())
        self.known[name] = made.positives
        return None

    def add(self) -> None:
        name = self.some()
        self.client.add_examples(name, positive_files=self.file(), negative_files=self.file())
        self.known[name] += 1

    def use(self) -> None:
        name = f"concept:{self.some()}"
        self.client.search(name, k=5)
        self.client.detect([name, "rain"], file=self.file(3.0))

    def rename(self) -> None:
        name = self.some()
        self._made += 1
        self.client.update_concept(name, name=f"soak {self._made}")
        self.known[f"soak {self._made}"] = self.known.pop(name)

    def forget(self) -> None:
        name = self.some()
        self.client.delete_concept(name)
        del self.known[name]

    def check(self, client: Client) -> list[str]:
        there = {one.name: one.positives for one in client.concepts() if one.name.startswith("soak")}
        return [] if there == self.known else [f"concepts: {there} instead of {self.known}"]


class Scanner(Actor):
    """Starts jobs over the library, reads their tables, cancels some, and keeps the last two."""

    pause = 3.0

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.kept: dict[str, int] = {}  # id of a job that is done → clips

    def act(self) -> None:
        phrases = self.choose.sample(["dog", "rain", "bell", "engine", "glass"], 2)
        job = self.client.start_job(phrases)
        if self.choose.random() < 0.3:
            with contextlib.suppress(ServerError):  # it may be done, and is deleted then
                self.client.delete_job(job.id)
            self.count("jobs: cancelled", 200)
            return
        done = self.client.wait_for_job(job.id)
        if done.state != "done" or done.done != done.total:
            self.wrong(f"job {done}")
        if not self.client.job_events(job.id, "csv").startswith(b"filename,"):
            self.wrong("a job's table has no header")
        self.count("jobs: done", 200)
        self.kept[job.id] = done.total
        for old in list(self.kept)[:-2]:
            self.client.delete_job(old)
            del self.kept[old]

    def check(self, client: Client) -> list[str]:
        there = {job.id: job.total for job in client.jobs()}
        return [f"job {key} is lost or has other clips" for key, total in self.kept.items() if there.get(key) != total]


class Listener(Actor):
    """Streams live sound; sometimes it goes away in the middle, or sends what is no audio."""

    def act(self) -> None:
        kind = self.choose.choice(["whole", "whole", "gone", "wrong"])
        pieces = [(self.tape.read(SAMPLE_RATE // 2) * 32767).astype("<i2").tobytes() for _ in range(16)]
        if kind == "wrong":
            pieces[3] = b"odd"
        types = []
        try:
            for message in self.client.stream(["dog", "rain"], self._paced(pieces), sample_rate=SAMPLE_RATE):
                types.append(type(message).__name__)
                if kind == "gone" and len(types) > 1:
                    break
        except ServerError as error:
            if kind != "wrong" and error.status != 429:
                raise
            self.count(f"stream: {kind}", error.status or 0)
            return
        if kind == "wrong" or (kind == "whole" and types[-1] != "DetectionEnd"):
            self.wrong(f"a {kind} stream ended with {types[-3:]}")
        self.count(f"stream: {kind}", 200)

    def _paced(self, pieces: list[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            time.sleep(0.05)
            yield piece


class Keeper(Actor):
    """Changes a folder, to which `finelap watch --reference` keeps the library equal."""

    pause = 2.5  # seconds: a file is left alone until it has not changed for two

    def __init__(self, folder: Path, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.folder, self._made = folder, 0
        (folder / "notes.txt").write_text("never empty, which would count as not mounted")

    def act(self) -> None:
        for _ in range(3):
            self._change()
        self.scan()

    def _change(self) -> None:
        files = sorted(self.folder.rglob("*.wav"))
        verb = self.choose.choice(["add", "add", "change", "move", "delete"])
        if verb == "add" and len(files) < _MOST:
            self._made += 1
            target = self.folder / f"part {self._made % 3}" / f"{self._made}.wav"
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(self.sound())
        elif files:
            file = self.choose.choice(files)
            if verb == "change":
                file.write_bytes(self.sound())
            elif verb == "move":
                self._made += 1
                file.rename(self.folder / f"{self._made} moved.wav")
            else:
                file.unlink()

    def scan(self) -> None:
        """Runs the command once."""
        command = [*common.COMMAND, "watch", str(self.folder), "--reference", "--once", "--grace", "0", "--json"]
        state = ["--server", self.address, "--state", str(self.folder.parent / "watch.sqlite3")]
        environment = os.environ | {"PYTHONPATH": str(common.REPO)}
        done = subprocess.run([*command, *state], env=environment, capture_output=True, text=True, timeout=600)
        self.count("watch", done.returncode)
        if done.returncode:
            self.wrong(f"finelap watch: {done.returncode} {done.stdout[-300:]} {done.stderr[-300:]}")

    def settle(self) -> None:
        """Scans until all changes have been seen: those of the last two seconds are left to a later scan."""
        for _ in range(2):
            time.sleep(2.5)
            self.scan()

    def files(self) -> dict[str, str]:
        """SHA-256 → path within the folder."""
        return {
            hashlib.sha256(path.read_bytes()).hexdigest(): path.relative_to(self.folder).as_posix()
            for path in self.folder.rglob("*.wav")
        }

    def check(self, client: Client) -> list[str]:
        files = self.files()
        there = {
            clip.sha256: clip.metadata["path"]
            for clip in client.clips()
            if "path" in clip.metadata and "caller" not in clip.metadata
        }
        return [] if there == files else [f"folder in place: {there} instead of {files}"]


def audio_differs(client: Client, sample: int, choose: random.Random) -> list[str]:
    """Clips of a service whose audio does not have their checksum, of `sample` drawn ones."""
    clips = list(client.clips())
    wrong = []
    for clip in choose.sample(clips, min(sample, len(clips))):
        response = httpx.get(f"{client.server}/clips/{clip.id}/audio", timeout=120, trust_env=False)
        if not response.is_success or hashlib.sha256(response.content).hexdigest() != clip.sha256:
            wrong.append(f"audio of {clip.filename}: {response.status_code}")
    return wrong


def vectors_differ(one: Client, other: Client) -> list[str]:
    """Whether two services find the same with the same similarities."""
    queries = ["a dog", "rain on a roof", "an engine"]
    wrong = []
    for query in queries:
        found = [
            {h.clip.id: h.similarity for h in client.search(query, k=1000, mode="semantic")} for client in (one, other)
        ]
        common_ids = found[0].keys() & found[1].keys()
        apart = max((abs(found[0][key] - found[1][key]) for key in common_ids), default=np.inf)
        if found[0].keys() != found[1].keys() or apart > 1e-5:
            wrong.append(f"the search {query!r} differs: {len(common_ids)} of {len(found[0])} hits, {apart}")
    return wrong
