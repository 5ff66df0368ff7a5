"""Every task on a dozen hand-made rows: what each side reads, what is learned, what counts as right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.toy_tokenizers import CHAT_TEMPLATE, toy
from uld_ds.data.examples import Example, ExampleReader
from uld_ds.data.prepare import Preparer
from uld_ds.data.rendering import Renderer
from uld_ds.data.sides import TextSide
from uld_ds.data.sources import load_rows
from uld_ds.errors import UserError
from uld_ds.evaluation.metrics import METRICS
from uld_ds.recipe import DataSettings, FilesSource, ModelSettings, Recipe, parse_recipe
from uld_ds.tasks import Question, get_task, task_names
from uld_ds.tokenization.loading import load_tokenizer

FIXTURES = Path(__file__).parents[2] / "fixtures" / "tasks"
FEW_SHOT = {"squad": 5, "qed": 5, "fairytaleqa": 3, "pubmedqa": 3, "dialogsum": 3}


def rows_of(task: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FIXTURES / f"{task}.jsonl").read_text().splitlines()]


def first(task: str) -> Question:
    return get_task(task).question(rows_of(task)[0])


def data(task: str, **options: Any) -> DataSettings:
    return DataSettings(train=FilesSource(source="files", path=str(FIXTURES / f"{task}.jsonl")), task=task, **options)


def test_there_are_seven_tasks() -> None:
    assert task_names() == [
        "dialogsum", "fairytaleqa", "messages", "prompt_answer", "pubmedqa", "qed", "squad"
    ]  # fmt: skip


@pytest.mark.parametrize("name", task_names())
def test_a_dozen_rows_make_examples(name: str) -> None:
    task, reader = get_task(name), ExampleReader(data(name))
    rows = load_rows(data(name).train, "data.train")
    reader.check(rows, "data.train")
    examples = [reader(row) for row in rows]
    assert len(examples) == 12
    assert len({example.digest() for example in examples}) == 12
    assert task.max_new_tokens > 0 and task.metrics and set(task.metrics) <= METRICS.keys()
    for example in examples:
        assert example.answer.strip()
        assert example.messages[-1]["role"] == "assistant"
        if name in FEW_SHOT:
            assert [message["role"] for message in example.prompt] == ["user"]
            assert example.teacher is not None
            roles = [message["role"] for message in example.teacher]
            assert roles == ["system", *["user", "assistant"] * FEW_SHOT[name], "user"]
            assert example.teacher[-1] == example.messages[0]


# Of each task's first row, as version 0.1.0 asked its teachers.
DIGESTS = {
    "dialogsum": "2e603a41025f5b16",
    "fairytaleqa": "edb9e5e4a0f08a81",
    "messages": "c61e628f21f82664",
    "prompt_answer": "920959e97a22aaa3",
    "pubmedqa": "3281bb2e97ff507f",
    "qed": "7e031c41fc166c66",
    "squad": "61b523b4bbb7f4a1",
}


@pytest.mark.parametrize("name", task_names())
def test_what_a_teacher_is_asked_stays_letter_for_letter(name: str) -> None:
    """Stores and prepared data are known by digests of it: a corrected spelling would make them useless."""
    example = ExampleReader(data(name))(load_rows(data(name).train, "data.train")[0])
    assert example.digest()[:16] == DIGESTS[name]


def test_what_each_task_asks() -> None:
    assert first("squad").messages[0]["content"].endswith("slate.\nQuestion: Where does the river Harl reach the sea?")
    assert first("squad").references == ("Port Lune", "at Port Lune")
    assert first("qed").answer == "Port Lune"
    assert first("fairytaleqa").references == ("never to row it in the rain", "not to take it out in rain")
    assert first("pubmedqa").answer == "Yes. Tea an hour before bed delayed sleep by about twenty minutes."
    assert first("pubmedqa").messages[0]["content"].startswith("Abstract: Forty adults drank tea or warm water")
    assert first("dialogsum").messages[0]["content"].endswith("I need more sleep.\nSummary:")
    assert [message["content"] for message in first("messages").messages][-1] == "And two more. How many?"
    assert first("messages").answer == "2"


def test_a_question_without_an_answer_in_the_text() -> None:
    question = get_task("squad").question(rows_of("squad")[8])
    assert question.answer == "no response"
    assert question.references == ()


def test_answers_in_either_form_of_the_hub() -> None:
    row = rows_of("squad")[0]
    listed = {**row, "answers": [{"text": "Port Lune"}, {"text": "at Port Lune"}]}
    assert get_task("squad").question(listed) == first("squad")
    with pytest.raises(ValueError, match=r"^column 'answers' does not hold a list of 'text'$"):
        get_task("squad").question({**row, "answers": "Port Lune"})


def test_fewer_shots() -> None:
    question = get_task("squad").question(rows_of("squad")[0], shots=2)
    assert question.teacher is not None
    assert len(question.teacher) == 1 + 2 * 2 + 1


def test_a_teachers_own_answer_replaces_the_datasets_but_not_the_references() -> None:
    for name in task_names():
        question = get_task(name).question({**rows_of(name)[0], "teacher_answer": "said"})
        assert question.answer == "said"
        assert question.references == first(name).references
    reader = ExampleReader(data("messages"))
    assert reader({**rows_of("messages")[0], "teacher_answer": "said"}).answers == (4,)
    assert reader(rows_of("messages")[0]).answers == (2, 4)


def test_references_of_a_generic_row() -> None:
    row = {"prompt": "p", "answer": "a", "references": ["b", "", "b", "c"]}
    assert get_task("prompt_answer").question(row).references == ("b", "c")
    assert get_task("prompt_answer").question({"prompt": "p"}).answer is None


@pytest.mark.parametrize(
    ("task", "column", "problem"),
    [
        ("squad", "context", "data.task: 'squad' needs column 'context', data.train has "),
        ("qed", "question", "data.task: 'qed' needs column 'question' or 'question_text', data.train has "),
    ],
)
def test_a_missing_column_is_named(task: str, column: str, problem: str) -> None:
    rows = load_rows(data(task).train, "data.train").remove_columns(column)
    with pytest.raises(UserError) as caught:
        ExampleReader(data(task)).check(rows, "data.train")
    assert str(caught.value).startswith(problem)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"task": "sqad"}, "data: no task 'sqad': did you mean 'squad'?"),
        ({"task": "squad", "columns": {"prompt": "q"}}, "data: data.columns has no effect with data.task 'squad'"),
        ({"task": "messages", "shots": 1}, "data: data.shots needs a data.task that has examples to show"),
        ({"shots": 1}, "data: data.shots needs a data.task that has examples to show"),
    ],
)
def test_recipes_that_contradict_themselves(changes: dict[str, Any], problem: str, tiny_recipe: dict[str, Any]) -> None:
    with pytest.raises(UserError) as caught:
        parse_recipe(tiny_recipe | {"data": tiny_recipe["data"] | changes})
    assert str(caught.value).startswith(problem)


def rendered(example: Example, template: str, system: str | None = None) -> str:
    settings = ModelSettings(model="x", prompt_template=template, system_prompt=system)
    return Renderer(toy(chat_template=CHAT_TEMPLATE), settings, "teacher")(example).text


def test_the_teacher_reads_its_examples_and_the_student_does_not() -> None:
    example = ExampleReader(data("squad", shots=1))(rows_of("squad")[0])
    asked = example.messages[0]["content"]
    assert rendered(example, "chat") == f"<user>{asked}</s>\n<assistant>Port Lune</s>"
    teacher = rendered(example.for_teacher(), "chat")
    assert teacher.startswith("<system>You take part in a reading comprehension exercise.")
    assert teacher.endswith(f"<assistant>ninety minutes</s>\n<user>{asked}</s>\n<assistant>Port Lune</s>")
    plain = rendered(example.for_teacher(), "{prompt}\nAnswer: ")
    assert plain.endswith(f"How long does the ferry take?\nAnswer: ninety minutes\n\n{asked}\nAnswer: Port Lune")
    # A system prompt of the recipe's own takes the place of the task's.
    own = rendered(example.for_teacher(own_system=False), "chat", system="Own.")
    assert own.startswith("<system>Own.</s>\n<user>Context: The ferry")


def test_what_the_teacher_reads_is_in_the_digest() -> None:
    plain = Example.of("q", "a")
    taught = Example(plain.messages, plain.answers, teacher=({"role": "user", "content": "other"},))
    assert plain.digest() == "66bf42856ade18a9b79011689d8a4b38456349451f1123a1c0dc04ecd9e96c46"
    assert taught.digest() != plain.digest()


def squad_recipe(tiny_recipe: dict[str, Any], **options: Any) -> Recipe:
    of_data = {**data("squad", **options).model_dump(mode="json"), "eval": None}
    sides = {side: tiny_recipe[side] | {"prompt_template": "{prompt}\nAnswer: "} for side in ("student", "teacher")}
    sides["teacher"]["max_length"] = 2048
    return parse_recipe(tiny_recipe | sides | {"data": of_data})


def test_prepared_rows_hold_a_longer_prompt_for_the_teacher(tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    tokenizer = toy(chat_template=None)
    prepared = {}
    for shots in (0, 2):
        recipe = squad_recipe(tiny_recipe, shots=shots)
        split = Preparer(recipe, tokenizer, tokenizer).prepare(recipe.data.train, "data.train", tmp_path)
        prepared[shots] = split.rows
    for row, more in zip(prepared[0], prepared[2], strict=True):
        assert more["student_ids"] == row["student_ids"]
        assert more["teacher_length"] > row["teacher_length"] > row["student_length"]
        # The same answer after another prompt: the same segments.
        assert more["teacher_segments"] == row["teacher_segments"] == row["student_segments"]
        assert more["digest"] != row["digest"]
        last = row["teacher_answers"][0], more["teacher_answers"][0]
        assert row["teacher_ids"][last[0] :] == more["teacher_ids"][last[1] :]


@pytest.mark.parametrize("template", ["{prompt}\nAnswer:", "{prompt}\nAnswer: "])
def test_what_is_generated_after_is_what_is_trained_after(
    template: str, tiny_student: Path, tiny_teacher: Path
) -> None:
    for folder in (tiny_student, tiny_teacher):
        settings = ModelSettings(model="x", prompt_template=template)
        side = TextSide(load_tokenizer(str(folder), None, "x"), settings, "student")
        for row in rows_of("squad")[:4]:
            example = ExampleReader(data("squad"))({**row, "teacher_answer": "the third"})
            (encoded,) = side.encode([side.render(example)])
            assert side.prompt_ids(example) == encoded.ids[: encoded.turns[0].parts[0].first].tolist()


def test_a_space_that_ends_the_template_belongs_to_the_answer(tiny_teacher: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_teacher), None, "x")
    example = ExampleReader(data("squad"))(rows_of("squad")[0])
    ids = {
        template: TextSide(tokenizer, ModelSettings(model="x", prompt_template=template), "student").prompt_ids(example)
        for template in ("{prompt}\nAnswer:", "{prompt}\nAnswer: ")
    }
    assert len(set(map(tuple, ids.values()))) == 1
