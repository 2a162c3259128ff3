"""Log lines: one an event, to stderr, each with its request's id; as text, or one JSON object a line.

Everything that has something to say comes out here in the same form: the application, uvicorn, asyncio, Python's
warnings, and exceptions that nobody caught, in threads too. Knows no route. What callers send is not logged: no query,
no body, no header, so that neither keys nor searches end up in a file.
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
    """Sets up the process's logging. `ids`: more fields that say what a line belongs to, asked for at every line."""
    handler = logging.StreamHandler()
    handler.addFilter(_Marks(ids))
    if settings.log_format == "json":
        handler.setFormatter(_JsonFormatter())
    else:
        handler.setFormatter(_TextFormatter("%(asctime)s %(levelname)s %(name)s [%(marks)s] %(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(True)


def log_what_nobody_caught() -> None:
    """Exceptions that end the process or a thread, or that could not be raised, become log lines too."""
    sys.excepthook = _ended
    threading.excepthook = lambda gone: _thread_ended(gone.exc_type, gone.exc_value, gone.exc_traceback, gone.thread)
    sys.unraisablehook = lambda lost: log.error(
        "%s: %r", lost.err_msg or "an exception that could not be raised", lost.object, exc_info=lost.exc_value
    )


def _ended(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    log.critical("the process ends with an error nobody expected", exc_info=(kind, error, trace))


def _thread_ended(
    kind: type[BaseException], error: BaseException | None, trace: TracebackType | None, thread: threading.Thread | None
) -> None:
    name = thread.name if thread is not None else "?"
    log.error("the thread %s ended with an error", name, exc_info=(kind, error or kind(), trace))


class _Marks(logging.Filter):
    """Gives every record the request's id and what `ids` says."""

    def __init__(self, ids: Ids) -> None:
        super().__init__()
        self._ids = ids

    def filter(self, record: logging.LogRecord) -> bool:
        request_id, ids = errors.request_id.get(), self._ids()
        record.request_id, record.ids = request_id, ids
        record.marks = " ".join([request_id, *(f"{name}={value}" for name, value in ids.items())])
        return True


class _TextFormatter(logging.Formatter):
    """A line an event: control characters inside a message, which may come from outside, are written as \\n, \\x1b."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        return _shown(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        return "\n".join(map(_shown, super().formatException(ei).split("\n")))


def _shown(text: str) -> str:
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
        # what JSON leaves as it is and some readers of lines take for the end of one, or terminals for a command
        return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(line, ensure_ascii=False))
