"""Fuzzes the parsers in `targets.py`, guided by code coverage.

    python tests/fuzz/run.py [--seconds 60] [TARGET …]

Each target runs in its own process. Inputs that reach new code are stored in `build/fuzz/TARGET`, in addition to those
in `tests/fuzz/corpus/TARGET`; an input that breaks a target ends the process and is stored there as `crash-…`. Move it
to the corpus under a descriptive name, so that `test_fuzz.py` covers it from then on. Requires `pip install atheris`.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPO = HERE.parent.parent
sys.path[:0] = [str(REPO), str(HERE)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        _fuzz(args.targets[0], args.seconds)
    from targets import TARGETS

    broken, total = [], 0
    for name in args.targets or TARGETS:
        began = time.monotonic()
        command = [sys.executable, str(HERE / "run.py"), "--one", "--seconds", str(args.seconds), name]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", cwd=REPO)
        tried = max(map(int, re.findall(r"(?:Done |#)(\d+)", done.stderr)), default=0)
        total += tried
        said = "" if done.returncode == 0 else "BROKEN"
        print(f"{name:<20} {tried:>10} inputs in {time.monotonic() - began:6.1f} s {said}", flush=True)
        if done.returncode:
            broken.append(name)
            print(done.stdout[-3000:] + done.stderr[-3000:], flush=True)
    print(f"{total} inputs; broken: {', '.join(broken) or 'none'}")
    return bool(broken)


def _fuzz(name: str, seconds: int) -> None:
    import atheris

    with atheris.instrument_imports(include=["app", "index", "targets", "json", "email", "xml"]):
        from targets import TARGETS
    kept = REPO / "build" / "fuzz" / name
    kept.mkdir(parents=True, exist_ok=True)
    corpus = HERE / "corpus" / name
    corpus.mkdir(parents=True, exist_ok=True)
    options = [f"-max_total_time={seconds}", f"-artifact_prefix={kept}/", "-timeout=20", "-rss_limit_mb=3000"]
    options += ["-max_len=4096", "-verbosity=1", str(kept), str(corpus)]
    atheris.Setup([sys.argv[0], *options], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
