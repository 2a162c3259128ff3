"""Measures long recordings through POST /detect: memory, time to the first event and real-time factor.

Makes a recording of each --minutes in each --formats (demo sounds separated by seconds of near silence, a dog bark
first) and sends it to a server with finelap-small twice, for a JSON response and for ndjson lines. Reports

- memory of the server and its child processes (PSS, read every 50 ms): idle after a first file, and the peak during the
  request; comparing the lengths shows whether it grows
- ndjson: the times of the last byte sent, the first line, the first event and the last line; how much audio had been
  analysed at the first event, and whether decoding was still running then (from the server's counter of decoded files)
- whether both responses have the same events but for rounding, and whether the streamed events equal those in the last
  line
- the real-time factor: seconds of work per second of audio

--tree measures another checkout with the same command.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from benchmarks import common, processes
from benchmarks.common import Server, section, write_recording
from benchmarks.processes import MemoryWatch
from model.config import SAMPLE_RATE

PHRASES = ("dog barking", "rain", "a door closes", "bell")
DECODED = 'finelap_stage_duration_seconds_count{stage="decode"}'
_TIMEOUT = 3600.0  # seconds
_HOP = 0.161  # seconds: a frame of finelap-small
_ROUNDING = 1e-3  # of a score
_MB = 1e6


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    report: dict[str, Any] = {
        "machine": common.machine(),
        "code": common.revision(options.tree),
        "phrases": PHRASES,
        "rows": [],
    }
    settings = dict(pair.split("=", 1) for pair in options.set)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder, Server(settings, tree=options.tree) as server:
        with section("warming up"):
            first = write_recording(Path(folder) / "first.wav", 30, seed=1)
            for kind in ("json", "ndjson"):
                detect(server, first, kind)
        for kind in options.formats:
            for minutes in options.minutes:
                file = Path(folder) / f"{minutes:g} min.{kind}"
                with section(f"making {file.name}"):
                    write_recording(file, 60 * minutes, seed=2, rate=options.rate)
                with section(f"analysing {file.name}"):
                    report["rows"].append(measure(server, file, minutes, kind))
                file.unlink()
    print(show(report))
    common.write_json(options.json, report)
    return 0


def measure(server: Server, file: Path, minutes: float, kind: str) -> dict[str, Any]:
    """Measures one recording as JSON and as ndjson."""
    time.sleep(1)  # memory that the last request has not released by then counts as idle
    pid = server.process.pid
    row: dict[str, Any] = {
        "minutes": minutes,
        "format": kind,
        "file_mb": file.stat().st_size / _MB,
        "idle_mb": processes.memory(pid) / _MB,
    }
    for name in ("json", "ndjson"):
        with MemoryWatch(pid) as watch:
            row[name] = detect(server, file, name)
        row[name]["peak_mb"] = watch.peak / _MB
        row[name]["real_time_factor"] = row[name]["took_s"] / (60 * minutes)
    answers = [row[name].pop("phrases", None) for name in ("json", "ndjson")]
    row["same_events"] = alike(*answers) if None not in answers else None
    row["events"] = sum(len(phrase["events"]) for phrase in answers[0] or [])
    row["over_idle_mb"] = max(row[name]["peak_mb"] for name in ("json", "ndjson")) - row["idle_mb"]
    return row


def alike(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> bool:
    """Whether two answers have the same events, but for what other batch sizes change by rounding."""

    def close(a: dict[str, Any], b: dict[str, Any]) -> bool:
        edges = abs(a["onset"] - b["onset"]) <= _HOP and abs(a["offset"] - b["offset"]) <= _HOP
        return edges and abs(a["score"] - b["score"]) <= _ROUNDING

    return len(one) == len(other) and all(
        a["phrase"] == b["phrase"]
        and len(a["events"]) == len(b["events"])
        and all(map(close, a["events"], b["events"]))
        for a, b in zip(one, other, strict=True)
    )


def detect(server: Server, file: Path, kind: str) -> dict[str, Any]:
    """Sends the file to POST /detect; times are in seconds from when its last byte was sent."""
    decoded = server.metric(DECODED)
    sent: list[float] = []
    began = time.perf_counter()
    with (
        httpx.Client(base_url=server.address, timeout=_TIMEOUT, trust_env=False) as client,
        client.stream("POST", "/detect", **_form(file, kind, sent)) as response,
    ):
        if response.status_code != 200:
            return {"status": response.status_code, "detail": response.read().decode()[:300], "took_s": float("nan")}
        if kind == "json":
            answer = json.loads(response.read())
            ended = time.perf_counter()
            return {
                "status": 200,
                "upload_s": sent[-1] - began,
                "took_s": ended - sent[-1],
                "phrases": answer["phrases"],
            }
        return {"status": 200, "upload_s": sent[-1] - began} | read_lines(
            response.iter_lines(), sent[-1], lambda: server.metric(DECODED) == decoded
        )


def read_lines(lines: Iterator[str], since: float, still_decoding: Any) -> dict[str, Any]:
    """Reads the lines of an ndjson response and times them, in seconds after `since` (time.perf_counter())."""
    out: dict[str, Any] = {"first_event_s": None, "analysed_at_first_event_s": 0.0}
    streamed: dict[str, list[dict[str, float]]] = {}
    position, line = 0.0, {}
    for text in lines:
        at, line = time.perf_counter() - since, json.loads(text)
        if line["type"] == "start":
            out["first_line_s"] = at
        elif line["type"] == "progress":
            position = line["position"]
        elif line["type"] == "event":
            if out["first_event_s"] is None:
                out |= {"first_event_s": at, "analysed_at_first_event_s": position, "decoding": still_decoding()}
            streamed.setdefault(line["phrase"], []).append({k: line[k] for k in ("onset", "offset", "score")})
        elif line["type"] == "error":
            return out | {"took_s": at, "detail": line["problem"]["detail"]}
    out["took_s"] = time.perf_counter() - since
    if line.get("type") != "end":
        return out | {"detail": "the last line is not of type end"}
    out["phrases"] = [phrase | {"frame_scores": None} for phrase in line["phrases"]]
    out["stream_is_end"] = all(streamed.get(p["phrase"], []) == p["events"] for p in line["phrases"])
    return out


def _form(file: Path, kind: str, sent: list[float]) -> dict[str, Any]:
    """A multipart body that is read from disk; appends the time of its last byte to `sent`."""
    boundary = "finelap-benchmark"
    fields = [("format", kind), *(("phrases", phrase) for phrase in PHRASES)]
    head = "".join(f'--{boundary}\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in fields)
    head += f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{file.name}"\r\n'
    head += "Content-Type: application/octet-stream\r\n\r\n"
    tail = f"\r\n--{boundary}--\r\n"

    def body() -> Iterator[bytes]:
        yield head.encode()
        with file.open("rb") as data:
            while block := data.read(1 << 20):
                yield block
        yield tail.encode()
        sent.append(time.perf_counter())

    length = len(head.encode()) + file.stat().st_size + len(tail)
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}", "Content-Length": str(length)}
    return {"content": body(), "headers": headers}


def show(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    machine = report["machine"]
    lines = [f"code {report['code']}, {machine['cores']} cores of {machine['cpu']}, {machine['date']}", ""]
    memory, times = [], []
    for row in report["rows"]:
        name = [f"{row['minutes']:g} min", row["format"], f"{row['file_mb']:.0f} MB"]
        peaks = [row[kind]["peak_mb"] for kind in ("json", "ndjson")]
        memory.append([*name, row["idle_mb"], *peaks, row["over_idle_mb"]])
        stream = row["ndjson"]
        times.append(
            [
                *name[:2],
                row["json"]["took_s"],
                row["json"]["real_time_factor"],
                stream["took_s"],
                _or_dash(stream.get("first_line_s")),
                _or_dash(stream.get("first_event_s")),
                {True: "yes", False: "no", None: "–"}[stream.get("decoding")],
                row["events"],
                {True: "yes", False: "NO", None: "–"}[row["same_events"]],
                {True: "yes", False: "NO", None: "–"}[stream.get("stream_is_end")],
            ]
        )
    head = ["length", "format", "file", "idle MB", "peak MB, json", "peak MB, ndjson", "over idle MB"]
    lines.append(common.table(head, memory))
    head = ["length", "format", "json s", "real-time factor", "ndjson s", "first line s", "first event s"]
    head += ["still decoding then", "events", "json = ndjson", "stream = its end"]
    lines += ["", common.table(head, times), ""]
    for row in report["rows"]:
        for kind in ("json", "ndjson"):
            if "detail" in row[kind]:
                lines.append(f"{row['minutes']:g} min {row['format']} as {kind}: {row[kind]['detail']}")
    return "\n".join(lines)


def _or_dash(value: float | None) -> float | str:
    return "–" if value is None else value


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, nargs="+", default=[10, 60, 240], help="lengths (10 60 240)")
    parser.add_argument("--formats", nargs="+", default=["flac", "mp3"], help="flac, mp3, wav, ogg (flac mp3)")
    parser.add_argument("--rate", type=int, default=SAMPLE_RATE, help="sample rate of the recordings in Hz (16000)")
    parser.add_argument("--folder", type=Path, help="folder for the recordings (the temporary directory)")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a FINELAP_ setting")
    parser.add_argument("--tree", type=Path, default=common.REPO, help="checkout whose server is measured")
    parser.add_argument("--json", type=Path, help="file for the report")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
