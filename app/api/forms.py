"""Multipart and URL-encoded bodies, with bounds on all that a caller may make this process keep in memory.

The parser is Starlette's, as are its bounds on one field and on the numbers of files and fields, and python-multipart's
on the headers of a part (8, of 4 KiB). Here: what all fields have together, and how many files stay in memory.
"""

from __future__ import annotations

import errno
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from starlette.datastructures import FormData
from starlette.formparsers import FormParser, MultiPartException, MultiPartParser
from starlette.requests import Request

from app.errors import BodyTooLarge, Malformed
from index import StorageFull

MAX_FILES = 1000  # of one request
MAX_FIELDS = 10_000
MAX_FIELD_BYTES = 1 << 20
MAX_FIELDS_BYTES = 16 << 20  # of all fields together

_SPOOL = 1 << 20  # bytes of a file that stay in memory
_SPOOLED = 16  # files of a request for which that holds; of further ones less stays
_SPOOL_FURTHER = 1 << 16


async def parse_form(request: Request) -> FormData:
    """The form in the request's body; close it to get rid of its files. Raises Malformed, BodyTooLarge, StorageFull."""
    multipart = request.headers.get("content-type", "").lower().startswith("multipart/")
    try:
        async with aclosing(request.stream()) as stream:
            if multipart:
                return await _Parts(request.headers, stream, max_files=MAX_FILES, max_fields=MAX_FIELDS).parse()
            bounded = _bounded(stream)
            return await FormParser(
                request.headers, bounded, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES
            ).parse()
    except MultiPartException as error:
        raise Malformed(error.message) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull("no room left for uploads in the folder of temporary files (TMPDIR)") from error
        raise


class _Parts(MultiPartParser):
    """Starlette's parser, bounded."""

    max_part_size = MAX_FIELD_BYTES
    _of_fields = 0

    def on_headers_finished(self) -> None:
        self.spool_max_size = _SPOOL if self._current_files < _SPOOLED else _SPOOL_FURTHER
        super().on_headers_finished()

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._current_part.file is None:
            self._of_fields += end - start
            if self._of_fields > MAX_FIELDS_BYTES:
                raise _too_much()
        super().on_part_data(data, start, end)


async def _bounded(stream: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    received = 0
    async for piece in stream:
        received += len(piece)
        if received > MAX_FIELDS_BYTES:
            raise _too_much()
        yield piece


def _too_much() -> BodyTooLarge:
    return BodyTooLarge(f"The fields of the form are larger than the limit of {MAX_FIELDS_BYTES} bytes in all.")
