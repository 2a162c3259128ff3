"""Runs the jobs of a library slowly, in processes that are to be killed: `job_process.py DATA_DIR PAUSE`.

For each line on standard input it forks a process that serves the library, prints its id, and waits until it has been
killed: the modules are imported once.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def fakes() -> ModuleType:
    """The module with the fake model, tests/app/conftest.py."""
    if "tests_app_fakes" not in sys.modules:
        spec = importlib.util.spec_from_file_location("tests_app_fakes", Path(__file__).parents[1] / "app/conftest.py")
        assert spec is not None and spec.loader is not None
        sys.modules["tests_app_fakes"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules["tests_app_fakes"]


def make_app(folder: Path, pause: float = 0.0, stamp: str = "fake-stamp", **settings: Any) -> Any:
    """An app around the library in `folder`, whose model takes `pause` seconds longer for each block of frames."""
    from app.inference.engine import Engine
    from app.main import create_app
    from app.settings import Settings
    from index import SqliteLibrary

    class SlowModel(fakes().FakeModel):
        def frame_score(self, frames: np.ndarray, text: np.ndarray) -> np.ndarray:
            time.sleep(pause)
            return super().frame_score(frames, text)

    model = SlowModel()
    model.stamp = stamp
    library = SqliteLibrary.open(folder, dim=model.dim, checkpoint=model.stamp)
    return create_app(Settings(_env_file=None, data_dir=folder, **settings), Engine(model), library)


def run_jobs(folder: Path, pause: float) -> None:
    """Serves without a socket until it is killed; commits every few clips."""
    from app.services import jobs

    jobs._COMMIT_S = 3 * pause

    async def serve() -> None:
        app = make_app(folder, pause)
        async with app.router.lifespan_context(app):
            await asyncio.sleep(600)

    asyncio.run(serve())


def main(folder: Path, pause: float) -> None:
    """Forks processes until standard input ends."""

    for name in ("app.main", "model.cpu.threads", "app.services.jobs"):
        importlib.import_module(name)
    fakes()
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            run_jobs(folder, pause)
            os._exit(1)
        print(child, flush=True)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
