"""Normal forms and words of answers, by hand."""

from __future__ import annotations

import pytest

from uld_ds.evaluation.words import normal_form, rouge_text, rouge_tokenizer, words_of


@pytest.mark.parametrize(
    ("text", "published", "unicode"),
    [
        ("The  Cat, a dog & an Owl!", "cat dog owl", "cat dog owl"),
        ("theatre", "theatre", "theatre"),
        ("it's", "its", "its"),
        ("a-b", "ab", "ab"),
        ("« L’été »", "« l’été »", "lété"),  # only ASCII punctuation goes from published scores
        ("yes—no", "yes—no", "yes no"),
        ("The", "", "the"),
        ("The. A", "", "the a"),
        ("?!", "", "?!"),
        (" \n", "", ""),
        ("\u200b", "\u200b", ""),
        ("ＡＢＣ ﬁn", "ａｂｃ ﬁn", "abc fin"),
        ("STRASSE Straße", "strasse straße", "strasse strasse"),
        ("ΣΟΦΟΣ σοφός", "σοφος σοφός", "σοφοσ σοφόσ"),
        ("می\u200cخواهم", "می\u200cخواهم", "میخواهم"),
        ("ሰላም፡ለዓለም", "ሰላም፡ለዓለም", "ሰላም ለዓለም"),
        ("a\u0331b the a\u0331", "\u0331b \u0331", "a\u0331b a\u0331"),
        ("你好，世界。", "你好，世界。", "你好 世界"),
    ],
)
def test_normal_form(text: str, published: str, unicode: str) -> None:
    assert normal_form(text, "published") == published
    assert normal_form(text, "unicode") == unicode


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ("cat's 3.5% dog", ["cat's", "3.5%", "dog"]),
        ("北京 gpu2024年", ["北", "京", "gpu2024", "年"]),
        ("コンピュータです", list("コンピュータです")),
        ("서울은 한국의", ["서울은", "한국의"]),
        ("за\u0301мок x\u0300y", ["за\u0301мок", "x\u0300y"]),  # accents that no composed letter has
        ("ที่นี่ ok", ["ที่", "นี่", "ok"]),  # marks stay with their consonant
        ("မြန်မာ", ["မြ", "န်", "မာ"]),
    ],
)
def test_words_of_any_script(form: str, words: list[str]) -> None:
    assert list(words_of(form, "unicode")) == words
    assert list(words_of(form, "published")) == form.split()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It's 3.5% of_it", ["it", "s", "3", "5", "of", "it"]),
        ("« L’été »", ["l", "été"]),
        ("Привет, мир!", ["привет", "мир"]),
        ("北京，GPU。", ["北", "京", "gpu"]),
        ("ที่นี่", ["ที่", "นี่"]),
        ("x² + 👍", ["x2"]),
        ("+ 👍", ["+", "👍"]),
        ("", []),
    ],
)
def test_words_of_rouge(text: str, words: list[str]) -> None:
    assert rouge_tokenizer("unicode").tokenize(rouge_text(text, "unicode")) == words


def test_lines_of_rouge_stay() -> None:
    assert rouge_text("Das Öl.\n!\nA b", "unicode") == "das öl\n\na b"
    assert rouge_text("Das Öl.\n!", "published") == "Das Öl.\n!"
