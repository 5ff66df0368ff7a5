"""What a model says by any stock chat template is split into its reasoning and its answer, and ends where it ends."""

from __future__ import annotations

from functools import cache

import pytest

from tests.helpers.chat_templates import stock_templates, tokenizer_with
from tests.helpers.talks import TALKS, talk
from tests.helpers.tokenizers_zoo import MissingPackageError
from uld_ds.data.sides import TextSide
from uld_ds.recipe import ModelSettings

try:
    NAMES = sorted(stock_templates())
except MissingPackageError as missing:
    NAMES = []
    pytestmark = pytest.mark.skip(reason=str(missing))

THINKING = "reasoning in a field"
# Of a template that knows no reasoning, what it writes is what it got: the usual marks in the content.
INLINE = "reasoning in the content"


@cache
def side(name: str) -> TextSide:
    return TextSide(tokenizer_with(stock_templates()[name]), ModelSettings(model="x", max_length=9_999), "student")


def reply(name: str, kind: str) -> tuple[str, str, list[int]] | None:
    """A talk's prompt, its last turn as a model says it, and the tokens of its end; None where that cannot be told."""
    try:
        rendered = side(name).render(talk(kind))
    except ValueError:
        return None
    if not rendered.text.startswith(rendered.prompt):
        return None
    (encoded,) = side(name).encode([rendered])
    end = encoded.ids[encoded.turns[-1].parts[-1].stop :].tolist()
    return rendered.prompt, rendered.text[len(rendered.prompt) : rendered.turns[-1].stop], end


@pytest.mark.parametrize("name", NAMES)
def test_replies_are_split_as_they_were_put_together(name: str) -> None:
    reader = side(name).reply_reader
    for kind in ("plain", THINKING if reader.may_think else INLINE):
        found = reply(name, kind)
        if found is None:
            continue
        prompt, text, _ = found
        thinks = kind != "plain" and "Two and two." in text
        expected = ("Two and two." if thinks else "", "It is 4." if kind != "plain" else "Hello there.")
        assert reader.split(text, prompt) == expected
        if thinks:
            # Cut off while it thought, it has said nothing.
            assert reader.split(text[: text.index("two.")], prompt) == ("Two and", "")


@pytest.mark.parametrize("name", NAMES)
def test_generation_ends_where_the_turn_does(name: str) -> None:
    tokenizer, ends = side(name).tokenizer, set(side(name).end_ids)
    for kind in TALKS:
        found = reply(name, kind)
        if found is None:
            continue
        _, text, end = found
        assert not ends & set(tokenizer.encode(text, add_special_tokens=False)), f"{kind}: ends within {text!r}"
        first = next((place for place, token in enumerate(end) if token in ends), None)
        assert first is not None, f"{kind}: nothing of {tokenizer.decode(end)!r} is an end"
        before = tokenizer.decode(end[:first]).strip()
        if kind in ("plain", THINKING):
            assert before == side(name).reply_marks.end
            assert side(name).reply_reader.split(text + before)[1] == side(name).reply_reader.split(text)[1]
