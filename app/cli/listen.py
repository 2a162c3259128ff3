"""`finelap listen`: sends live sound to a service, prints its events, and passes them on."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.client import Client
from app.listen.delivery import Keeper, Webhook
from app.listen.listener import Line, Listener, ListenOptions
from app.listen.metrics import ListenMetrics
from app.listen.outbox import Outbox
from app.listen.sources import Format, Source, SourceError

SECRET = "FINELAP_WEBHOOK_SECRET"
_FLUSH = 20.0  # seconds for a last attempt to deliver


def listen(args: argparse.Namespace, start: dict[str, Any]) -> int:
    """Listens until the sources end or a signal comes. `start`: the first message to the service, without its format.

    Returns 1 if something is left to be delivered by a later run. Raises SourceError, ServerError, ValueError.
    """
    logging.basicConfig(format="%(message)s", stream=sys.stderr, level=logging.WARNING)
    raw = Format(args.rate, args.channels)
    sources = [Source.parse(address, raw) for address in args.sources]
    if sum(source.kind == "stdin" for source in sources) > 1:
        raise SourceError("standard input can be only one of the sources")
    return asyncio.run(_Process(args, start).run(sources))


class _Process:
    """The tasks of one command: a listener for each source, and the deliveries."""

    def __init__(self, args: argparse.Namespace, start: dict[str, Any]) -> None:
        self._args, self._start = args, start
        self._metrics = ListenMetrics()
        self._key = os.environ.get("FINELAP_API_KEY")

    async def run(self, sources: list[Source]) -> int:
        args, metrics = self._args, self._metrics
        if args.metrics_port is not None:
            metrics.serve(args.metrics_port, args.metrics_host)
        async with contextlib.AsyncExitStack() as stack:
            post = store = None
            outboxes: list[Outbox] = []
            if args.webhook is not None:
                webhook = Webhook(args.webhook, os.environ.get(SECRET, ""))
                stack.push_async_callback(webhook.close)
                outboxes.append(self._outbox("webhook", webhook.deliver))
                post = _poster(outboxes[-1])
            background = []
            if args.keep is not None:
                client = stack.enter_context(Client(args.server, self._key, patience=5.0))
                keeper = Keeper(client, args.keep_for)
                outboxes.append(self._outbox("clip", keeper.deliver))
                store = outboxes[-1].add
                background.append(keeper.run())
            options = ListenOptions(
                args.server, self._key, self._start, _printer(args.json), post, args.keep, store, metrics
            )
            background += [outbox.run() for outbox in outboxes]
            await self._listen([Listener(source, options).run() for source in sources], background)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.gather(*(outbox.flush() for outbox in outboxes)), _FLUSH)
            left = sum(map(len, outboxes))
        if left:
            print(f"{left} deliveries are left in {args.outbox}; the next start tries again", file=sys.stderr)
        return 1 if left else 0

    async def _listen(self, listeners: list[Any], background: list[Any]) -> None:
        """Runs the listeners to their end, or until a signal; the other tasks as long."""
        helpers = [asyncio.create_task(each) for each in background]
        tasks = [asyncio.create_task(each) for each in listeners]
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(NotImplementedError):  # on Windows
                loop.add_signal_handler(number, lambda: [task.cancel() for task in tasks])
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                if not task.cancelled():
                    task.result()
            await asyncio.wait(tasks)
        finally:
            for task in (*tasks, *helpers):
                task.cancel()
            await asyncio.gather(*tasks, *helpers, return_exceptions=True)

    def _outbox(self, kind: str, deliver: Callable[..., Any]) -> Outbox:
        outbox = Outbox(self._args.outbox / kind, deliver, self._metrics.failures.labels(kind).inc)
        self._metrics.waiting.labels(kind).set_function(lambda: len(outbox))
        return outbox


def _poster(outbox: Outbox) -> Callable[[Line], object]:
    """Stores an event for the webhook, in the form that Standard Webhooks proposes."""
    from datetime import UTC, datetime

    def post(line: Line) -> None:
        kind = "retracted" if line["type"] == "retraction" else "revised" if line["revised"] else "detected"
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        data = {name: value for name, value in line.items() if name not in ("type", "open", "revised")}
        outbox.add({"type": f"sound.{kind}", "timestamp": now, "data": data})

    return post


def _printer(as_json: bool) -> Callable[[Line], None]:
    def tell(line: Line) -> None:
        if as_json:
            print(json.dumps(line, ensure_ascii=False), flush=True)
        elif line["type"] == "gap":
            print(f"{_when(line, 'start')}  {line['source']}  gap of {line['end'] - line['start']:.1f} s", flush=True)
        elif not line["open"]:
            about = " (retracted)" if line["type"] == "retraction" else " (revised)" if line["revised"] else ""
            length = line["offset"] - line["onset"]
            score = f"{length:.1f} s, score {line['score']:.2f}{about}"
            print(f"{_when(line, 'onset')}  {line['source']}  {line['phrase']}  {score}", flush=True)

    return tell


def _when(line: Line, name: str) -> str:
    return str(line.get("time", f"{line[name]:9.2f} s"))


def outbox_folder() -> Path:
    """The default of --outbox: FINELAP_OUTBOX, or a folder of the user's for the state of programs."""
    given = os.environ.get("FINELAP_OUTBOX")
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(given) if given else Path(state) / "finelap" / "outbox"
