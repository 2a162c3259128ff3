"""Runs a service with the fake model in a separate process: `tone_server.py PORT DATA_DIR`.

Prints its address once it listens. Each batch takes a moment, so that a test can intervene. While a file "hold" exists
beside DATA_DIR, the model pauses after 30 windows, so that a test can intervene however late it is.
"""

import importlib.util
import sys
import time
from pathlib import Path

import uvicorn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def main(port: int, data_dir: Path) -> None:
    """Serves until it is killed."""
    spec = importlib.util.spec_from_file_location("tones", Path(__file__).parents[1] / "app/conftest.py")
    assert spec is not None and spec.loader is not None
    tones = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tones)
    from app.inference.engine import Engine
    from app.main import create_app
    from app.settings import Settings
    from index.sqlite.library import SqliteLibrary

    model = tones.FakeModel()
    hold = data_dir.with_name("hold")

    def wait() -> None:
        time.sleep(0.05)
        while sum(model.audio_batches) >= 30 and hold.exists():
            time.sleep(0.01)

    model.before = wait
    catalog = SqliteLibrary.open(data_dir, dim=model.dim, checkpoint=model.stamp)
    app = create_app(Settings(_env_file=None, data_dir=data_dir), Engine(model, max_batch_windows=4), catalog)
    print(f"http://127.0.0.1:{port}", flush=True)
    uvicorn.run(app, port=port, log_config=None, access_log=False)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
