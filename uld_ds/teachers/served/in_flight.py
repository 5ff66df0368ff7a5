"""The bound on what is under way at a server at once: so many requests, and so many tokens in them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class InFlight:
    """Room for requests of one event loop, given in the order in which it is asked for.

    Args:
        requests: most requests at once.
        tokens: most tokens of theirs together; a request that is larger goes alone.
    """

    def __init__(self, requests: int, tokens: int) -> None:
        self._most_requests, self._most_tokens = requests, tokens
        self._requests = self._tokens = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def room(self, tokens: int) -> AsyncIterator[None]:
        """Wait for room for a request of so many tokens, and hold it."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((tokens, turn))
        self._admit()
        try:
            await turn
        except asyncio.CancelledError:
            # It may have been admitted in the moment in which it was given up.
            if turn.done() and not turn.cancelled():
                self._release(tokens)
            else:
                self._waiting = deque(item for item in self._waiting if item[1] is not turn)
                self._admit()
            raise
        try:
            yield
        finally:
            self._release(tokens)

    def _release(self, tokens: int) -> None:
        self._requests -= 1
        self._tokens -= tokens
        self._admit()

    def _admit(self) -> None:
        # Nobody is overtaken: what is needed first was asked for first.
        while self._waiting and self._has_room(self._waiting[0][0]):
            tokens, turn = self._waiting.popleft()
            if turn.cancelled():
                continue
            self._requests += 1
            self._tokens += tokens
            turn.set_result(None)

    def _has_room(self, tokens: int) -> bool:
        if not self._requests:
            return True
        return self._requests < self._most_requests and self._tokens + tokens <= self._most_tokens
