"""Imports what the service imports, so that Python writes its bytecode into the image.

    python docker/warm.py [FOLDER]

The image's root file system is read-only, and bytecode of all installed modules takes 350 MB. Starts a service with a
temporary library, the checkpoint in FINELAP_CHECKPOINT, and the sounds in FOLDER (demo/sounds) as its first clips, and
sends it one request of most kinds. Exits with 1 if one fails.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

# imported only with certain settings
_OPTIONAL = ("pymilvus", "s3fs", "index.milvus.library", "opentelemetry.exporter.otlp.proto.http.trace_exporter")
_READY = re.compile(r"FineLAP is ready: (http://\S+)")
_TIMEOUT = 600  # seconds


def main() -> int:
    sounds = Path(sys.argv[1] if len(sys.argv) > 1 else "demo/sounds").resolve()
    for module in _OPTIONAL:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    with tempfile.TemporaryDirectory() as folder:
        # the temporary folders of the image are volumes, which nothing may be left in
        environment = os.environ | {"FINELAP_DATA_DIR": f"{folder}/data", "TMPDIR": folder, "MPLCONFIGDIR": folder}
        command = ["finelap", "serve", "--host", "127.0.0.1", "--port", "0", "--demo", str(sounds)]
        service = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, cwd=folder)
        try:
            assert service.stdout is not None
            address = next((found[1] for line in service.stdout if (found := _READY.search(line))), None)
            if address is None:
                return 1
            use(address, next(iter(sorted(sounds.glob("dog-barking-*")))))
        finally:
            service.terminate()
            code = service.wait(_TIMEOUT)
    return code


def use(address: str, sound: Path) -> None:
    """Sends one request of most kinds. Raises httpx.HTTPError if one fails."""
    import httpx

    with httpx.Client(base_url=address, timeout=_TIMEOUT) as client:

        def get(path: str, **params: str) -> httpx.Response:
            return client.get(path, params=params).raise_for_status()

        for form in ("json", "ndjson", "csv", "png"):
            content = {"phrases": ["dog barking", "rain"], "format": form}
            files = {"file": (sound.name, sound.read_bytes())}
            client.post("/detect", files=files, data=content).raise_for_status()
        for path in ("/", "/docs", "/info", "/metrics", "/health/ready", "/openapi.json"):
            get(path)
        (hit,) = get("/search", q="dog barkng", k="1").json()["hits"]
        get(f"/clips/{hit['clip']['id']}/similar")
        get(f"/clips/{hit['clip']['id']}/peaks")


if __name__ == "__main__":
    sys.exit(main())
