"""Errors that end a command, with the exit status of each, and an error's text on one line."""

from __future__ import annotations

LONGEST = 200
"""Most characters of a reason by default.

It stands in brackets inside a sentence that names key, value and fix, and the whole is then some four rows of a
terminal. Messages of libraries are seldom longer; those that are, are dumps."""
_CUT = "..."


class UserError(ValueError):
    """A request of the user that cannot be met as it stands: exit status 2.

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
        """Pickle the error as its three parts, not as its message: workers raise it, too, in other processes."""
        return type(self), self._parts


class RunError(RuntimeError):
    """A failure of the run itself, after a sound request: exit status 1."""

    exit_status = 1


class FinalError(RunError):
    """A failure that would be the same after a restart of the workers, so that there is no restart."""


class StoppedError(RunError):
    """The end of a run that was told to stop: exit status 143, a shell's own for a process that SIGTERM ended."""

    exit_status = 143


def one_line(error: BaseException | str, limit: int | None = LONGEST, *, kind: bool = False) -> str:
    r"""Put an error or a text on one line.

    Args:
        error: its message is taken; an error without one is called by its class.
        limit: the most characters of the text, the ellipsis of a cut one included; None cuts nothing.
        kind: put the error's class before the text where that says more: a ``KeyError``'s text is a key, while that of
            a ``ValueError``, an ``OSError`` or a bare ``Exception`` is a sentence.

    Returns:
        The text with every run of whitespace as one space, none at the ends.

    >>> one_line(ValueError("no such\n  thing"))
    'no such thing'
    >>> one_line("a long story", 9)
    'a long...'
    >>> one_line(KeyError("size"), kind=True), one_line(TimeoutError())
    ("KeyError: 'size'", 'TimeoutError')
    """
    text = _shortened(" ".join(str(error).split()), limit)
    if isinstance(error, str):
        return text
    name = type(error).__name__
    if not text:
        return name
    speaks = isinstance(error, OSError | ValueError) or type(error) is Exception
    return f"{name}: {text}" if kind and not speaks else text


def message_lines(error: BaseException) -> list[str]:
    """Split an error's message into its lines that are not blank; one without a message gives its class.

    Ray's errors hold the traceback of another process; which of its lines says what happened, the caller knows.
    """
    return [line.rstrip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]


def _shortened(text: str, limit: int | None) -> str:
    if limit is None or len(text) <= limit:
        return text
    return text[: max(0, limit - len(_CUT))].rstrip() + _CUT[:limit]
