"""``uld-ds align``: the figures it shows, in each form, and one line for whatever cannot be aligned."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from launcher import cli
from tests.helpers import tokenizers_zoo as zoo
from uld_ds.alignment.segments import align as segments_of
from uld_ds.tokenization.spans import token_spans

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs ``uld-ds align`` in this process: exit status, standard output, standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def run_align(*arguments: str, stdin: bytes = b"") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["uld-ds", "align", *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main()
        output = capsys.readouterr()
        return int(caught.value.code or 0), output.out, output.err

    return run_align


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The folder of one of the test suite's tokenizers."""
    folder = tmp_path_factory.mktemp("tokenizers")

    def save(name: str) -> str:
        if not (folder / name).is_dir():
            try:
                zoo.ALL[name]().save_pretrained(folder / name)
            except zoo.MissingPackageError as missing:
                pytest.skip(str(missing))
        return str(folder / name)

    return save


@pytest.fixture
def pair(saved: Callable[[str], str]) -> list[str]:
    """A student of bytes and a teacher of ASCII characters: boundaries can be counted by hand."""
    return ["--student", saved("plain_bytes"), "--teacher", saved("characters")]


# ---- what it shows


def test_json(run: Run, pair: list[str]) -> None:
    status, out, err = run(*pair, "--text", "aé中", "--json")
    assert (status, err) == (0, "")
    assert out.count("\n") == 1
    record = json.loads(out)
    assert record["num_bytes"] == 6
    assert record["student"]["spans"] == [[n, n + 1] for n in range(6)]
    assert record["teacher"]["spans"] == [[0, 1], [1, 3], [3, 6]]
    assert record["teacher"]["ids"] == [98, 0, 0]
    assert record["student"]["ids"] == zoo.plain_bytes()("aé中")["input_ids"]
    assert record["segments"] == [
        {"student": [0, 1], "teacher": [0, 1], "bytes": [0, 1]},
        {"student": [1, 3], "teacher": [1, 2], "bytes": [1, 3]},
        {"student": [3, 6], "teacher": [2, 3], "bytes": [3, 6]},
    ]
    assert record["alignment_rate"] == 0.5
    assert record["tokens_per_segment"] == {"student": 2.0, "teacher": 1.0}
    assert (record["student"]["name"], record["teacher"]["name"]) == (pair[1], pair[3])


def test_the_terminal(run: Run, pair: list[str]) -> None:
    status, out, err = run(*pair, "--text", "aé\n")
    assert (status, err) == (0, "")
    assert out.splitlines()[-2:] == ["student ┃a┃⟨C3⟩┆⟨A9⟩┃↵┃", "teacher ┃a┃é        ┃↵┃"]
    assert "3 segments; 75% of the student's tokens begin one\n" in out
    assert "tokens per segment: student 1.33, teacher 1.00\n" in out


def test_the_page(run: Run, pair: list[str], tmp_path: Path) -> None:
    text = "see https://example.org/?a=1&b=2 <script>alert('中')</script>"
    status, out, err = run(*pair, "--text", text, "--html", "page.html")
    assert (status, out, err) == (0, "page.html\n", "")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    # What is no token of the text loads nothing and runs nothing.
    rest = re.sub(r"<bdi[^>]*>.*?</bdi>", "", page)
    assert not re.search(r"https?:|<script|<link|<img|<iframe|src=|href=|url\(|@import|\son\w+=", rest)
    assert "<script" not in page
    assert page.count('<div class="segment ') == len(text)
    assert f"<b>{len(text) / len(text.encode()):.0%}</b>" in page


REAL = "Tokenizers cut “größer als 中文” differently: x = f(y)\n\n\tok 👋🏽"


