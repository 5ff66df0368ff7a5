"""A client of an inference engine's server: requests in a thread of its own, bounded, and made again where that helps.

Its errors and what it logs name the server and say what it said; the token is in a header of each request, and
nowhere else.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import logging
import random
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import aiohttp

from uld_ds.errors import FinalError, one_line
from uld_ds.recipe import ServerSettings
from uld_ds.teachers.served.in_flight import InFlight
from uld_ds.utils.redaction import redacted

T = TypeVar("T")
log = logging.getLogger(__name__)

_BUSY = 429
# What passes: too much at once, and whatever stands before a server, or it itself, when it comes or goes. vLLM answers
# 500 while its engine dies.
_PASSING = (408, _BUSY, 500, 502, 503, 504)
_FIRST_DELAY, _LONGEST_DELAY = 0.5, 15.0
_CONNECT_SECONDS = 30.0
_LONGEST_WORDS = 300


class RefusedError(FinalError):
    """A request that the server will refuse as often as it is made."""


class GoneError(FinalError):
    """A server that has not answered for longer than anybody wants to wait."""


class TroubleError(Exception):
    """A request that failed in a way that may pass.

    Args:
        text: what happened.
        delay: seconds that the server wants to be left alone for, where it says so.
        busy: whether the server lives and has too much to do.
    """

    def __init__(self, text: str, *, delay: float = 0.0, busy: bool = False) -> None:
        super().__init__(text)
        self.delay, self.busy = delay, busy


@dataclass(frozen=True)
class Reply:
    """What a server has answered."""

    status: int
    body: Any
    """The reply's JSON; the text of a reply that is none."""

    @property
    def words(self) -> str:
        """The server's own words, on one line."""
        body = self.body
        for key in ("error", "message", "detail"):
            if isinstance(body, dict) and isinstance(body.get(key), str | dict):
                body = body[key]
        text = body if isinstance(body, str) else json.dumps(body)
        return redacted(one_line(text, _LONGEST_WORDS))


