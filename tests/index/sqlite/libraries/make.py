"""Makes a library as a release of before made it, for tests/index/sqlite/test_upgrades.py.

    python tests/index/sqlite/libraries/make.py COMMIT …     # writes tests/index/sqlite/libraries/COMMIT.tar.xz

Checks each commit out into a temporary folder and runs this file there, with that commit's `index`.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

DIM, CLIPS = 16, 14
CHECKPOINT = "checkpoint-of-then"
DELETED, PATCHED = 5, 7  # by number


def vectors(number: int) -> tuple[np.ndarray, np.ndarray]:
    """A clip's embedding (16,) and frames (T, 16), unit length, float32: the same for ever."""
    random = np.random.RandomState(1000 + number)  # whose numbers NumPy keeps from version to version
    drawn = random.standard_normal((1 + 8 + 5 * number, DIM))
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    return drawn[0].astype(np.float32), drawn[1:].astype(np.float32)


def about(number: int) -> dict[str, Any]:
    """A clip's metadata."""
    return {
        "tags": ["dog", "犬"] if number % 2 else ["rain"], "number": number, "loud": number > 6,
        "note": f"Take{number}OfTheDoor", "nested": {"deep": [number, None]}, "level": number / 4,
    }  # fmt: skip


def audio(number: int) -> bytes:
    """What stands for its file."""
    return b"audio %d " % number * 20


def fill(folder: Path) -> None:
    """The library: clips added, one deleted, one changed."""
    import index
    from index import NewClip

    library_class = index.Catalog if hasattr(index, "Catalog") else index.SqliteLibrary  # the name in older releases
    library = library_class.open(folder, dim=DIM, checkpoint=CHECKPOINT)
    ids = {}
    for number in range(CLIPS):
        embedding, frames = vectors(number)
        data = audio(number)
        clip, _ = library.add(
            NewClip(
                filename=f"DogBark_{number:02}-声.wav", sha256=hashlib.sha256(data).hexdigest(),
                duration=1.5 * (number + 1), sample_rate=16_000 + number, channels=1 + number % 2,
                metadata=about(number), embedding=embedding, frames=frames, frame_hop=0.16, audio=data,
            )
        )  # fmt: skip
        ids[number] = clip.id
    library.delete(ids[DELETED])
    library.update_metadata(ids[PATCHED], {"tags": ["changed"], "loud": None})
    (folder / "ids.json").write_text(json.dumps(ids))
    library.close()


def main() -> None:
    here = Path(__file__).resolve()
    for commit in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as work:
            tree, made = Path(work) / "tree", Path(work) / "library"
            subprocess.run(["git", "worktree", "add", "--detach", str(tree), commit], cwd=here.parent, check=True)
            try:
                environment = os.environ | {"PYTHONPATH": str(tree), "MAKE_LIBRARY": str(made)}
                subprocess.run([sys.executable, str(here)], env=environment, cwd=tree, check=True)
            finally:
                subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=here.parent, check=True)
            with tarfile.open(here.with_name(f"{commit}.tar.xz"), "w:xz", preset=9) as archive:
                for name in ("catalog.sqlite3", "ids.json", "audio"):
                    archive.add(made / name, name, filter=_anonymous)


def _anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    return entry


if __name__ == "__main__":
    if "MAKE_LIBRARY" in os.environ:
        fill(Path(os.environ["MAKE_LIBRARY"]))
    else:
        main()
