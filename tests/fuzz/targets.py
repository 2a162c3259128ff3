"""Fuzz targets: every parser as a function of bytes that raises only if the parser has a bug.

A target passes the bytes to the parser in the form it takes, ignores the errors the parser documents, and checks the
result against what the rest of the service relies on. `tests/fuzz/run.py` drives the targets by coverage,
`test_fuzz.py` with the stored corpora and random bytes.
"""

from __future__ import annotations

import asyncio
import atexit
import base64
import contextlib
import csv
import functools
import io
import json
import math
import re
import shutil
import socket
import sqlite3
import tempfile
import types
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from pydantic import ValidationError
from starlette.datastructures import Headers, UploadFile

from app import errors
from app.agents import server as agents
from app.agents import service
from app.api import conditional, detect, openai, requests, schemas
from app.audio import containers, live, tags, ucs
from app.audio import wav_chunks as chunks
from app.audio.errors import MediaError
from app.audio.tag_schema import MAX_TOTAL, checked
from app.audio.wav_chunks import read_ixml
from app.client import ServerError
from app.client import types as responses
from app.client.stream import INVALID_RESPONSE, DetectionMessages
from app.decoding import pool
from app.errors import RequestError
from app.export import labels
from app.server import security
from app.settings import Settings
from index import filters
from index.milvus import collection as milvus_collection
from index.milvus import filters as milvus_filters
from index.milvus.client import parse_milvus_url
from index.quantization import FrameCodes
from index.records import InvalidCursor, InvalidFilter, LibraryError, dump_metadata, metadata_facts
from index.sqlite import backup, dataset, queries, store
from index.sqlite import library as sqlite_library
from index.text import fts_query, text_columns
from index.vectors import snapshot

Target = Callable[[bytes], None]
TARGETS: dict[str, Target] = {}

_SORTS = ("created", "-created", "filename", "-filename", "duration", "-duration")


def target(function: Target) -> Target:
    TARGETS[function.__name__] = function
    return function


def text_of(data: bytes) -> str:
    """Any text, including lone surrogates, which JSON and file systems can contain."""
    return data.decode("utf-8", "surrogateescape" if len(data) % 2 else "replace")


@functools.cache
def folder() -> Path:
    made = Path(tempfile.mkdtemp(prefix="fuzz-"))
    atexit.register(shutil.rmtree, made, True)
    return made


# Files


@target
def embedded_tags(data: bytes) -> None:
    check_tags(tags.read_tags(io.BytesIO(data)))


def check_tags(told: dict[str, Any]) -> None:
    assert checked(told) == told
    dump_metadata(told)
    sizes = (len(name) + (sum(map(len, v)) if isinstance(v, list) else len(str(v))) for name, v in told.items())
    assert sum(sizes) <= MAX_TOTAL + 1000  # plus the category of a CatID


@target
def riff_chunks(data: bytes) -> None:
    whole = b"RIFF\xff\xff\xff\xffWAVE" + data
    told, _ = chunks.read_chunks(io.BytesIO(whole), "little")
    assert all(isinstance(name, str) for name, _ in told)
    chunks.read_chunks(io.BytesIO(b"FORM\xff\xff\xff\xffAIFF" + data), "big")
    chunks.read_bext(data)
    chunks.read_info(b"INFO" + data)
    kept = tags.Tags()
    kept.put_all(told)
    check_tags(kept.values)


@target
def ixml(data: bytes) -> None:
    for name, value in read_ixml(data):
        assert isinstance(name, str) and isinstance(value, str | list)


@target
def ucs_names(data: bytes) -> None:
    name = text_of(data)
    found = ucs.parse(name)
    if found is not None:
        assert all(isinstance(value, str) and value for value in found.tags().values())
    tags.merge_metadata({"category": "x"}, name, {"given": None})


@target
def container_heads(data: bytes) -> None:
    assert "/" in containers.media_type(data[:16])
    for head in (b"", b"RIFF\xff\xff\xff\x7fWAVE", b"FORM\0\0\0\0AIFF", b"OggS", containers._ASF[:12]):
        said = containers.missing_bytes(head + data)
        assert said is None or said
    containers.missing_by_log(text_of(data))


# Requests


@target
def json_bodies(data: bytes) -> None:
    try:
        value = requests.parse_json(data, "the body")
    except RequestError:
        return
    json.dumps(value, allow_nan=True, ensure_ascii=False).encode("utf-8")