class Client:
    """A client of one server, whose requests run in a thread of its own over connections that stay open.

    Args:
        settings: where the server is, and how patiently it is asked.
        token: bearer token; None where the server wants none.
        first_delay: seconds before a request is made for the second time; they double from then on.
    """

    def __init__(self, settings: ServerSettings, token: str | None, *, first_delay: float = _FIRST_DELAY) -> None:
        self._settings = settings
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._first_delay = first_delay
        self._in_flight = InFlight(settings.concurrency, settings.tokens_in_flight)
        # The program's own random numbers are the run's.
        self._random = random.SystemRandom()
        self._session: aiohttp.ClientSession | None = None
        self._last_answer = -float("inf")
        self._trouble_since: float | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="served-teacher", daemon=True)
        self._thread.start()
        # A run that fails closes nothing, and aiohttp would tell of every connection that was left open.
        atexit.register(self.close)

    @property
    def called(self) -> str:
        """What messages call the server."""
        return f"the teacher's server at {self._settings.url}"

    def submit(self, path: str, body: Any, *, tokens: int, read: Callable[[Any], T]) -> Future[T]:
        """Begin a request that is made again until it is answered.

        Args:
            path: path below the server's URL.
            body: the request's JSON.
            tokens: tokens in it, for the bound on those under way.
            read: called with the reply's JSON, in the client's thread; what it raises is the future's.

        Returns:
            The future of what ``read`` returns; it raises RefusedError or GoneError where there is no answer.
        """
        return asyncio.run_coroutine_threadsafe(self._answered(path, body, tokens, read), self._loop)

    def ask(self, path: str, body: Any = None) -> Reply:
        """Make one request now, whatever is under way, and wait for it.

        Raises:
            TroubleError: there is no reply.
        """
        return asyncio.run_coroutine_threadsafe(self._once(path, body), self._loop).result()

    def close(self) -> None:
        """Give up what is under way, close all connections and end the thread."""
        if self._loop.is_closed():
            return
        atexit.unregister(self.close)
        asyncio.run_coroutine_threadsafe(self._ended(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _ended(self) -> None:
        mine = asyncio.current_task()
        tasks = [task for task in asyncio.all_tasks() if task is not mine]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    async def _answered(self, path: str, body: Any, tokens: int, read: Callable[[Any], T]) -> T:
        async with self._in_flight.room(tokens):
            return read(await self._persistently(lambda: self._good(path, body)))

    async def _persistently(self, once: Callable[[], Awaitable[T]]) -> T:
        """Do something until it succeeds, as long as the server may still come back."""
        began, delay = None, self._first_delay
        while True:
            try:
                found = await once()
            except TroubleError as trouble:
                now = time.monotonic()
                began = now if began is None else began
                # A server that answers others while it tells this one to wait is not gone.
                since = max(began, self._last_answer) if trouble.busy else began
                left = since + self._settings.patience - now
                if left <= 0:
                    raise self._gone(trouble, now - since) from None
                wait = min(max(trouble.delay, delay * self._random.uniform(0.5, 1.0)), max(left, 0.01))
                self._note_trouble(trouble, now)
                await asyncio.sleep(wait)
                delay = min(2 * delay, _LONGEST_DELAY)
            else:
                self._note_answer()
                return found

    async def _good(self, path: str, body: Any) -> Any:
        reply = await self._once(path, body)
        if reply.status != 200:
            raise RefusedError(f"{self.called} refuses a request ({reply.status}): {reply.words}")
        if isinstance(reply.body, str):
            raise TroubleError("its reply is no JSON, or was cut off")
        return reply.body

    async def _once(self, path: str, body: Any) -> Reply:
        """Make a request once.

        Raises:
            TroubleError: no reply, or one of a server that is not ready.
            RefusedError: the server cannot be spoken to at all.
        """
        session, url = self._opened(), self._settings.base + path
        method = "GET" if body is None else "POST"
        try:
            # A redirection would carry the token elsewhere.
            async with session.request(method, url, json=body, allow_redirects=False) as response:
                reply = Reply(response.status, _json_or_text(await response.read()))
                after = seconds_after(response.headers.get("Retry-After"))
        except (aiohttp.ClientSSLError, aiohttp.ServerFingerprintMismatch, aiohttp.InvalidURL) as error:
            raise RefusedError(f"{self.called} cannot be spoken to ({one_line(error, kind=True)})") from error
        except TimeoutError as error:
            # It may have been waiting behind others.
            text = f"no reply within teacher.server.timeout {self._settings.timeout:g} s"
            raise TroubleError(text, busy=True) from error
        except (aiohttp.ClientError, OSError) as error:
            raise TroubleError(one_line(error, kind=True)) from error
        if reply.status in _PASSING:
            raise TroubleError(f"{reply.status}: {reply.words}", delay=after, busy=reply.status in (_BUSY, 503))
        return reply

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            seconds = self._settings.timeout
            self._session = aiohttp.ClientSession(
                headers=self._headers,
                timeout=aiohttp.ClientTimeout(total=seconds, sock_connect=min(seconds, _CONNECT_SECONDS)),
                connector=aiohttp.TCPConnector(limit=0),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session

    def _note_trouble(self, trouble: TroubleError, now: float) -> None:
        if self._trouble_since is None:
            self._trouble_since = now
            log.warning("%s: %s; it is asked again", self.called, trouble)

    def _note_answer(self) -> None:
        self._last_answer = now = time.monotonic()
        if self._trouble_since is not None:
            log.warning("%s answers again, after %.1f s", self.called, now - self._trouble_since)
            self._trouble_since = None

    def _gone(self, trouble: TroubleError, seconds: float) -> GoneError:
        return GoneError(
            f"{self.called} has given no answer for {seconds:.0f} s, which is teacher.server.patience "
            f"{self._settings.patience:g} ({trouble}): the last checkpoint is good; bring it back, and run the same "
            "command again"
        )


def _json_or_text(data: bytes) -> Any:
    try:
        found = json.loads(data)
    except ValueError:
        return data.decode("utf-8", errors="replace")
    # (A text of its own is told from one that is no JSON.)
    return {"message": found} if isinstance(found, str) else found


def seconds_after(header: str | None) -> float:
    """Read how long a server wants to be left alone for: seconds, or a date."""
    if header is None:
        return 0.0
    with contextlib.suppress(ValueError):
        return max(0.0, float(header))
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    return 0.0
