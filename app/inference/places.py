"""The bounded places of a queue, handed out in order. Generic asyncio code; knows nothing of what stands in them."""

from __future__ import annotations

import asyncio
from collections import deque


class Places:
    """The bounded places of a queue. Those who wait for one get it in order, before any newcomer."""

    def __init__(self, total: int) -> None:
        self._total = total
        self.taken = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def try_take(self, cost: int) -> bool:
        if self._waiting or not self._fits(cost):
            return False
        self.taken += cost
        return True

    async def take(self, cost: int) -> None:
        if self.try_take(cost):
            return
        ticket: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((cost, ticket))
        try:
            await ticket
        except BaseException:
            if ticket.done() and not ticket.cancelled() and ticket.exception() is None:
                self.give_back(cost)  # it came just as its caller left
            else:
                self._serve()  # whoever stood behind may fit now
            raise

    def give_back(self, cost: int) -> None:
        self.taken -= cost
        self._serve()

    def refuse_waiting(self, error: Exception) -> None:
        while self._waiting:
            _, ticket = self._waiting.popleft()
            if not ticket.done():
                ticket.set_exception(error)

    def _serve(self) -> None:
        while self._waiting:
            cost, ticket = self._waiting[0]
            if not ticket.done():
                if not self._fits(cost):
                    return
                self.taken += cost
                ticket.set_result(None)
            self._waiting.popleft()

    def _fits(self, cost: int) -> bool:
        return self.taken + cost <= self._total or self.taken == 0
