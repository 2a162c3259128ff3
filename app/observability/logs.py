"""Logging to stderr: one line per event with its request id, as text or JSON.

The application, uvicorn, asyncio, Python's warnings and uncaught exceptions share one format. Queries, bodies and
headers are not logged, so that neither keys nor searches end up in a file.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from app import errors
from app.settings import Settings

log = logging.getLogger(__name__)

_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
Ids = Callable[[], Mapping[str, str]]


def configure_logging(settings: Settings, level: int = logging.INFO, ids: Ids = dict) -> None:
    """Configures logging for the process. `ids`: called for each line; returns further ids, such as the trace id."""
    handler = logging.StreamHandler()
    handler.addFilter(_IdFilter(ids))
    if settings.log_format == "json":
        handler.setFormatter(_JsonFormatter())
    else:
        handler.setFormatter(_TextFormatter("%(asctime)s %(levelname)s %(name)s [%(id_text)s] %(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(True)


def log_uncaught_exceptions() -> None:
    """Logs exceptions that end the process or a thread, or that cannot be raised."""
    sys.excepthook = _log_process_error
    threading.excepthook = lambda args: _log_thread_error(
        args.exc_type, args.exc_value, args.exc_traceback, args.thread
    )
    sys.unraisablehook = lambda args: log.error(
        "%s: %r", args.err_msg or "exception ignored", args.object, exc_info=args.exc_value
    )


def _log_process_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    log.critical("the process ended with an uncaught exception", exc_info=(kind, error, trace))


def _log_thread_error(
    kind: type[BaseException], error: BaseException | None, trace: TracebackType | None, thread: threading.Thread | None
) -> None:
    name = thread.name if thread is not None else "?"
    log.error("thread %s ended with an uncaught exception", name, exc_info=(kind, error or kind(), trace))


class _IdFilter(logging.Filter):
    """Adds the request id and the result of `ids` to every record."""

    def __init__(self, ids: Ids) -> None:
        super().__init__()
        self._ids = ids

    def filter(self, record: logging.LogRecord) -> bool:
        request_id, ids = errors.request_id.get(), self._ids()
        record.request_id, record.ids = request_id, ids
        record.id_text = " ".join([request_id, *(f"{name}={value}" for name, value in ids.items())])
        return True


class _TextFormatter(logging.Formatter):
    """One line per event: control characters in messages, which may be user input, are escaped as \\n or \\x1b."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        return _escape(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        return "\n".join(map(_escape, super().formatException(ei).split("\n")))


def _escape(text: str) -> str:
    return _CONTROLS.sub(lambda found: repr(found[0])[1:-1], text)


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "request_id": getattr(record, "request_id", "-"),
            **getattr(record, "ids", {}),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[1] is not None:
            line["exception"] = "".join(traceback.format_exception(record.exc_info[1]))
        # JSON keeps these characters, but line readers may take them for line ends and terminals for commands
        return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(line, ensure_ascii=False))