@pytest.mark.parametrize(
    ("student", "teacher", "num_tokens", "num_segments"),
    [
        ("gpt2", "deepseek", (33, 24), 24),
        ("smollm2", "mistral", (31, 30), 27),
        ("wordpiece", "gpt2", (23, 33), 21),
        ("gemma_style", "deepseek", (30, 24), 23),
        ("byt5", "smollm2", (76, 31), 31),
        ("gpt2", "canine", (33, 60), 27),
    ],
)
def test_tokenizers_of_every_kind(
    run: Run,
    saved: Callable[[str], str],
    student: str,
    teacher: str,
    num_tokens: tuple[int, int],
    num_segments: int,
) -> None:
    status, out, err = run("--student", saved(student), "--teacher", saved(teacher), "--text", REAL, "--json")
    assert status == 0
    record = json.loads(out)
    sides = [token_spans(zoo.ALL[name](), REAL) for name in (student, teacher)]
    for role, spans in zip(("student", "teacher"), sides, strict=True):
        assert record[role]["spans"] == [list(span) for span in spans]
        assert b"".join(map(bytes.fromhex, record[role]["bytes"])) == REAL.encode()
    assert [segment["student"][0] for segment in record["segments"]] == [
        segment.student.start for segment in segments_of(*sides)
    ]
    assert (len(record["student"]["ids"]), len(record["teacher"]["ids"])) == num_tokens
    assert len(record["segments"]) == num_segments
    assert record["alignment_rate"] == num_segments / num_tokens[0]
    assert err.count("\n") == (num_segments / num_tokens[0] < 0.5)
    assert err.startswith("warning: " if err else "")


