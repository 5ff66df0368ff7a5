"""SIGTERM to the driver: the worker group is asked for a last checkpoint and has a grace period to write it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

from uld_ds.errors import StoppedError
from uld_ds.runs.stop_file import StopFile

# The worker group may still commit one before it is gone.
_UNWAITED = "stopped without waiting for a last checkpoint"


class SigtermStops:
    """A context in which SIGTERM ends what is inside with StoppedError: at once, or ``after_a_checkpoint``.

    Enter it after Ray has started: Ray installs a handler of its own, which leaves with status 15.
    """

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._file: StopFile | None = None
        self._grace_seconds = 0.0
        self._timer: threading.Timer | None = None
        self._reason: str | None = None

    def __enter__(self) -> SigtermStops:
        self._in_main = threading.current_thread() is threading.main_thread()
        if self._in_main:
            self._before = signal.signal(signal.SIGTERM, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._in_main:
            signal.signal(signal.SIGTERM, self._before)
        if self._reason is not None and isinstance(error, KeyboardInterrupt):
            raise StoppedError(f"{self._reason}; the same command goes on from the last checkpoint") from error

    @contextmanager
    def after_a_checkpoint(self, file: StopFile, grace_seconds: float) -> Iterator[None]:
        """Ask the worker group to leave on the first signal; end it on a second one, or when the grace period is over.

        Args:
            file: the request that the worker group reads.
            grace_seconds: how long the worker group may take.
        """
        self._file, self._grace_seconds = file, grace_seconds
        try:
            yield
        finally:
            self._file = None
            if self._timer is not None:
                self._timer.cancel()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            # A forked child, e.g. of a pool: it inherits the handler and is ended as ever.
            os._exit(128 + number)
        if self._file is not None and self._timer is None:
            try:
                self._file.ask()
            except OSError as error:
                self._reason = f"stopped without a last checkpoint: storage does not take the request ({error})"
                raise KeyboardInterrupt from error
            self._timer = threading.Timer(self._grace_seconds, self._end_of_grace)
            self._timer.daemon = True
            self._timer.start()
            return
        if self._reason is None:
            told_again = self._file is not None
            self._reason = f"{_UNWAITED}: told to twice" if told_again else "told to stop"
        # The exception that Ray's blocking calls let through.
        raise KeyboardInterrupt

    def _end_of_grace(self) -> None:
        self._reason = f"{_UNWAITED}: it took longer than cluster.grace_seconds {self._grace_seconds:g}"
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, signal.SIGTERM)
