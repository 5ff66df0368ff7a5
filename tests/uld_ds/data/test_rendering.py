"""Where the answer is in what each side reads, to the character."""

from __future__ import annotations

import pytest

from tests.helpers.toy_tokenizers import CHAT_TEMPLATE, TRIMMING_TEMPLATE, toy
from uld_ds.data.examples import Example
from uld_ds.data.rendering import Rendered, Renderer
from uld_ds.errors import UserError
from uld_ds.recipe import ModelSettings


def renderer(chat_template: str | None, prompt_template: str = "chat", system_prompt: str | None = None) -> Renderer:
    settings = ModelSettings(model="x", prompt_template=prompt_template, system_prompt=system_prompt)
    return Renderer(toy(chat_template=chat_template), settings, "student")


def asked(answer: str, prompt: str = "q") -> Example:
    return Example.of(prompt, answer)


def parts(rendered: Rendered) -> tuple[str, str, str]:
    (turn,) = rendered.turns
    assert turn.end == len(rendered.text)
    return rendered.text[: turn.start], rendered.text[turn.start : turn.stop], rendered.text[turn.stop :]


def conversation(*messages: tuple[str, str]) -> Example:
    """All of its assistant turns are answers."""
    turns = tuple({"role": role, "content": content} for role, content in messages)
    return Example(turns, tuple(i for i, turn in enumerate(turns) if turn["role"] == "assistant"))


def shown(rendered: Rendered) -> list[tuple[str, str]]:
    """Each answer, and what ends its turn."""
    return [(rendered.text[t.start : t.stop], rendered.text[t.stop : t.end]) for t in rendered.turns]


def test_chat_template() -> None:
    render = renderer(CHAT_TEMPLATE)
    assert parts(render(asked("an answer"))) == ("<user>q</s>\n<assistant>", "an answer", "</s>")
    assert render.prompt(asked("an answer")) == "<user>q</s>\n<assistant>"


def test_white_space_of_the_answer_stays_unless_the_template_trims_it() -> None:
    assert parts(renderer(CHAT_TEMPLATE)(asked(" a\n\n")))[1] == " a\n\n"
    assert parts(renderer(TRIMMING_TEMPLATE)(asked(" a\n\n"))) == ("<user>q</s>\n<assistant>", "a", "</s>")


@pytest.mark.parametrize(
    "answer", ["yes", "s", "assistant", "user", "</s>", ">", "<", "yes</s>\n<assistant>yes", "\n."]
)
def test_the_answer_is_found_where_it_is_not_where_its_text_occurs(answer: str) -> None:
    for template in (CHAT_TEMPLATE, TRIMMING_TEMPLATE):
        before, shown, after = parts(renderer(template)(asked(answer, prompt=f"say {answer}, {answer}!")))
        assert (before, shown, after) == (
            f"<user>say {answer}, {answer}!</s>\n<assistant>",
            answer.strip() if template == TRIMMING_TEMPLATE else answer,
            "</s>",
        )


def test_a_template_that_thinks_before_the_answer() -> None:
    # The generation prompt is not how the whole conversation begins; "think" occurs in what comes before.
    template = CHAT_TEMPLATE.replace("+ m['content']", "+ ('<think></think>' if loop.last else '') + m['content']")
    before, shown, after = parts(renderer(template)(asked("think")))
    assert (before[-26:], shown, after) == ("<assistant><think></think>", "think", "</s>")


def test_a_template_that_changes_the_answer_is_refused() -> None:
    template = CHAT_TEMPLATE.replace("m['content']", "m['content'] | upper")
    with pytest.raises(ValueError, match=r"^the chat template does not show the answer unchanged$"):
        renderer(template)(asked("abc"))
    with pytest.raises(ValueError, match=r"^the chat template shows nothing of the answer$"):
        renderer("{{ messages[0]['content'] }}")(asked("abc"))


