"""The ways a command ends badly, with the exit status of each, and how an error is said on one line."""

from __future__ import annotations

LONGEST = 200
"""Characters of a reason by default: it stands in brackets inside a sentence that names key, value and fix, and the
whole is then some four rows of a terminal. What libraries say is seldom longer; what is, are dumps."""
_CUT = "..."


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


def one_line(error: BaseException | str, limit: int | None = LONGEST, *, kind: bool = False) -> str:
    """Put an error or a text on one line.

    Args:
        error: its message is taken; an error without one is called by its class.
        limit: the most characters of the text, the ellipsis of a cut one included; None cuts nothing.
        kind: put the error's class before the text where that says more: a ``KeyError``'s text is a key, while that of
            a ``ValueError``, an ``OSError`` or a bare ``Exception`` is a sentence.

    Returns:
        The text with every run of whitespace as one space, none at the ends.

    >>> one_line(ValueError("no such\\n  thing"))
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
    """Split an error's message into its lines, without blank ones; at least the error's class.

    Ray's errors hold the traceback of another process; which of its lines says what happened, the caller knows.
    """
    return [line.rstrip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]


def _shortened(text: str, limit: int | None) -> str:
    if limit is None or len(text) <= limit:
        return text
    return text[: max(0, limit - len(_CUT))].rstrip() + _CUT[:limit]
