"""Changes a library without end and says after each change that it was made; to be killed. Run by test_crash.py.

With the argument "concepts" it teaches concepts, with fits between the examples.

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

from index import ExampleSound, NewClip, NewExample, NewSound, SqliteLibrary, encode_frames

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


def sound_of(seed: int) -> NewSound:
    """An example's sound that belongs to this seed."""
    clip = clip_of(seed, 0)
    assert isinstance(clip.audio, bytes) and isinstance(clip.frames, np.ndarray)
    sound = ExampleSound(clip.sha256, clip.duration, clip.embedding, encode_frames(clip.frames), clip.frame_hop)
    return NewSound(sound, clip.audio)


def teach(library: SqliteLibrary, first_seed: int) -> None:
    """Creates a concept, and adds and deletes its examples; a fit is stored after each."""
    choose = random.Random(first_seed)
    name, seed = f"concept {first_seed}", first_seed
    say("begin", "add", [seed])
    concept = library.concepts.create(name, None, [NewExample(True, str(seed), sound=sound_of(seed))])
    say("done", "add", [seed])
    mine: dict[int, str] = {}
    while True:
        if mine and choose.random() < 0.3:
            number = choose.choice(list(mine))
            say("begin", "delete", [number])
            library.concepts.delete_example(name, mine.pop(number))
            say("done", "delete", [number])
        else:
            seed += 1
            say("begin", "add", [seed])
            (added,) = library.concepts.add_examples(
                name, [NewExample(bool(seed % 3), str(seed), sound=sound_of(seed))]
            )
            mine[seed] = added.id
            say("done", "add", [seed])
        library.concepts.save_fit(concept.id, str(seed), "x" * 5000)


if __name__ == "__main__":
    library = SqliteLibrary.open(Path(sys.argv[1]), dim=DIM, checkpoint="crash")
    say("open", library.recovery_report)
    start = int(sys.argv[2])
    for offset in (0, 100_000):
        threading.Thread(target=teach if "concepts" in sys.argv else work, args=(library, start + offset)).start()
