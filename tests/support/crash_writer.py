"""Changes a library without end and says after each change that it was made; to be killed. Run by test_crash.py.

Prints one JSON line for each change that returned, its intent before it begins: ["begin" | "done", verb, ids or seeds].
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
import threading
from pathlib import Path

import numpy as np

from index import NewClip, SqliteLibrary

DIM = 32


def clip_of(seed: int, batch: int) -> NewClip:
    """The clip that belongs to this seed; the audio says which."""
    rng = np.random.default_rng(seed)
    audio = b"%d " % seed + rng.bytes(20_000)
    vectors = rng.standard_normal((9, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return NewClip(
        filename=f"{seed}.wav",
        sha256=hashlib.sha256(audio).hexdigest(),
        duration=1.0,
        sample_rate=16_000,
        channels=1,
        metadata={"seed": seed, "batch": batch, "version": 0},
        embedding=vectors[0],
        frames=vectors[1:],
        frame_hop=0.16,
        audio=audio,
    )


def say(*line: object) -> None:
    os.write(1, (json.dumps(line) + "\n").encode())  # one write, so that a kill cuts no line that was begun by another


def work(library: SqliteLibrary, first_seed: int) -> None:
    """Adds (one, or several at once), updates and deletes, in a random order."""
    choose = random.Random(first_seed)
    seed, mine = first_seed, {}
    while True:
        verb = choose.choice(["add", "add", "add_many", "update", "delete"]) if mine else "add"
        if verb in ("add", "add_many"):
            seeds = list(range(seed, seed + (1 if verb == "add" else 4)))
            seed += len(seeds)
            say("begin", "add", seeds)
            results = library.add_many([clip_of(number, batch=seeds[0]) for number in seeds])
            mine |= {number: clip.id for number, (clip, _) in zip(seeds, results, strict=True)}
            say("done", "add", seeds)
        else:
            number = choose.choice(list(mine))
            say("begin", verb, [number])
            if verb == "update":
                library.update_metadata(mine[number], {"version": library.get(mine[number]).metadata["version"] + 1})
            else:
                library.delete(mine.pop(number))
            say("done", verb, [number])


if __name__ == "__main__":
    library = SqliteLibrary.open(Path(sys.argv[1]), dim=DIM, checkpoint="crash")
    say("open", library.recovery_report)
    start = int(sys.argv[2])
    for offset in (0, 100_000):
        threading.Thread(target=work, args=(library, start + offset)).start()
