"""Scores against values computed by hand."""

from __future__ import annotations

import random
import time

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer

from uld_ds.errors import UserError
from uld_ds.evaluation.metrics import ROUGE, Scores, as_references, score, score_names
from uld_ds.evaluation.predictions import Prediction, is_unanswerable, normalized

ALL = ("f1", "precision", "recall", "em", "rouge")


def percent(text: str, *references: str, metrics: tuple[str, ...] = ALL) -> dict[str, float]:
    return score([Prediction(text, references)], metrics).percentages()


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Cat, a dog & an Owl!", "cat dog owl"),
        ("theatre", "theatre"),
        ("it's", "its"),
        ("a-b", "ab"),
        ("« L’été »", "« l’été »"),  # only ASCII punctuation goes
        ("The", ""),
        (" \n", ""),
    ],
)
def test_normal_form(text: str, normal: str) -> None:
    assert normalized(text) == normal


def test_words_in_common() -> None:
    # Said: in, port, lune (3); reference: port, lune (2); common 2.
    assert percent("in the Port Lune", "Port Lune.", metrics=("f1", "precision", "recall", "em")) == {
        "f1": 80.0, "precision": 66.67, "recall": 100.0, "em": 0.0
    }  # fmt: skip
    # A word counts as often as both sides have it: common 1 of 2 and of 3.
    assert percent("no no", "no way out", metrics=("f1", "precision", "recall")) == {
        "f1": 40.0, "precision": 50.0, "recall": 33.33
    }  # fmt: skip
    assert percent("the Port Lune!", "port  lune", metrics=("f1", "em")) == {"f1": 100.0, "em": 100.0}


def test_of_several_references_the_best_counts_for_each_metric_by_itself() -> None:
    # Against "a b c d": precision 1, recall 2/4, F1 2/3. Against "b": precision 1/2, recall 1, F1 2/3.
    # Against "b x": precision 1/2, recall 1/2. (x, y, ... are words; "a" alone would be an article.)
    found = percent("k b", "k b c d", "b", "b x", metrics=("f1", "precision", "recall"))
    assert found == {"f1": 66.67, "precision": 100.0, "recall": 100.0}


def test_rouge_by_hand() -> None:
    # "the cat sat" / "the cat on the mat": unigrams 2 of 3 and of 5; bigrams 1 of 2 and of 4; LCS 2.
    found = percent("the cat sat", "the cat on the mat", metrics=("rouge",))
    assert found == {"rouge1": 50.0, "rouge2": 33.33, "rougeL": 50.0, "rougeLsum": 50.0}
    # Sentences on lines of their own, in another order: their union is found, a common subsequence is not.
    found = percent("b b\nx y", "x y\nb b", metrics=("rougeL", "rougeLsum"))
    assert found == {"rougeL": 50.0, "rougeLsum": 100.0}
    # No stemming; of several references the best.
    assert percent("cats", "cat", metrics=("rouge1",)) == {"rouge1": 0.0}
    assert percent("cats", "cat", "cats run", metrics=("rouge1",)) == {"rouge1": 66.67}


@pytest.mark.parametrize("references", [(), ("",), ("the", " . ")])
def test_rows_without_an_answer(references: tuple[str, ...]) -> None:
    for right in ("", " \n", "The.", "no response", "No response from the text!"):
        assert set(percent(right, *references).values()) == {100.0}
    for wrong in ("Port Lune", "response"):
        assert set(percent(wrong, *references).values()) == {0.0}
    assert is_unanswerable(Prediction("", references))


def test_no_answer_where_there_is_one() -> None:
    assert set(percent("", "Port Lune").values()) == {0.0}
    assert percent("no response", "Port Lune", metrics=("em",)) == {"em": 0.0}
    # An empty reference beside a real one does not make silence right.
    assert percent("", "", "Port Lune", metrics=("f1", "em")) == {"f1": 0.0, "em": 0.0}


def test_accuracy_is_of_the_first_word() -> None:
    rows = [
        Prediction("Yes. Tea delays sleep.", ("Yes. Something else.",)),
        Prediction("yes, it does", ("No. It does not.",)),
        Prediction("Maybe", ("Maybe. Half improved.",)),
        Prediction("It seems yes", ("Yes.",)),
    ]
    assert score(rows, ["accuracy"]).percentages() == {"accuracy": 50.0}


def test_means_over_rows() -> None:
    rows = [Prediction("x", ("x",)), Prediction("x", ("y",)), Prediction("x", ("x z",))]
    assert score(rows, ["f1", "em"]).percentages() == {"f1": 55.56, "em": 33.33}


def test_names() -> None:
    assert score_names(["rouge", "f1", "rougeL"]) == (*ROUGE, "f1")
    with pytest.raises(UserError, match=r"^--metrics: 'bleu' is not known; choose among accuracy, f1"):
        score_names(["bleu"])
    with pytest.raises(UserError, match=r"^--metrics: names no metric; "):
        score_names([])


def test_references_of_files() -> None:
    assert as_references("one") == ("one",)
    assert as_references(["one", "two"]) == ("one", "two")
    assert as_references({"text": ["one"], "answer_start": [3]}) == ("one",)
    assert as_references([{"start": 0, "end": 3, "string": "one"}]) == ("one",)
    for wrong in (None, 3, ["one", 2], {"answer": "one"}):
        with pytest.raises(ValueError, match=r"^'answers' is neither a text nor a list of texts$"):
            as_references(wrong)


def test_intervals_of_a_coin() -> None:
    rows = np.repeat([[0.0], [1.0]], 200, axis=0)
    (low, high) = Scores(("em",), rows).intervals()["em"]
    # Standard error of a mean of 400 fair coins: 2.5 %; 95 % within 1.96 of them.
    assert abs(low - 45.1) < 0.6
    assert abs(high - 54.9) < 0.6
    assert Scores(("em",), np.ones((5, 1))).intervals() == {"em": [100.0, 100.0]}


def test_ten_thousand_rows_of_qa_in_seconds() -> None:
    draw = random.Random(0)
    words = [f"w{i}" for i in range(50)]
    rows = [
        Prediction(" ".join(draw.choices(words, k=4)), tuple(" ".join(draw.choices(words, k=3)) for _ in range(3)))
        for _ in range(10_000)
    ]
    begin = time.process_time()
    scores = score(rows)
    assert time.process_time() - begin < 10
    # Against the library itself, on some of them.
    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    column = scores.names.index("rougeL")
    for row, values in list(zip(rows, scores.rows, strict=True))[:50]:
        assert values[column] == max(scorer.score(ref, row.text)["rougeL"].fmeasure for ref in row.references)
