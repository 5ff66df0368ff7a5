"""A run's page: what it says, that it needs nothing else, and that runs of any state have one."""

from __future__ import annotations

import base64
import json
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from tests.helpers.run_folders import COMMIT, RESULT, finished_run, metrics
from uld_ds.reporting.alignment_html import alignment_page
from uld_ds.reporting.alignment_view import AlignmentView
from uld_ds.reporting.run_data import RunReport
from uld_ds.reporting.run_html import report_page
from uld_ds.reporting.verdict import verdict
from uld_ds.runs.progress import ProgressWriter


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run with everything in its folder."""
    return finished_run(tmp_path)


class Page(HTMLParser):
    """Elements closed in order, what is loaded, and the text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.words = ""
        self.feed(source)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.loads += [value or "" for name, value in attributes if name in ("src", "href")]
        assert tag != "script"
        if tag not in ("meta", "path", "circle"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert tag in ("path", "circle"), "an HTML element is closed by its own tag"

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "title"} & {*self.open}:
            self.words += f" {data}"

    @property
    def text(self) -> str:
        return " ".join(self.words.split())


def test_terms_are_drawn_where_they_were_measured(run: Path) -> None:
    title = "Divergence from the teacher, projected"
    assert title not in Page(report_page(run)).text
    writer = ProgressWriter(run / "progress.jsonl")
    writer.step(3, 3, metrics(2.7) | {"train/projection": 1.25})
    text = Page(report_page(run)).text
    assert title in text and "Hybrid divergence" not in text


def test_everything_is_there_and_nothing_is_loaded(run: Path) -> None:
    source = report_page(run)
    page = Page(source)
    for said in (
        "org/large taught org/<small>",
        "After 3 steps the student needs 3.0000 bits per byte of held-out answers instead of 4.0000 (-25.0%): "
        "50% of the way to its teacher (2.0000).",
        "75% of the student's tokens begin a segment",
        "Data c/rows.jsonl, more.jsonl Loss 1 × cross-entropy + 0.3 × ULD Workers 1",
        "Cross-entropy",
        "ULD distance",
        "Bits per byte of answers",
        "…the long ↵ <i> er",
        "student, after 40.00% <b> 40% ·x↵ 0.07%",
        "student, after: off by 12.5%",
        "student, after nothing teacher: reasoning So <it> is. teacher That & more. given answer That.",
        "teacher 40.0% teacher's forward",
        "same tokenizer no uld weight 0.3 data digest",
        f"code revision {COMMIT}-dirty",
        "registered as small version 3",
        f"git checkout {COMMIT} # and changes that were not committed uld-ds train recipe.yaml --set "
        "run.name=first-again",
    ):
        assert said in page.text, said
    (link,) = page.loads
    assert link.startswith("data:text/yaml;base64,")
    assert base64.b64decode(link.partition(",")[2]).decode() == (run / "recipe.yaml").read_text()
    assert not re.search(r"url\(|@import|https?:", source)


def test_the_picture_of_the_alignment_is_that_of_align(run: Path) -> None:
    (record,) = json.loads((run / "report" / "alignment.json").read_text())
    view = AlignmentView.from_json(record)
    assert view.to_json() == record
    pieces = re.findall(r'<div class="segment.*', alignment_page(view))
    assert len(pieces) == 2
    page = report_page(run)
    assert all(piece in page for piece in pieces)


def test_lines_are_told_apart_without_color(run: Path) -> None:
    (chart,) = re.findall(r'aria-label="(student, after.*?)</figure>', report_page(run), flags=re.S)
    assert set(re.findall(r'class="line s\d"(?: stroke-dasharray="([\d ]+)")?', chart)) == {"", "7 4", "2 3"}


@pytest.mark.parametrize(
    ("before", "after", "teacher", "said"),
    [
        (4.0, 3.0, None, "instead of 4.0000 (-25.0%)."),
        (4.0, 1.5, 2.0, "(-62.5%), fewer than its teacher (2.0000)."),
        (4.0, 4.4, 2.0, "The student got worse: 4.4000 bits per byte of held-out answers after 3 steps, 4.0000"),
        (4.0, 4.001, 2.0, "The student learned nothing that held-out answers show: 4.0010"),
    ],
)
def test_verdicts(run: Path, before: float, after: float, teacher: float | None, said: str) -> None:
    lines = (run / "progress.jsonl").read_text().splitlines(keepends=True)
    (run / "progress.jsonl").write_text("".join(line for line in lines if '"evaluation"' not in line))
    bits = {"before": before, "after": after, "teacher": teacher}
    assert said in verdict(RunReport.read(run, result=RESULT | {"bits_per_byte": bits}))


def test_without_held_out_data_it_says_so(run: Path) -> None:
    lines = (run / "progress.jsonl").read_text().splitlines(keepends=True)
    (run / "progress.jsonl").write_text("".join(line for line in lines if '"evaluation"' not in line))
    nothing = {"before": None, "after": None, "teacher": None}
    said = verdict(RunReport.read(run, result=RESULT | {"bits_per_byte": nothing}))
    assert said.startswith("The training loss went from 2.9000 to 2.7000 in 3 steps; without held-out examples")


def test_a_run_that_failed_half_way(run: Path) -> None:
    for file in [run / "result.json", *(run / "report").iterdir()]:
        file.unlink()
    ProgressWriter(run / "progress.jsonl").end("FAILED", "no <space>")
    page = Page(report_page(run))
    assert "This run is not finished: failed: no <space>." in page.text
    assert "After 3 of 3 steps the student needs 3.0000" in page.text
    assert "Answers" not in page.text


def test_a_run_that_has_not_begun(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "{run: {name: x}, teacher: {model: a}, student: {from_config: {model_type: t5}}}"
    )
    page = Page(report_page(tmp_path))
    assert "a taught a new t5" in page.text
    assert "Nothing can be said yet: no step is done." in page.text


def test_secrets_stay_where_they_are(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "planted-secret")
    text = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(text + "tracking: {uri: 'https://me:planted-secret@host'}\n")
    source = report_page(run)
    assert "planted-secret" not in unescape(source)
    (coded,) = re.findall(r"base64,([^\"]+)", source)
    assert "planted-secret" not in base64.b64decode(coded).decode()


def test_a_secret_in_the_recipe_is_hidden_and_breaks_nothing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Hidden, it reads ***, which is no YAML.
    monkeypatch.setenv("SOME_API_KEY", "never-to-be-seen")
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["student"]["system_prompt"] = "never-to-be-seen"
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    page = report_page(run)
    assert "never-to-be-seen" not in page
    assert yaml.safe_load(RunReport.read(run).recipe_yaml)["student"]["system_prompt"] == "***"
