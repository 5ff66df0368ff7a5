"""The bound on what is under way at a server at once: so many requests, and so many tokens in them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass


@dataclass(eq=False)
class _Turn:
    tokens: int
    come: asyncio.Future[None]
    admitted: bool = False


class InFlight:
    """Room for requests of one event loop, given in the order in which it is asked for.

    Args:
        requests: most requests at once.
        tokens: most tokens of theirs together; a request that is larger goes alone.
    """

    def __init__(self, requests: int, tokens: int) -> None:
        self._most_requests, self._most_tokens = requests, tokens
        self._requests = self._tokens = 0
        self._waiting: deque[_Turn] = deque()

    @asynccontextmanager
    async def room(self, tokens: int) -> AsyncIterator[None]:
        """Wait for room for a request of so many tokens, and hold it."""
        turn = _Turn(tokens, asyncio.get_running_loop().create_future())
        self._waiting.append(turn)
        self._admit()
        try:
            await turn.come
            yield
        finally:
            # Given up while it waited, it may have been admitted in the same moment, or not at all.
            if turn.admitted:
                self._requests -= 1
                self._tokens -= tokens
            else:
                self._waiting.remove(turn)
            self._admit()

    def _admit(self) -> None:
        # Nobody is overtaken: what is needed first was asked for first.
        while self._waiting and self._has_room(self._waiting[0].tokens):
            turn = self._waiting.popleft()
            turn.admitted = True
            self._requests += 1
            self._tokens += turn.tokens
            # (One that was given up just now notices, and leaves its room.)
            if not turn.come.done():
                turn.come.set_result(None)

    def _has_room(self, tokens: int) -> bool:
        if not self._requests:
            return True
        return self._requests < self._most_requests and self._tokens + tokens <= self._most_tokens