@target
def multipart_bodies(data: bytes) -> None:
    async def stream() -> Any:
        for at in range(0, len(data), 61):
            yield data[at : at + 61]

    async def parse() -> None:
        for kind in ("multipart/form-data; boundary=b", "application/x-www-form-urlencoded"):
            request = types.SimpleNamespace(headers=Headers({"content-type": kind}), stream=stream)
            try:
                form = await requests.parse_form(request)  # type: ignore[arg-type]
            except RequestError:
                continue
            for name, value in form.multi_items():
                assert isinstance(name, str)
                if isinstance(value, UploadFile):
                    check_name(value.filename)
            await form.close()

    asyncio.run(parse())


@target
def file_names(data: bytes) -> None:
    check_name(text_of(data))


def check_name(name: str | None) -> None:
    clean = requests.clean_filename(name)
    assert clean and len(clean) <= 255 and not re.search(r"[\x00-\x1f\x7f/\\\u202e\u2028]", clean)
    assert clean not in (".", "..") and requests.clean_filename(clean) == clean
    clean.encode("utf-8")


@target
def hosts_and_origins(data: bytes) -> None:
    guard = security.OriginGuard(None, (), (), True)  # type: ignore[arg-type]
    host, _, origin = text_of(data).partition("\n")
    guard._is_own_host(host)
    guard._is_allowed_origin(Headers({"origin": origin.encode("ascii", "ignore").decode()}), host)


@target
def range_headers(data: bytes) -> None:
    size = len(data)
    ranges = conditional.parse_ranges(text_of(data), size)
    assert ranges is None or all(0 <= first <= last < size for first, last in ranges)


@target
def data_uris(data: bytes) -> None:
    item = openai._AudioInput(0, text_of(data))
    with contextlib.suppress(RequestError):
        asyncio.run(item.decode())


@target
def filters_of_clips(data: bytes) -> None:
    """An accepted filter is supported by both stores."""
    try:
        conditions = filters.parse_filter(requests.parse_json(data, "the filter"))
    except (RequestError, InvalidFilter):
        return
    said = milvus_filters.expression(conditions)
    assert re.fullmatch(r"[\w\s(),.\"<>=\[\]+-]*", said, re.ASCII), said
    if conditions:
        queries.rows_passing(library(), conditions)


@target
def queries_in_words(data: bytes) -> None:
    match = fts_query(text_of(data))
    if match is not None:
        match.encode("utf-8", "surrogatepass")
        if not re.search("[\ud800-\udfff]", match):
            queries.rows_matching(library(), match, 5, [])


@functools.cache
def library() -> sqlite3.Connection:
    """A library's database with a few clips."""
    opened = store.Store(folder() / "catalog.sqlite3")
    connection = opened._writer
    for number, about in enumerate(({"tags": ["dog"], "n": 1}, {"n": 1.5, "flag": True}, {})):
        connection.execute(
            "INSERT INTO clips (id, sha256, filename, duration, sample_rate, channels, created, metadata) "
            "VALUES (?, ?, 'Dog_01.wav', 1, 16000, 1, '2026', ?)",
            (str(number), str(number), json.dumps(about)),
        )
        queries._insert_facts(connection, number + 1, metadata_facts(about))
        queries._insert_words(connection, number + 1, "Dog_01.wav", about)
    return connection


@target
def cursors(data: bytes) -> None:
    """As a caller writes it, and in its internal form."""
    inside = base64.urlsafe_b64encode(data).decode().rstrip("=")
    for cursor in (text_of(data), inside):
        for sort in _SORTS:
            try:
                after = sqlite_library._read_cursor(cursor, sort)
                queries.page(library(), 2, [], by=sort.removeprefix("-"), descending=sort[0] == "-", after=after)
            except InvalidCursor:
                pass
            try:
                position = milvus_collection.read_cursor(cursor, sort)
            except InvalidCursor:
                continue
            said = milvus_collection._beyond("name", position, True)
            assert re.fullmatch(r"[\w\s()\"<>=.+-]*", said, re.ASCII), said


@target
def metadata_to_keep(data: bytes) -> None:
    try:
        about = requests.parse_json(data, "the metadata")
        text = dump_metadata(about)
    except (RequestError, LibraryError):
        return
    for fact in metadata_facts(about):
        hash(fact)
    columns = text_columns("a.wav", about)
    assert json.loads(text) == about or text.count("e") and len(columns) == 3


# Configuration and stored files


@target
def milvus_addresses(data: bytes) -> None:
    secret = "s3cr3t-pass"
    for url in (text_of(data), f"milvus://user:{secret}@{text_of(data)}"):
        try:
            found = parse_milvus_url(url)
        except ValueError as error:
            assert secret not in str(error)
            continue
        assert found.host and 0 < found.port < 65536 and secret not in found.uri


@target
def settings(data: bytes) -> None:
    values = text_of(data).split("\n")
    names = list(Settings.model_fields)
    given = {names[number % len(names)]: value for number, value in enumerate(values)}
    try:
        made = Settings(_env_file=None, **given)  # type: ignore[arg-type, call-arg]
    except ValidationError:
        return
    assert made.max_upload_bytes >= 0 and all(map(str.strip, made.api_keys))