def test_a_template_that_refuses_a_conversation() -> None:
    render = renderer("{{ raise_exception('no system, please') }}")
    with pytest.raises(ValueError, match=r"^the chat template refuses the conversation: no system, please$"):
        render(asked("abc"))


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ messages[0]['content'] + 1 }}", 'TypeError: can only concatenate str (not "int") to str'),
        ("{{ 1 / 0 }}", "ZeroDivisionError: division by zero"),
        ("{{ messages[0]['content'].nothing() }}", "'str object' has no attribute 'nothing'"),
        ("{{ messages[0]['content'] | int | length }}", "TypeError: object of type 'int' has no len()"),
        ("{% if %}", "Expected an expression, got 'end of statement block'"),
    ],
)
def test_a_template_that_fails_refuses_the_conversation(template: str, reason: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        renderer(template)(asked("abc"))
    assert str(caught.value) == f"the chat template refuses the conversation: {reason}"


def test_a_template_without_an_end_of_turn() -> None:
    template = CHAT_TEMPLATE.replace("</s>", "")
    assert parts(renderer(template)(asked("abc"))) == ("<user>q\n<assistant>", "abc", "")


def test_system_prompt_only_where_there_is_none() -> None:
    render = renderer(CHAT_TEMPLATE, system_prompt="Be brief.")
    assert render.prompt(asked("a")) == "<system>Be brief.</s>\n<user>q</s>\n<assistant>"
    own = conversation(("system", "own"), ("user", "q"), ("assistant", "a"))
    assert render.prompt(own) == "<system>own</s>\n<user>q</s>\n<assistant>"
    assert parts(render(own)) == ("<system>own</s>\n<user>q</s>\n<assistant>", "a", "</s>")


def test_plain_template() -> None:
    render = renderer(None, "Q: {prompt}\nA: ", system_prompt="Be brief.")
    example = conversation(("user", "q"), ("user", "{prompt}"), ("assistant", " a "))
    assert parts(render(example)) == ("Q: Be brief.\n\nq\n\n{prompt}\nA: ", " a ", "")
    assert render.prompt(example) == "Q: Be brief.\n\nq\n\n{prompt}\nA: "
    assert not render.uses_chat_template


def test_a_tokenizer_without_chat_template_needs_a_plain_one() -> None:
    with pytest.raises(UserError) as caught:
        renderer(None)
    assert str(caught.value) == (
        "student.prompt_template: 'chat', but this tokenizer has no chat template; "
        'set it to text with {prompt} in it, e.g. "{prompt}\\n"'
    )


TALK = conversation(("user", "a"), ("assistant", " yes"), ("user", "yes"), ("assistant", "a\n"))


def test_every_answer_of_a_conversation() -> None:
    rendered = renderer(CHAT_TEMPLATE)(TALK)
    assert rendered.text == "<user>a</s>\n<assistant> yes</s>\n<user>yes</s>\n<assistant>a\n</s>"
    assert shown(rendered) == [(" yes", "</s>"), ("a\n", "</s>")]
    assert [turn.start for turn in rendered.turns] == [23, 57]
    assert shown(renderer(TRIMMING_TEMPLATE)(TALK)) == [("yes", "</s>"), ("a", "</s>")]


def test_only_the_last_answer_on_request() -> None:
    rendered = renderer(CHAT_TEMPLATE)(TALK.only_last())
    assert shown(rendered) == [("a\n", "</s>")]
    assert rendered.text.endswith("<assistant>a\n</s>")


def test_an_earlier_turn_that_ends_otherwise_has_no_end() -> None:
    # Only the last turn is closed: what follows the first answer is the next message, not its end.
    template = CHAT_TEMPLATE.replace("+ '</s>\n'", "+ ('</s>' if loop.last else '\n')")
    assert shown(renderer(template)(TALK)) == [(" yes", ""), ("a\n", "</s>")]


def test_an_earlier_answer_that_the_template_hides_is_none() -> None:
    template = CHAT_TEMPLATE.replace("m['content']", "(m['content'] if loop.last or m['role'] == 'user' else '...')")
    rendered = renderer(template)(TALK)
    assert "<assistant>...</s>" in rendered.text and shown(rendered) == [("a\n", "</s>")]
    assert shown(renderer(template)(TALK.only_last())) == [("a\n", "</s>")]
