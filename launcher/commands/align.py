"""``uld-ds align``: how two tokenizers cut a text or a conversation, and where they agree."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console, RenderableType
from rich.text import Text

from launcher.commands.align_messages import SideOptions, conversation_view, read_row
from launcher.commands.options import OUTPUT
from launcher.terminal.output_files import cannot_write, check_target
from launcher.terminal.quiet import no_news
from uld_ds.errors import UserError
from uld_ds.tokenization.loading import is_read, local_path, open_tokenizer, without_torch
from uld_ds.utils.files import write_whole

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from uld_ds.reporting.alignment_view import AlignmentView, SideView
    from uld_ds.reporting.conversation_view import ConversationView
    from uld_ds.reporting.vocabulary_view import VocabularyView
    from uld_ds.tokenization.vocabulary import Vocabulary


def add_to(app: typer.Typer) -> None:
    """Add the verb ``align`` to the command line."""
    app.command("align")(align)


TALK = "A whole conversation"
PLACE = "a folder, tokenizer.json or GGUF file, a hub id, or package:NAME."


def _template(side: str) -> typer.models.OptionInfo:
    return typer.Option(
        metavar="TEXT",
        help=f"Text with {{prompt}} in it, in place of the {side}'s chat template.",
        rich_help_panel=TALK,
        show_default=False,
    )


def _arguments(side: str) -> typer.models.OptionInfo:
    return typer.Option(
        metavar="JSON",
        help=f"Variables of the {side}'s chat template, as an object.",
        rich_help_panel=TALK,
        show_default=False,
    )


def align(
    student: Annotated[str, typer.Option(help=f"The student's tokenizer: {PLACE}", show_default=False)],
    teacher: Annotated[str, typer.Option(help="The teacher's, named alike.", show_default=False)],
    text: Annotated[str | None, typer.Option(help="What to cut; - reads standard input.", show_default=False)] = None,
    text_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A UTF-8 file with the text instead.", show_default=False)
    ] = None,
    messages: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A whole conversation instead: JSON with a list of messages, or with messages, tools, "
            "chat_template_kwargs; or JSONL of such rows.",
            rich_help_panel=TALK,
            show_default=False,
        ),
    ] = None,
    row: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Its row: a line of JSONL (from 1), an element of a list (from 0). Default: the first.",
            rich_help_panel=TALK,
            show_default=False,
        ),
    ] = None,
    student_template: Annotated[str | None, _template("student")] = None,
    teacher_template: Annotated[str | None, _template("teacher")] = None,
    student_template_arguments: Annotated[str | None, _arguments("student")] = None,
    teacher_template_arguments: Annotated[str | None, _arguments("teacher")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print ids, spans and segments as a JSON object.", rich_help_panel=OUTPUT)
    ] = False,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a page, for a slide, and print its path.", rich_help_panel=OUTPUT),
    ] = None,
    vocabulary: Annotated[
        bool, typer.Option("--vocabulary", help="Show instead which tokens the two vocabularies share; takes no text.")
    ] = False,
) -> None:
    """Show how two tokenizers cut a text or a conversation, and where they agree: segments, which training compares."""
    sides = (
        SideOptions("--student", student, student_template, student_template_arguments),
        SideOptions("--teacher", teacher, teacher_template, teacher_template_arguments),
    )
    of_talk = {"--row": row, **sides[0].given(), **sides[1].given()}
    if vocabulary:
        of_text = {"--text": text, "--text-file": text_file, "--html": html, "--messages": messages}
        _refuse(of_text | of_talk, "does not go together with --vocabulary, which looks at no text", "give one of them")
        return _vocabulary(student, teacher, as_json=as_json)
    if as_json and html is not None:
        raise UserError("--json", "does not go together with --html", "give one of them")
    if html is not None:
        check_target(html, "--html")
    if messages is None:
        _refuse(of_talk, "belongs to a conversation, and there is none", "give --messages FILE, or leave it out")
        _put(_text_view(_text(text, text_file), student, teacher), as_json=as_json, html=html)
    else:
        _refuse({"--text": text, "--text-file": text_file}, "does not go together with --messages", "give one of them")
        _put(_talk_view(messages, row, *sides), as_json=as_json, html=html)


def _refuse(options: dict[str, object], problem: str, fix: str) -> None:
    for key, value in options.items():
        if value is not None:
            raise UserError(key, problem, fix)


def _text_view(text: str, student: str, teacher: str) -> AlignmentView:
    with _reading(student, teacher):
        return _view(text, student, teacher)


def _talk_view(file: Path, row: int | None, student: SideOptions, teacher: SideOptions) -> ConversationView:
    for side in (student, teacher):
        side.settings()  # what is mistyped is told before libraries are imported
    found = read_row(file, row)
    with _reading(student.place, teacher.place):
        return conversation_view(found, student, teacher)


def _put(view: AlignmentView | ConversationView, *, as_json: bool, html: Path | None) -> None:
    if as_json:
        typer.echo(json.dumps(view.to_json()))
    elif html is not None:
        _write(html, _page(view))
        typer.echo(str(html))
    else:
        _show(_rows(view))
    if view.warning is not None:
        line = Text.assemble(("warning:", "bold yellow"), " ", view.warning)
        Console(stderr=True, highlight=False).print(line, soft_wrap=True)


def _page(view: AlignmentView | ConversationView) -> str:
    from uld_ds.reporting.alignment_html import alignment_page
    from uld_ds.reporting.alignment_view import AlignmentView

    if isinstance(view, AlignmentView):
        return alignment_page(view)
    from uld_ds.reporting.conversation_html import conversation_page

    return conversation_page(view)


def _rows(view: AlignmentView | ConversationView) -> RenderableType:
    from uld_ds.reporting.alignment_terminal import AlignmentRows
    from uld_ds.reporting.alignment_view import AlignmentView

    if isinstance(view, AlignmentView):
        return AlignmentRows(view)
    from uld_ds.reporting.conversation_terminal import ConversationRows

    return ConversationRows(view)


def _vocabulary(student: str, teacher: str, *, as_json: bool) -> None:
    with _reading(student, teacher):
        view = _vocabulary_view(student, teacher)
    if as_json:
        typer.echo(json.dumps(view.to_json()))
    else:
        _show(view.to_rich())


def _vocabulary_view(student: str, teacher: str) -> VocabularyView:
    from uld_ds.reporting.vocabulary_view import VocabularyView

    tokenizers = open_tokenizer(student, "--student"), open_tokenizer(teacher, "--teacher")
    sides = _vocabulary_of(tokenizers[0], "--student"), _vocabulary_of(tokenizers[1], "--teacher")
    return VocabularyView.of(*sides, names=(student, teacher))


def _vocabulary_of(tokenizer: PreTrainedTokenizerBase, key: str) -> Vocabulary:
    from uld_ds.tokenization.vocabulary import Vocabulary

    try:
        return Vocabulary.of(tokenizer)
    except ValueError as error:
        raise UserError(key, str(error), "choose another tokenizer") from error


@contextmanager
def _reading(student: str, teacher: str) -> Iterator[None]:
    """Check both tokenizers' paths, then keep libraries quiet while the tokenizers are read."""
    # A mistyped path is told before the seconds that importing transformers takes.
    paths = local_path(student, "--student"), local_path(teacher, "--teacher")
    with no_news(), without_torch() if all(path is None or is_read(path) for path in paths) else nullcontext():
        yield