@target
def snapshot_manifests(data: bytes) -> None:
    where = folder() / "index"
    where.mkdir(exist_ok=True)
    (where / "manifest.json").write_bytes(data)
    (where / "codes-a.npy").write_bytes(data)
    try:
        snapshot.read(where, "stamp", 8)
    except snapshot.SnapshotRefused as error:
        assert str(error)


@target
def backup_manifests(data: bytes) -> None:
    where = folder() / "copies" / backup.SNAPSHOTS / "one"
    where.mkdir(parents=True, exist_ok=True)
    (where / "manifest.json").write_bytes(data)
    try:
        found = backup._read_manifest(folder() / "copies", "one")
        assert isinstance(found.name, str) and isinstance(found.catalog_sha256, str)
    except LibraryError:
        pass


@target
def frame_codes(data: bytes) -> None:
    try:
        frames = FrameCodes.from_bytes(data, 8)
    except ValueError:
        return
    assert frames.to_bytes() == data and frames.decode().shape == (len(frames), 8)


# Messages from peers


@target
def worker_messages(data: bytes) -> None:
    """A compromised decoder."""

    async def listen() -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with ours, theirs:
            theirs.setblocking(False)
            theirs.send(data[:100_000])
            theirs.shutdown(socket.SHUT_WR)
            worker = types.SimpleNamespace(socket=ours)
            try:
                while True:
                    kind, told = await pool.read_message(worker, 5.0)  # type: ignore[arg-type]
                    if isinstance(told, dict):
                        checked(told.get("tags"))
                        assert all(map(math.isfinite, pool.read_numbers(told, "duration")))
                    assert len(kind) == 1
            except pool.WorkerDied:
                pass

    asyncio.run(listen())


@target
def detection_lines(data: bytes) -> None:
    """Another kind of server."""
    messages = DetectionMessages("http://x")
    try:
        for at in range(0, len(data), 97):
            for _ in messages.push(data[at : at + 97]):
                pass
        for _ in messages.finish():
            pass
    except ServerError as error:
        str(error)


@target
def answers(data: bytes) -> None:
    """Reading a response raises only INVALID_RESPONSE."""
    try:
        members = json.loads(data)
    except (ValueError, RecursionError):
        return
    for read in (
        responses.Clip.from_json, responses.ClipPage.from_json, responses.SearchResult.from_json,
        responses.MomentResult.from_json, responses.Detection.from_json, responses.Info.from_json,
        responses.Peaks.from_json, responses.Label.from_json, responses.Embedded.from_json, responses.text_embeddings,
    ):  # fmt: skip
        with contextlib.suppress(*INVALID_RESPONSE):
            read(members)


# Labels, datasets, live streams and agents


@target
def label_files(data: bytes) -> None:
    """What a reader accepts is finite, in order, on one line, and read back from what is written of it."""
    try:
        text = labels.read_file(io.BytesIO(data))
    except ValueError:
        return
    for name, read in labels.READERS.items():
        try:
            rows = read(text)
        except (ValueError, csv.Error):
            continue
        for row in rows:
            assert 0 <= row.start <= row.end < math.inf and row.label == " ".join(row.label.split())
            row.label.encode("utf-8")
        if rows and name == "csv":
            again = labels.read_csv(labels.write_csv(rows))
            assert [(row.label, row.filename) for row in again] == [(row.label, row.filename) for row in rows]


@target
def label_rows(data: bytes) -> None:
    """Rows of any texts, written for each tool and read again."""
    texts = [" ".join(part.split()) for part in data.decode("utf-8", "replace").replace("\0", "").split("\n")[:9]]
    rows = [labels.LabelRow(float(n), n + 0.5, text) for n, text in enumerate(texts)]
    for name, write in labels.WRITERS.items():
        again = labels.READERS[name](write(rows))
        assert [(row.start, row.end) for row in again] == [(row.start, row.end) for row in rows], name


@target
def parquet_files(data: bytes) -> None:
    """A file that is no export, or a damaged one: what an import reads of it before it writes."""
    path = folder() / "train.parquet"
    path.write_bytes(data)
    with contextlib.suppress(ValueError, KeyError, TypeError, OSError):
        for rows in dataset._read_groups(path, 2):
            assert all(len(row["embedding"]) == 2 and len(row["codes"]) >= 0 for row in rows)


