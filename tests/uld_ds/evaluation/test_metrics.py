"""Scores against values computed by hand."""

from __future__ import annotations

import random
import re
import string
import time
import unicodedata

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from uld_ds.errors import UserError
from uld_ds.evaluation.metrics import ROUGE, Scores, as_references, score, score_names
from uld_ds.evaluation.predictions import Prediction, is_unanswerable
from uld_ds.evaluation.words import normal_form
from uld_ds.tasks import get_task
from uld_ds.tasks.task import Words

TEXTS = st.lists(st.sampled_from([*string.printable, " a ", " the ", "An ", "cat", "it's "])).map("".join)
WORDS: tuple[Words, ...] = ("published", "unicode")
ALL = ("f1", "precision", "recall", "em", "rouge")


def percent(
    text: str, *references: str, metrics: tuple[str, ...] = ALL, words: Words | None = None
) -> dict[str, float]:
    """Scores of one row; where ``words`` does not say how it is read, they are the same both ways."""
    found = [score([Prediction(text, references)], metrics, words=one) for one in WORDS if words in (one, None)]
    assert len({str(scores.percentages()) for scores in found}) == 1
    return found[0].percentages()


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


@pytest.mark.parametrize("references", [(), ("",), (" \n", "\u200b")])
def test_rows_without_an_answer(references: tuple[str, ...]) -> None:
    for words in WORDS[1:] if "\u200b" in references else WORDS:
        for right in ("", " \n", "no response", "No response from the text!"):
            assert set(percent(right, *references, words=words).values()) == {100.0}
        for wrong in ("Port Lune", "response"):
            assert set(percent(wrong, *references, words=words).values()) == {0.0}
        assert is_unanswerable(Prediction("", references), words)


def test_articles_and_punctuation_alone_are_no_answer_as_published_and_one_as_unicode() -> None:
    assert set(percent("The.", "the", " . ", words="published").values()) == {100.0}
    assert set(percent("x", "the", " . ", words="published").values()) == {0.0}
    assert is_unanswerable(Prediction("", ("A", ".")), "published")
    for answer, other in (("A", "B"), ("The", "A"), ("+", "-"), ("...", "!"), ("👍", "👎")):
        assert not is_unanswerable(Prediction("", (answer,)))
        metrics = ("f1", "em", "accuracy", "rouge1", "rougeL")
        assert set(percent(answer, answer, metrics=metrics, words="unicode").values()) == {100.0}
        for wrong in (other, "", "no response"):
            assert set(percent(wrong, answer, metrics=metrics, words="unicode").values()) == {0.0}, (wrong, answer)
    assert percent("a", "A", metrics=("em",), words="unicode") == {"em": 100.0}
    # Articles go, where something else is left.
    assert percent("the answer", "An answer!", metrics=("em",)) == {"em": 100.0}


WHOLE = {
    "Cyrillic": "Москва — столица России.",
    "Greek": "Η Αθήνα είναι πρωτεύουσα",
    "Arabic": "القاهرة هي عاصمة مصر، أليس كذلك؟",
    "Hebrew": "ירושלים היא עיר גדולה",
    "Hindi": "दिल्ली भारत की राजधानी है।",
    "Chinese": "北京是中国的首都。",
    "Japanese": "東京は日本の首都です。",
    "Katakana": "コンピュータ・サイエンス",
    "Korean": "서울은 한국의 수도입니다",
    "Thai": "กรุงเทพเป็นเมืองหลวง",
    "Khmer": "ភ្នំពេញជារដ្ឋធានី",
    "Burmese": "နေပြည်တော်သည်မြို့တော်ဖြစ်သည်",
    "Amharic": "አዲስ፡አበባ፡ዋና፡ከተማ",
    "French": "« L’été dernier »",
}


@pytest.mark.parametrize("script", WHOLE)
def test_the_same_text_is_right_in_every_script(script: str) -> None:
    text = WHOLE[script]
    assert set(percent(text, text, metrics=(*ALL, "accuracy"), words="unicode").values()) == {100.0}
    # Neither its end nor the form of its characters makes it another one.
    variant = unicodedata.normalize("NFD", text).rstrip(".。।").upper()
    assert percent(variant, text, metrics=("f1", "em", "rougeL"), words="unicode") == {
        "f1": 100.0, "em": 100.0, "rougeL": 100.0
    }  # fmt: skip


