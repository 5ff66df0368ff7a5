"""Errors and texts on one line, for messages, logs and records. No heavy imports."""

from __future__ import annotations

LONGEST = 200
"""Characters of a reason by default: it stands in brackets inside a sentence that names key, value and fix, and the
whole is then some four rows of a terminal. What libraries say is seldom longer; what is, are dumps."""
_CUT = "..."


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