@target
def parquet_rows(data: bytes) -> None:
    """A Parquet file of any columns, and any manifest: {"manifest": …, "rows": […]}."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        given = json.loads(data)
        manifest, rows = given["manifest"], given["rows"]
        table = io.BytesIO()
        parquet.write_table(pa.Table.from_pylist(rows), table)
    except Exception:
        return  # nothing that Parquet can hold
    _import(manifest, table.getvalue())


def _import(manifest: Any, data: bytes) -> None:
    source, made = folder() / "dataset", folder() / "imported"
    shutil.rmtree(made, ignore_errors=True)
    (source / "data").mkdir(parents=True, exist_ok=True)
    (source / "finelap.json").write_text(json.dumps(manifest), encoding="utf-8", errors="surrogatepass")
    (source / "data" / "train-00000.parquet").write_bytes(data)
    try:
        report = dataset.import_library(source, made, lambda *_: None)
    except LibraryError as error:
        assert str(error) and not (made / store.DATABASE_FILE).exists()
        return
    with sqlite_library.SqliteLibrary.open(made, dim=manifest["dim"], checkpoint=report.checkpoint) as opened:
        for clip in opened.list(9)[0]:
            frames, hop = opened.frames(clip.id)
            assert math.isfinite(hop) and math.isfinite(clip.duration) and frames.shape[1] == manifest["dim"]
            json.dumps(clip.metadata, allow_nan=False)


@target
def stream_messages(data: bytes) -> None:
    """A WebSocket's first message on a line, then its audio in pieces."""
    first, _, audio = data.partition(b"\n")
    try:
        value = requests.parse_json(first, "the first message")
        start = requests.validate(schemas.LiveStart, value)
        detect.detection_request(start)
    except RequestError as error:
        json.dumps(errors.describe(error))
        return
    if start.encoding not in ("pcm_s16le", "pcm_f32le"):
        return
    decoder = live.PcmDecoder(start.encoding, start.sample_rate, start.channels)
    try:
        pieces = [decoder.push(audio[at : at + 96]) for at in range(0, len(audio), 96)] + [decoder.finish()]
    except (ValueError, MediaError) as error:
        assert str(error)
        return
    assert all(piece.ndim == 1 and np.isfinite(piece).all() for piece in pieces)


_CLIP = {"id": "a", "duration": 1.0, "sample_rate": 8000, "channels": 1, "filename": "a.wav", "metadata": {}}
_PATHS = re.compile(rb"/(search|search/moments|concepts|detect|clips/[^/?#]+(/audio)?)")


@functools.cache
def agent() -> Any:
    """The tools of an agent over a service that answers everything, and checks what it is asked."""

    def answer(request: httpx.Request) -> httpx.Response:
        path = request.url.raw_path.partition(b"?")[0]
        assert _PATHS.fullmatch(path), path
        assert request.method in ("GET", "HEAD", "POST", "PATCH") and (request.method != "PATCH" or b"clips" in path)
        if path.endswith(b"/audio"):
            return httpx.Response(200, content=b"audio", headers={"content-type": "audio/ogg"})
        found = {"hits": [], "concepts": [], "phrases": [], **_CLIP}
        return httpx.Response(200, json=found)

    http = httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://service")
    return agents.make_server(lambda _: service.Service(http), "1", write=True)


@target
def agent_calls(data: bytes) -> None:
    """{"tool": …, "arguments": {…}} of a model: only known paths are asked for, and errors are the tool's."""
    from mcp.server.mcpserver.exceptions import ToolError

    try:
        given = json.loads(data)
        tool, arguments = given["tool"], given["arguments"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return
    if not isinstance(tool, str) or not isinstance(arguments, dict):
        return  # the protocol's own types
    try:
        asyncio.run(agent().call_tool(tool, arguments))
    except ToolError as error:
        cause = error.__cause__
        assert cause is None or isinstance(cause, ToolError | ValueError | service.ServiceError), repr(cause)


@target
def agent_texts(data: bytes) -> None:
    """Names and metadata of files, as a model gets to read them."""
    with contextlib.suppress(ValueError, RecursionError):
        about = json.loads(data)
        if isinstance(about, dict):
            shown = service.clip_of(_CLIP | {"metadata": about, "filename": text_of(data)})["untrusted"]
            values = [
                text for value in shown["metadata"].values() for text in (value if type(value) is list else [value])
            ]
            for text in (*shown["metadata"], *(value for value in values if isinstance(value, str)), shown["filename"]):
                check_shown(text)
    check_shown(service.clean(text_of(data)))


def check_shown(text: str) -> None:
    assert len(text) <= service.MAX_VALUE + 2 and text == " ".join(text.split())
    assert not any(unicodedata.category(character)[0] == "C" for character in text), ascii(text)
    assert not any("\ufe00" <= c <= "\ufe0f" or "\U000e0000" <= c <= "\U000e0fff" or c in "\u3164\u115f" for c in text)