def _text(text: str | None, file: Path | None) -> str:
    """Read the text that the options give.

    Raises:
        UserError: none or two of them, an unreadable file, an empty text, bytes that are not UTF-8.
    """
    if text is not None and file is not None:
        raise UserError("--text-file", "does not go together with --text", "give one of them")
    if file is not None:
        key, content = "--text-file", _decoded(_bytes_of(file), "--text-file")
    elif text == "-":
        key, content = "--text", _decoded(sys.stdin.buffer.read(), "--text")
    elif text is not None:
        key, content = "--text", text
    else:
        raise UserError("--text", "there is no text", "give one, - for standard input, or --text-file FILE")
    if not content:
        raise UserError(key, "the text is empty", "give a text with at least one character")
    # Bytes of the command line that are not UTF-8 arrive as lone surrogates.
    broken = next((n for n, character in enumerate(content) if "\ud800" <= character <= "\udfff"), None)
    if broken is not None:
        raise _not_utf8(key, f"character {broken}")
    return content


def _bytes_of(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError("--text-file", f"cannot read {str(file)!r} ({error.strerror})", "give a text file") from error


def _decoded(data: bytes, key: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise _not_utf8(key, f"byte {error.start}") from error


def _not_utf8(key: str, where: str) -> UserError:
    return UserError(key, f"the text is not valid UTF-8 at {where} (counted from 0)", "convert it to UTF-8")


def _write(html: Path, page: str) -> None:
    try:
        write_whole(html, page)
    except OSError as error:
        raise cannot_write(html, "--html", error) from error


def _view(text: str, student: str, teacher: str) -> AlignmentView:
    from uld_ds.reporting.alignment_view import AlignmentView

    return AlignmentView.of(text, _side(text, student, "--student"), _side(text, teacher, "--teacher"))


def _side(text: str, place: str, key: str) -> SideView:
    from uld_ds.reporting.alignment_view import SideView

    tokenizer = open_tokenizer(place, key)
    try:
        return SideView.of(tokenizer, text, place.encode(errors="replace").decode())
    except ValueError as error:
        raise UserError(key, str(error), "choose another text or tokenizer") from error


def _show(shown: RenderableType) -> None:
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without Unicode gets question marks, no traceback
    Console(highlight=False).print(shown)
