"""What ``uld-ds align --messages`` reads: a conversation's file, and what a recipe would say of its two sides."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from uld_ds.errors import UserError, one_line
from uld_ds.tokenization.loading import open_tokenizer

if TYPE_CHECKING:
    from uld_ds.reporting.conversation_sides import Speaker
    from uld_ds.reporting.conversation_view import ConversationView

KEY = "--messages"
_FIX = "give a JSON file with a list of messages, or an object with messages"


@dataclass(frozen=True)
class SideOptions:
    """What the options say of one side.

    Attributes:
        key: option of the tokenizer, ``--student`` or ``--teacher``.
        place: the tokenizer, as it was given.
        template: text template; None for the tokenizer's chat template.
        arguments: JSON of the chat template's variables; None for none.
    """

    key: str
    place: str
    template: str | None
    arguments: str | None

    def given(self) -> dict[str, object]:
        """Return the options that belong to a conversation alone, by name."""
        return {f"{self.key}-template": self.template, f"{self.key}-template-arguments": self.arguments}

    def settings(self) -> dict[str, Any]:
        """Return what a recipe would say of the side, as plain values.

        Raises:
            UserError: the template has no place for the prompt, or the variables are no JSON object.
        """
        template = self.template or "chat"
        if template != "chat" and "{prompt}" not in template:
            key = f"{self.key}-template"
            raise UserError(key, f"{template!r} has no {{prompt}} in it", "put it where the messages are to stand")
        return {
            "model": self.place.encode(errors="replace").decode(),
            "prompt_template": template,
            "template_arguments": self._variables(),
        }

    def _variables(self) -> dict[str, Any]:
        if self.arguments is None:
            return {}
        key, fix = f"{self.key}-template-arguments", 'give an object, e.g. {"enable_thinking": true}'
        try:
            value = json.loads(self.arguments)
        except ValueError as error:
            raise UserError(key, f"{one_line(self.arguments)!r} is not JSON ({error})", fix) from error
        if not isinstance(value, dict):
            raise UserError(key, f"{one_line(self.arguments)!r} is no JSON object", fix)
        return value


@dataclass(frozen=True)
class Row:
    """A row of a conversation's file.

    Attributes:
        values: the row, as a dataset has it: ``messages``, perhaps ``tools`` and ``chat_template_kwargs``.
        where: its file and line, for messages.
    """

    values: dict[str, Any]
    where: str


def read_row(file: Path, number: int | None) -> Row:
    """Read a conversation's row of a file.

    Args:
        file: JSON file of a list of messages, of an object with them, or of a list of such objects; or JSONL.
        number: line of a JSONL file, from 1, or element of a list, from 0, as errors of preparation name them; None for
            the first one.

    Raises:
        UserError: no file, no JSON, no such row, or one without messages.
    """
    value, where = _value(file, number)
    if isinstance(value, list):
        value = {"messages": value}
    if not isinstance(value, dict):
        raise UserError(KEY, f"{where} holds {type(value).__name__}, not messages", _FIX)
    if "messages" not in value:
        there = ", ".join(map(repr, value)) or "nothing"
        raise UserError(KEY, f"{where} has no key 'messages', it has {one_line(there)}", _FIX)
    return Row(value, where)


def _value(file: Path, number: int | None) -> tuple[Any, str]:
    """Read a JSON file, or a line of a JSONL file however long that is; and say where the value stood."""
    shown = repr(str(file))
    try:
        with file.open("rb") as stream:
            lines = [(place, line) for place, line in islice(_filled(stream), 2)]
            if len(lines) == 2 and _is_row(lines[0][1]):
                found = next(
                    (item for item in chain(lines, _filled(stream, 1 + lines[1][0])) if number in (None, item[0])), None
                )
                if found is None:
                    raise UserError("--row", f"{shown} has no row on line {number}", "name one of its lines, from 1")
                where = f"{shown} line {found[0]}"
                return _parsed(found[1], where), where
            stream.seek(0)
            value = _parsed(stream.read(), shown)
    except OSError as error:
        raise UserError(KEY, f"cannot read {shown} ({error.strerror})", _FIX) from error
    return _element(value, number, shown)


def _filled(stream: BinaryIO, first: int = 1) -> Iterator[tuple[int, bytes]]:
    """Yield the number and the text of each line that is not blank."""
    return ((place, line) for place, line in enumerate(stream, first) if line.strip())


def _element(value: Any, number: int | None, shown: str) -> tuple[Any, str]:
    if isinstance(value, list) and value and all(isinstance(item, dict) and "messages" in item for item in value):
        if not 0 <= (number or 0) < len(value):
            raise UserError("--row", f"{shown} has no element {number}, it has {len(value)}", "count them from 0")
        return value[number or 0], f"{shown} element {number or 0}"
    if number not in (None, 1):
        raise UserError("--row", f"{shown} is one conversation, it has no row {number}", "leave it out")
    return value, shown


def _parsed(data: bytes, where: str) -> Any:
    try:
        return json.loads(data.decode())
    except UnicodeDecodeError as error:
        raise UserError(KEY, f"{where} is not UTF-8 (byte {error.start})", "convert it to UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise UserError(KEY, f"{where} is not JSON ({one_line(error)})", _FIX) from error


def _is_row(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line.decode()), dict | list)
    except (ValueError, RecursionError):
        return False


def conversation_view(row: Row, student: SideOptions, teacher: SideOptions) -> ConversationView:
    """Align a conversation, as training does.

    Args:
        row: what ``read_row`` has read.
        student: the student's options.
        teacher: the teacher's.

    Raises:
        UserError: the row holds no conversation with an answer, there is no such tokenizer, or a template refuses it.
    """
    from uld_ds.data.examples import as_example
    from uld_ds.recipe import ColumnSettings
    from uld_ds.reporting.conversation_sides import PairedConversation, blamed
    from uld_ds.reporting.conversation_view import ConversationView

    with blamed(KEY, "correct the conversation", row.where):
        example = as_example(row.values, ColumnSettings(messages="messages"))
    paired = PairedConversation.of(example, _speaker(student), _speaker(teacher))
    return ConversationView.of(paired, after=_number(row.values["messages"]) - len(example.messages))


def _number(messages: Any) -> int:
    return len(json.loads(messages) if isinstance(messages, str) else messages)


def _speaker(options: SideOptions) -> Speaker:
    from uld_ds.recipe import ModelSettings
    from uld_ds.reporting.conversation_sides import Speaker

    settings = ModelSettings(**options.settings())
    return Speaker(open_tokenizer(options.place, options.key), settings, options.key)
