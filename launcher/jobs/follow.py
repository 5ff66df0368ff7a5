"""Following a job: its log as it is written, its end as an exit status, and what Ctrl-C means."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from typing import Literal, TextIO

import aiohttp
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from launcher.jobs.client import api_errors
from uld_ds.errors import RunError

STOPPED = 143
"""Exit status for a job that was stopped: that of the command itself when it is told to stop."""
DETACHED = 130
"""Exit status for a job that goes on: that of a command that Ctrl-C ended."""
_ATTEMPTS = 5
Choice = Literal["stop", "detach"]


def exit_status(job: JobDetails) -> int:
    """Return the exit status of the job's command: its own where it has one, 143 for a job that was stopped."""
    if job.status == JobStatus.SUCCEEDED:
        return 0
    if job.status == JobStatus.STOPPED:
        return STOPPED
    code = job.driver_exit_code
    if code is None or code == 0:
        return 1
    # Ended by a signal: as a shell shows it.
    return code if code > 0 else 128 - code


class Follower:
    """A person's view of one job, followed to its end.

    Args:
        client: of the cluster.
        job_id: the job's submission id.
        out: where its log goes.
        ask: what Ctrl-C means; asked each time.
    """

    def __init__(self, client: JobSubmissionClient, job_id: str, *, out: TextIO, ask: Callable[[], Choice]) -> None:
        self._client = client
        self._id = job_id
        self._out = out
        self._ask = ask
        self._shown = 0

    def follow(self) -> JobDetails | None:
        """Show the job's log to its end; return the job as it ended, None when the user left it running.

        Raises:
            RunError: the cluster does not answer any more.
        """
        while True:
            try:
                self._show_log()
                return self._ended()
            except KeyboardInterrupt:
                if self._ask() == "detach":
                    return None
                with api_errors():
                    self._client.stop_job(self._id)
                self._out.write("asked it to stop; it writes a checkpoint first\n")

    def _ended(self) -> JobDetails:
        with api_errors():
            # Ray writes down the end a moment after the last line of the log.
            while not (job := self._client.get_job_info(self._id)).status.is_terminal():
                time.sleep(0.5)
        return job

    def _show_log(self) -> None:
        """Show the log to its end. A connection that breaks is made again, some times in a row."""
        attempt = 0
        while True:
            before = self._shown
            try:
                asyncio.run(self._tail())
                with api_errors():
                    if self._client.get_job_status(self._id).is_terminal():
                        return
            except (RuntimeError, OSError, aiohttp.ClientError) as error:
                attempt = 1 if self._shown > before else attempt + 1
                if attempt >= _ATTEMPTS:
                    raise RunError(f"no more log of job {self._id!r} ({error}); it may go on") from error
            time.sleep(1)

    async def _tail(self) -> None:
        # The server begins with the log's first line each time.
        skip = self._shown
        async for text in self._client.tail_job_logs(self._id):
            new = text[skip:]
            skip = max(0, skip - len(text))
            self._out.write(new)
            self._out.flush()
            self._shown += len(new)


def ask_at_terminal(job_id: str) -> Choice:
    """Ask the person at the terminal whether to stop or detach; detach where there is none."""
    if sys.stdin.isatty() and sys.stderr.isatty():
        sys.stderr.write(f"\njob {job_id!r} goes on without this command. [s]top it, or [d]etach? ")
        sys.stderr.flush()
        try:
            return "stop" if sys.stdin.readline().strip().lower() in {"s", "stop"} else "detach"
        except KeyboardInterrupt:
            sys.stderr.write("\n")
    return "detach"
