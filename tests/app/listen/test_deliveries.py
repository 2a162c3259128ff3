"""Deliveries: signed as Standard Webhooks says, tried again until they succeed, and kept on disk meanwhile."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook as Verifier
from standardwebhooks import WebhookVerificationError

from app.listen import outbox as outbox_module
from app.listen.delivery import Webhook
from app.listen.outbox import Item, Outbox, Undeliverable
from tests.support.waiting import until

SECRET = "whsec_" + base64.b64encode(b"a secret of thirty-two bytes ---").decode()


class Receiver:
    """A webhook's receiver: what has arrived, and the status that it answers with."""

    def __init__(self) -> None:
        self.status = 204
        self.received: list[tuple[dict[str, str], bytes]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.received.append((dict(self.headers.items()), body))
                self.send_response(receiver.status)
                if receiver.status == 302:
                    self.send_header("Location", "http://127.0.0.1:1/")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.server.shutdown()
    receiver.server.server_close()


async def test_a_webhook_is_signed(receiver: Receiver) -> None:
    webhook = Webhook(receiver.url, SECRET)
    content = {"type": "sound.detected", "data": {"phrase": "犬が吠える", "score": 0.9}}
    await webhook.deliver(Item("msg-1", content, None))
    ((headers, body),) = receiver.received
    assert Verifier(SECRET).verify(body, headers) == content
    assert headers["webhook-id"] == "msg-1"
    with pytest.raises(WebhookVerificationError):
        Verifier(SECRET).verify(body + b" ", headers)
    await webhook.close()


@pytest.mark.parametrize("status", [302, 400, 410, 500, 503])
async def test_other_statuses_are_failures_and_redirects_are_not_followed(receiver: Receiver, status: int) -> None:
    receiver.status = status
    webhook = Webhook(receiver.url, SECRET)
    with pytest.raises(Undeliverable, match=str(status)):
        await webhook.deliver(Item("msg-1", {}, None))
    assert len(receiver.received) == 1
    await webhook.close()


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_short", "not base64 at all !", "whsec_" + "A" * 100])
def test_a_secret_must_be_a_key(secret: str) -> None:
    with pytest.raises(ValueError, match="24 to 64 bytes"):
        Webhook("http://127.0.0.1:1", secret)


async def test_nothing_is_lost_while_a_receiver_fails(
    receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_module, "_SHORTEST", 0.05)
    monkeypatch.setattr(outbox_module, "_LONGEST", 0.2)
    receiver.status = 503
    webhook, failures = Webhook(receiver.url, SECRET), [0]

    def failed() -> None:
        failures[0] += 1

    outbox = Outbox(tmp_path / "out", webhook.deliver, failed)
    running = asyncio.create_task(outbox.run())
    for number in range(5):
        outbox.add({"number": number})
    await until(lambda: failures[0] >= 10)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert len(outbox) == len(list((tmp_path / "out").glob("*.json"))) == 5

    again = Outbox(tmp_path / "out", webhook.deliver, failed)  # another process, later
    assert len(again) == 5
    receiver.received.clear()
    receiver.status = 200
    running = asyncio.create_task(again.run())
    again.add({"number": 5})
    await until(lambda: not len(again))
    running.cancel()
    bodies = [json.loads(body) for _, body in receiver.received]
    assert bodies == [{"number": number} for number in range(6)]
    assert len({headers["webhook-id"] for headers, _ in receiver.received}) == 6
    assert not list((tmp_path / "out").iterdir())
    await webhook.close()


async def test_an_outbox_is_bounded_and_skips_what_is_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_module, "MAX_ITEMS", 3)
    delivered: list[Item] = []

    async def deliver(item: Item) -> None:
        assert item.file is not None and item.file.read_bytes() == b"sound"
        delivered.append(item)

    (tmp_path / "0.json").write_text("{")
    (tmp_path / "1.wav.part").write_text("a")
    dropped: list[None] = []
    outbox = Outbox(tmp_path, deliver, lambda: dropped.append(None))
    for number in range(4):
        outbox.add({"number": number}, b"sound")
    assert len(outbox) == 3 and len(dropped) == 2
    await outbox.flush()
    assert [item.content["number"] for item in delivered] == [1, 2, 3]
    assert not list(tmp_path.iterdir())