def test_a_tokenizer_that_others_would_rebuild_is_told(
    run: Run, saved: Callable[[str], str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Though libraries are silenced while tokenizers are read."""
    folder = tmp_path / "qwen"
    shutil.copytree(saved("characters"), folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    status, out, _ = run("--student", str(folder), "--teacher", saved("characters"), "--text", "ab", "--json")
    assert status == 0
    assert len(json.loads(out)["segments"]) == 2
    (line,) = [record.getMessage() for record in caplog.records if record.name == "uld_ds.tokenization.notices"]
    assert line.startswith(f"{folder}: tokenizer.json is used as it stands; AutoTokenizer, which other programs use, ")


def test_a_low_rate_is_warned_about_in_every_form(run: Run, pair: list[str]) -> None:
    for form in ([], ["--json"], ["--html", "page.html"]):
        status, out, err = run(*pair, "--text", "é中", *form)  # two of five
        assert status == 0
        assert err.count("\n") == 1
        assert err.startswith("warning: only 40% of the student's tokens begin a segment, ")
        assert "warning:" not in out
        assert run(*pair, "--text", "éé", *form)[2] == ""  # two of four: not fewer than half


def test_where_the_text_comes_from(run: Run, pair: list[str], tmp_path: Path) -> None:
    text = "a\r\né - \ufeff\0"
    (tmp_path / "text").write_bytes(text.encode())
    for source, stdin in ((["--text-file", "text"], b""), (["--text", "-"], text.encode())):
        status, out, _ = run(*pair, *source, "--json", stdin=stdin)
        assert status == 0
        assert json.loads(out)["text"] == text


def test_where_a_tokenizer_comes_from(run: Run, pair: list[str], saved: Callable[[str], str]) -> None:
    file = f"{saved('characters')}/tokenizer.json"
    expected = json.loads(run(*pair, "--text", "aé", "--json")[1])
    record = json.loads(run(*pair[:2], "--teacher", file, "--text", "aé", "--json")[1])
    assert record["teacher"] == expected["teacher"] | {"name": file}
    assert record["segments"] == expected["segments"]


# ---- what cannot be done


@pytest.fixture
def bad_places(tmp_path: Path, saved: Callable[[str], str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tokenizer.json").write_text("{not json")
    (tmp_path / "latin1.txt").write_bytes("größer".encode("latin-1"))
    (tmp_path / "nothing.txt").write_bytes(b"")
    # Speech recognition: characters in upper case with | between words. Slow, and it does not spell a text.
    (tmp_path / "speech").mkdir()
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, "a": 5, "b": 6}
    (tmp_path / "speech" / "vocab.json").write_text(json.dumps(vocabulary))
    settings = {"tokenizer_class": "Wav2Vec2CTCTokenizer"}
    (tmp_path / "speech" / "tokenizer_config.json").write_text(json.dumps(settings))


BAD: dict[str, tuple[list[str], str]] = {
    "no text": ([], "--text: there is no text; give one, - for standard input, or --text-file FILE"),
    "empty text": (["--text", ""], "--text: the text is empty; give a text with at least one character"),
    "empty input": (["--text", "-"], "--text: the text is empty; give a text with at least one character"),
    "empty file": (["--text-file", "nothing.txt"], "--text-file: the text is empty; give a text with at least one c"),
    "two texts": (["--text", "a", "--text-file", "nothing.txt"], "--text-file: does not go together with --text; "),
    "surrogate": (["--text", "ab\udcff"], "--text: the text is not valid UTF-8 at character 2 (counted from 0); conv"),
    "latin-1": (["--text-file", "latin1.txt"], "--text-file: the text is not valid UTF-8 at byte 2 (counted from 0); "),
    "no file": (["--text-file", "none"], "--text-file: cannot read 'none' (No such file or directory); give a text f"),
    "folder": (["--text-file", "empty"], "--text-file: cannot read 'empty' (Is a directory); give a text file"),
    "two forms": (["--text", "a", "--json", "--html", "p"], "--json: does not go together with --html; give one of t"),
    "no folder": (["--text", "a", "--html", "no/p.html"], "--html: no folder 'no'; make it, or choose another file"),
    "a folder": (["--text", "a", "--html", "empty"], "--html: 'empty' is a folder; name a file in it"),
    "name": (
        ["--text", "a", "--html", "n" * 300],
        f"--html: cannot write '{'n' * 300}' (File name too long); choose an",
    ),
    "path": (["--text", "a", "--student", "./no"], "--student: no file or folder './no'; correct the path, or give a"),
    "long path": (["--text", "a", "--student", "n" * 300], f"--student: '{'n' * 300}' is no file or folder, and the"),
    "hub": (["--text", "a", "--student", "no/no"], "--student: 'no/no' is no file or folder, and the hub does not gi"),
    "bytes": (["--text", "a", "--student", "\udcff"], "--student: '\\udcff' is no file or folder, and the hub does no"),
    "package": (["--text", "a", "--teacher", "package:no"], "--teacher: the Python package 'no' is not installed; ins"),
    "no tokenizer": (["--text", "a", "--teacher", "empty"], "--teacher: no tokenizer at 'empty' (no tokenizer.json or"),
    "broken": (["--text", "a", "--student", "broken"], "--student: no tokenizer at 'broken' (tokenizer.json: key must"),
    "not json": (["--text", "a", "--student", "latin1.txt"], "--student: 'latin1.txt' is no tokenizer.json ("),
    "speech": (["--text", "a b", "--student", "speech"], "--student: tokenizer speech (Wav2Vec2CTCTokenizer): its tok"),
}


@pytest.mark.usefixtures("bad_places")
@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_line(run: Run, pair: list[str], tmp_path: Path, what: str) -> None:
    arguments, expected = BAD[what]
    before = {item.name for item in tmp_path.iterdir()}
    status, out, err = run(*pair, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {expected}")
    assert err.count("\n") == 1
    assert "; " in err
    assert {item.name for item in tmp_path.iterdir()} == before


def test_a_text_that_cannot_be_located(run: Run, pair: list[str], tmp_path: Path) -> None:
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    # A normalizer that writes a letter of its own: the text does not have it.
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "x": 2}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Prepend("x")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.save(str(tmp_path / "odd.json"))
    status, out, err = run("--student", "odd.json", *pair[2:], "--text", "aab")
    assert (status, out) == (2, "")
    assert err == (
        "error: --student: tokenizer odd.json (TokenizersBackend): its tokens do not spell the text; they first "
        "disagree at byte 0 of 3, before b'aab'; choose another text or tokenizer\n"
    )


def test_no_tokens(run: Run, pair: list[str], saved: Callable[[str], str]) -> None:
    place = saved("word_level")
    status, out, err = run(*pair[:2], "--teacher", place, "--text", "  ")
    assert (status, out) == (2, "")
    assert err == (
        f"error: --teacher: tokenizer {place} makes no tokens of the text; choose another text or tokenizer\n"
    )


def test_missing_options_are_wrong_use(run: Run) -> None:
    status, out, err = run("--text", "a")
    assert (status, out) == (2, "")
    assert "Missing option '--student'" in err


# ---- as a process of its own


def process(*arguments: str | bytes, environment: dict[str, str] | None = None, **options: Any) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "launcher", "align", *arguments]
    done = subprocess.run(command, capture_output=True, env=os.environ | (environment or {}), check=False, **options)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def test_it_starts_without_what_it_does_not_need(pair: list[str]) -> None:
    code = (
        "import sys\n"
        "from launcher import cli\n"
        f"sys.argv = ['uld-ds', 'align', *{pair!r}, '--text', 'aé', '--json']\n"
        "try: cli.main()\n"
        "finally: print({'torch', 'ray', 'deepspeed', 'mlflow', 'datasets'} & {*sys.modules}, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "set()\n"
    assert json.loads(done.stdout)["alignment_rate"] == 2 / 3


def test_bytes_of_the_command_line(pair: list[str]) -> None:
    status, out, err = process(*pair, "--text", b"gr\xf6\xdfer")
    assert (status, out) == (2, "")
    assert err == ("error: --text: the text is not valid UTF-8 at character 2 (counted from 0); convert it to UTF-8\n")
    status, out, err = process(*pair, "--text", "größer".encode())
    assert (status, err) == (0, "")
    assert "6 segments; 75% of" in out


def test_a_terminal_without_unicode(pair: list[str]) -> None:
    status, out, err = process(*pair, "--text", "größer", environment={"PYTHONIOENCODING": "ascii"})
    assert (status, err) == (0, "")
    assert "6 segments; 75% of" in out


def test_a_slow_tokenizer_in_silence(saved: Callable[[str], str]) -> None:
    status, out, err = process("--student", saved("byt5"), "--teacher", saved("canine"), "--text", "größer", "--json")
    assert (status, err) == (0, "")
    assert json.loads(out)["alignment_rate"] == 6 / 8


SIDES = ("student", "teacher")


def test_what_is_documented_is_what_is_shown(run: Run, saved: Callable[[str], str]) -> None:
    """The picture in the documentation, over again with the teacher it names and its student's cuts."""
    text = (Path(__file__).parents[3] / "docs" / "alignment.md").read_text(encoding="utf-8")
    (arguments,) = re.findall(r"^uld-ds (align .*--text .*)$", text, flags=re.M)
    typed = shlex.split(arguments)
    typer.main.get_command(cli.app).commands["align"].make_context("align", typed[1:])  # type: ignore[attr-defined]
    rows = [re.search(rf"^{side} (┃.*)$", text, flags=re.M) for side in SIDES]
    status, out, _ = run("--student", saved("smollm2"), "--teacher", saved("smollm2"), "--text", typed[-1])
    assert status == 0
    assert rows[1] is not None
    assert re.sub("[┃ ]+", "|", rows[1][1]) == re.sub("[┃ ]+", "|", out.splitlines()[-1].removeprefix("teacher "))
    assert rows[0] is not None
    # The student's is made by a training run; bars are where the teacher's are, and the figures are the picture's.
    num_tokens = len(re.findall("[┃┆]", rows[0][1])) - 1
    num_segments = rows[0][1].count("┃") - 1
    assert rows[1][1].count("┃") - 1 == num_segments
    assert f"{num_segments} segments" in text
    assert f"{num_segments / num_tokens:.0%}" in text
    lengths = [len(re.findall("[┃┆]", row[1])) - 1 for row in rows if row is not None]
    per_segment = [f"{side} {length / num_segments:.2f}" for side, length in zip(SIDES, lengths, strict=True)]
    assert f"tokens per segment: {', '.join(per_segment)}" in text


# ---- vocabularies


def test_vocabularies_as_json(run: Run, pair: list[str]) -> None:
    status, out, err = run(*pair, "--vocabulary", "--json")
    assert (status, err) == (0, "")
    record = json.loads(out)
    # 256 bytes; 128 characters of ASCII and an unknown token, which spells nothing.
    assert record["student"] == {"name": pair[1], "tokens": 256, "without_bytes": 0, "identical": 0.5}
    shares = {"identical": 128 / 129, "projected": 128 / 129}
    assert record["teacher"] == {"name": pair[3], "tokens": 129, "without_bytes": 1} | shares
    assert record["examples"]["only a beginning"] == record["examples"]["nothing"] == []
    assert len(record["examples"]["identical"]) == 8
    status, out, _ = run("--student", pair[3], "--teacher", pair[1], "--vocabulary", "--json")
    record = json.loads(out)
    assert record["teacher"]["projected"] == 0.5
    nothing = record["examples"]["nothing"]
    assert all(bytes.fromhex(item["teacher"][1])[0] > 127 and item["student"] is None for item in nothing)


def test_vocabularies_on_the_terminal(run: Run, saved: Callable[[str], str]) -> None:
    status, out, err = run("--student", saved("plain_bytes"), "--teacher", saved("unigram_bytes"), "--vocabulary")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split() == ["student", "teacher"]
    assert lines[1].split() == ["tokens", "256", "1,200"]
    assert lines[4].split()[-1] == "100.0%"
    assert "only a beginning: ··· → ·  key → k  ence → e" in out


@pytest.mark.parametrize("option", [["--text", "a"], ["--text-file", "f"], ["--html", "f"]])
def test_vocabularies_take_no_text(run: Run, pair: list[str], option: list[str]) -> None:
    status, out, err = run(*pair, "--vocabulary", *option)
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {option[0]}: ")