def test_a_part_of_the_words_by_hand() -> None:
    # Six characters of eight: precision 1, recall 3/4. Bigrams 3 of 5 and of 7.
    shares = {"f1": 85.71, "precision": 100.0, "recall": 75.0, "rouge1": 85.71, "rouge2": 50.0, "rougeL": 85.71}
    assert percent("北京中国首都", "北京是中国的首都。", metrics=tuple(shares), words="unicode") == shares
    # Two words of three, in order; bigrams 1 of 1 and of 2.
    shares = {"f1": 80.0, "precision": 100.0, "recall": 66.67, "rouge1": 80.0, "rouge2": 66.67, "rougeL": 80.0}
    for said, right in (("москва столица", "Москва — столица России"), ("القاهرة عاصمة", "القاهرة عاصمة مصر")):
        assert percent(said, right, metrics=tuple(shares), words="unicode") == shares
    # Digits and Latin words between characters are words: 4 of 5.
    assert percent("2024年GPU", "２０２４年，新GPU", metrics=("recall", "rouge1"), words="unicode") == {
        "recall": 75.0, "rouge1": 85.71
    }  # fmt: skip
    # The decision is what stands before the first space or punctuation.
    assert percent("是。茶会延迟睡眠", "是，别的", metrics=("accuracy",), words="unicode") == {"accuracy": 100.0}


def test_published_scores_read_a_to_z() -> None:
    """What the paper's scores say of other texts; they stay, because they are to be compared with the paper's."""
    shares = {"f1": 100.0, "em": 100.0, "rouge1": 0.0, "rouge2": 0.0, "rougeL": 0.0, "rougeLsum": 0.0}
    assert percent("москва", "Москва", metrics=("f1", "em", "rouge"), words="published") == shares
    assert percent("北京中国首都", "北京是中国的首都。", metrics=("f1",), words="published") == {"f1": 0.0}
    # "caf" of "café noir" is ROUGE's; typographic quotes are a part of SQuAD's words.
    assert percent("cafe noir", "café noir", metrics=("f1", "rouge1"), words="published") == {
        "f1": 50.0,
        "rouge1": 50.0,
    }
    assert percent("“Port Lune”", "Port Lune", metrics=("f1", "rouge1"), words="published") == {
        "f1": 0.0,
        "rouge1": 100.0,
    }
    for task in ("squad", "qed", "fairytaleqa", "pubmedqa", "dialogsum"):
        assert get_task(task).words == "published", task
    for task in ("prompt_answer", "messages"):
        assert get_task(task).words == "unicode", task


@given(TEXTS, st.lists(TEXTS, min_size=1, max_size=3))
def test_unicode_and_published_scores_are_the_same_for_ascii(said: str, references: list[str]) -> None:
    """But for texts of which the published reading leaves nothing."""
    assume(all(re.search("[a-z0-9]", normal_form(text, "published")) for text in (said, *references)))
    rows = [Prediction(said, tuple(references))]
    first, second = (score(rows, (*ALL, "accuracy"), words=words).rows for words in WORDS)
    assert first.tolist() == second.tolist()


def test_chrf_by_hand() -> None:
    # "ab" in "abc": of one character, precision 1 and recall 2/3; of two, 1 and 1/2; longer ones "ab" does not have.
    # Means 1 and 7/12, recall weighs four times as much: 5 * 7/12 / (4 + 7/12).
    assert percent("ab", "abc", metrics=("chrf",)) == {"chrf": 63.64}
    assert percent("ab", "xyz", "abc", metrics=("chrf",)) == {"chrf": 63.64}
    assert percent("a b", "abc", metrics=("chrf",)) == {"chrf": 63.64}
    assert percent("AB", "abc", metrics=("chrf",)) == {"chrf": 0.0}
    assert percent("北京", "北京市", metrics=("chrf",)) == {"chrf": 63.64}
    assert percent("", "abc", metrics=("chrf",)) == {"chrf": 0.0}
    assert percent("no response", metrics=("chrf",)) == {"chrf": 100.0}
    for text in WHOLE.values():
        assert percent(text, text, metrics=("chrf",)) == {"chrf": 100.0}


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
