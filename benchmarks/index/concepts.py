"""How long teaching and using a concept takes in a large library: SQLite, through the service.

    python -m benchmarks.index.concepts --clips 100000 --examples 100

Clips are synthetic: five frames each around 400 centres, without audio files. Times are of HTTP calls in this process,
the first of their kind: POST /concepts (which stores the examples and fits), the first search, and suggestions; below
them the processor time, which says more on a machine that other work keeps busy.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from starlette.testclient import TestClient
from tqdm import tqdm

from app.inference.engine import Engine
from app.main import create_app
from app.services.concepts import warm_up
from app.settings import Settings
from benchmarks.common import REPO, machine, revision, table
from index import NewClip, SqliteLibrary
from index.new_clip import encode_clip
from index.sqlite import queries
from index.sqlite.store import DATABASE_FILE, Store
from model import FineLAP
from model.config import SAMPLE_RATE

_CENTRES, _FRAMES, _BATCH = 400, 5, 1000


def unit(values: np.ndarray) -> np.ndarray:
    """The rows at unit length, float32."""
    return np.asarray(values / np.linalg.norm(values, axis=-1, keepdims=True), dtype=np.float32)


def fill(folder: Path, model: FineLAP, clips: int) -> None:
    """Writes clips to the database, without audio files, which take most of the time and nothing here reads."""
    rng = np.random.default_rng(0)
    centres = unit(rng.standard_normal((_CENTRES, model.dim)))
    SqliteLibrary.open(folder, dim=model.dim, checkpoint=model.stamp).close()
    store = Store(folder / DATABASE_FILE)
    for start in tqdm(range(0, clips, _BATCH), desc="filling", unit_scale=_BATCH, unit="clip"):
        with store.write() as change:
            for number in range(start, min(start + _BATCH, clips)):
                noise = rng.standard_normal((1 + _FRAMES, model.dim)) / np.sqrt(model.dim)
                vectors = unit(centres[number % _CENTRES] + noise)
                sha256 = hashlib.sha256(b"%d" % number).hexdigest()
                new = NewClip(
                    f"{number}.wav", sha256, 0.8, SAMPLE_RATE, 1, {}, vectors[0], vectors[1:], 0.16, b""
                )  # fmt: skip
                queries.insert(change, encode_clip(new, model.dim, datetime.now(UTC)))
    store.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=100_000)
    parser.add_argument("--examples", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3, help="concepts that are taught, each of another centre")
    parser.add_argument("--folder", type=Path, help="the library, kept for later runs")
    options = parser.parse_args()
    model = FineLAP.from_pretrained(REPO / "checkpoints" / "finelap-small")
    warm_up()
    with tempfile.TemporaryDirectory(prefix="finelap-") as temporary:
        folder = options.folder or Path(temporary)
        if not (folder / DATABASE_FILE).exists():
            fill(folder, model, options.clips)
        settings = Settings(_env_file=None, data_dir=folder)  # type: ignore[call-arg]
        library = SqliteLibrary.open(folder, dim=model.dim, checkpoint=model.stamp)
        app = create_app(settings, Engine(model), library)
        ids = _ids(folder, model, options.rounds, options.examples)
        with TestClient(app, base_url="http://127.0.0.1") as client:
            client.get("/search", params={"q": "warm up"}).raise_for_status()
            rows = [_measure(client, number, own) for number, own in enumerate(ids)]
    columns = list(rows[0][0])
    print(machine(), revision(REPO))
    for clock, name in enumerate(("seconds", "processor seconds")):
        lines = [[n, *(f"{row[clock][c]:.3f}" for c in columns)] for n, row in enumerate(rows)]
        print(table([f"concept, {name}", *columns], lines))


def _ids(folder: Path, model: FineLAP, rounds: int, examples: int) -> list[list[str]]:
    """The ids of the clips around a centre, for each round."""
    store = Store(folder / DATABASE_FILE)
    with store.read() as view:
        found = [
            [
                row[0]
                for row in view.execute(
                    "SELECT id FROM clips WHERE (row - 1) % ? = ? ORDER BY row LIMIT ?", (_CENTRES, n, examples)
                )
            ]
            for n in range(rounds)
        ]
    store.close()
    return found


def _measure(client: TestClient, number: int, ids: list[str]) -> tuple[dict[str, float], dict[str, float]]:
    """The seconds of each call for one concept of these examples, and the processor seconds of all threads."""
    name = f"concept {number} {time.time()}"
    body = {"name": name, "examples": [{"clip_id": clip_id} for clip_id in ids]}

    def timed(call: Callable[[], object]) -> np.ndarray:
        began = np.array([time.perf_counter(), time.process_time()])
        call()
        return np.array([time.perf_counter(), time.process_time()]) - began

    def teach() -> None:
        assert client.post("/concepts", json=body).status_code == 201

    def search() -> None:
        client.get("/search", params={"q": f"concept:{name}"}).raise_for_status()

    def suggest() -> None:
        assert client.get(f"/concepts/{name}/suggestions").json()["suggestions"]

    seconds = {"teach": timed(teach), "first search": timed(search)}
    seconds["teach and search"] = seconds["teach"] + seconds["first search"]
    seconds |= {"second search": timed(search), "suggestions": timed(suggest)}
    wall, processor = ({name: float(value[clock]) for name, value in seconds.items()} for clock in (0, 1))
    return wall, processor


if __name__ == "__main__":
    main()
