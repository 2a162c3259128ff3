"""Delivers detections: events to a webhook with Standard Webhooks signatures, and clips to the library."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hashlib
import hmac
import json
import time
from datetime import UTC, datetime, timedelta

import httpx

from app.client import Client, Refused, ServerError
from app.listen.outbox import Item, Undeliverable

KEPT_BY = "finelap listen"  # in the metadata of clips, as `kept_by`
SECRET_PREFIX = "whsec_"
_TIMEOUT = 15.0  # seconds for one request
_RETENTION_INTERVAL = 3600.0  # seconds


class Webhook:
    """Posts items as JSON to one address (https://www.standardwebhooks.com): id, timestamp and signature as headers.

    The id stays the same when an item is tried again, so that the receiver recognises repetitions.
    """

    def __init__(self, url: str, secret: str) -> None:
        """`secret`: base64, with or without `whsec_`. Raises ValueError."""
        try:
            self._key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
        except binascii.Error:
            self._key = b""
        if not 24 <= len(self._key) <= 64:
            raise ValueError("the webhook's secret must be base64 of 24 to 64 bytes, with whsec_ before it")
        self._url = url
        # no redirects: events go only to the configured address
        self._http = httpx.AsyncClient(timeout=_TIMEOUT, follow_redirects=False)

    async def deliver(self, item: Item) -> None:
        """Posts an item. Raises Undeliverable unless the receiver answers with a status of 200 to 299."""
        body = json.dumps(item.content, ensure_ascii=False).encode()
        stamp = str(int(time.time()))
        try:
            response = await self._http.post(self._url, content=body, headers=self._headers(item.id, stamp, body))
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Undeliverable(f"the webhook cannot be reached ({type(error).__name__})") from error
        if not response.is_success:
            raise Undeliverable(f"the webhook answered {response.status_code}")

    def _headers(self, id: str, stamp: str, body: bytes) -> dict[str, str]:
        signed = hmac.new(self._key, f"{id}.{stamp}.".encode() + body, hashlib.sha256).digest()
        return {
            "Content-Type": "application/json",
            "User-Agent": "finelap-listen",
            "webhook-id": id,
            "webhook-timestamp": stamp,
            "webhook-signature": "v1," + base64.b64encode(signed).decode(),
        }

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()


class Keeper:
    """Adds clips to the library, and deletes those that are older than `days`, if it is not zero."""

    def __init__(self, client: Client, days: float) -> None:
        self._client, self._days = client, days

    async def deliver(self, item: Item) -> None:
        """Adds a clip. Raises Undeliverable; a clip that the service does not want is dropped."""
        assert item.file is not None
        try:
            await asyncio.to_thread(self._add, item)
        except Refused as error:
            if error.status in (401, 403):
                raise Undeliverable(f"the clip was not added: {error}") from error
        except (ServerError, OSError) as error:
            raise Undeliverable(f"the clip was not added: {error}") from error

    def _add(self, item: Item) -> None:
        assert item.file is not None
        metadata = item.content["metadata"] | {"kept_by": KEPT_BY}
        self._client.add((item.content["filename"], item.file.read_bytes()), metadata)

    async def run(self) -> None:
        """Deletes old clips now and then, until it is cancelled."""
        while self._days:
            with contextlib.suppress(ServerError, OSError):  # next time
                await asyncio.to_thread(self.delete_old)
            await asyncio.sleep(_RETENTION_INTERVAL)

    def delete_old(self) -> int:
        """Deletes the clips that were kept longer ago than `days`; returns their number."""
        before = datetime.now(UTC) - timedelta(days=self._days)
        old = [c for c in self._client.clips({"kept_by": KEPT_BY}) if datetime.fromisoformat(c.created) < before]
        for clip in old:
            self._client.delete(clip.id)
        return len(old)
