"""The two ways a run ends badly, and the exit status each has on the command line."""

from __future__ import annotations


class UserError(ValueError):
    """What the user asked for cannot be done as asked: exit status 2.

    Its message is one line that names the key, the value and the fix.

    Args:
        key: where the value was given, e.g. ``data.train.path`` or ``--set``.
        problem: what is wrong, with the value.
        fix: what to change.
    """

    exit_status = 2

    def __init__(self, key: str, problem: str, fix: str) -> None:
        self.key = key
        self._parts = (key, problem, fix)
        super().__init__(f"{key}: {problem}; {fix}")

    def __reduce__(self) -> tuple[type[UserError], tuple[str, str, str]]:
        """Workers raise it, too: it crosses processes as what it was made of, not as its message."""
        return type(self), self._parts


class RunError(RuntimeError):
    """The request was sound, the run failed: exit status 1."""

    exit_status = 1


class FinalError(RunError):
    """A run failed in a way that would be the same after a restart of its workers: there is none."""


class StoppedError(RunError):
    """The run was told to stop and did: exit status 143, which a shell shows for a process that SIGTERM ended."""

    exit_status = 143
