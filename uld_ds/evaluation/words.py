"""How answers are read before they are compared: as in the scores published with ULD, or as words of any script."""

from __future__ import annotations

import re
import string
import unicodedata
from typing import Any

import regex

from uld_ds.tasks.task import Words

_ARTICLES = ("a", "an", "the")
_PUBLISHED_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
# Scripts that put no spaces between words: their characters are compared. A mark belongs to the character before it.
# (Not Script_Extensions: Tai Le has the accents of Latin and Cyrillic letters in its own.)
_UNSPACED = (
    r"\p{sc=Hani}\p{sc=Hira}\p{sc=Kana}\u30FC\u3031-\u3035\p{sc=Bopo}\p{sc=Yiii}"
    r"\p{sc=Thai}\p{sc=Laoo}\p{sc=Khmr}\p{sc=Mymr}\p{sc=Java}\p{sc=Bali}"
    r"\p{sc=Tale}\p{sc=Talu}\p{sc=Lana}\p{sc=Tavt}\p{sc=Ahom}"
)
_CHARACTER = rf"[{_UNSPACED}]\p{{M}}*"
_PIECE = regex.compile(rf"{_CHARACTER}|(?:(?![{_UNSPACED}])\S)+")
_WORD = regex.compile(rf"(?=[\p{{L}}\p{{N}}]){_CHARACTER}|(?:(?![{_UNSPACED}])[\p{{L}}\p{{N}}\p{{M}}])+")
_INVISIBLE = regex.compile(r"[\p{Cf}\uFE00-\uFE0F]+")  # joiners, direction marks, soft hyphens, variation selectors
# What stands within words (apostrophes, hyphens, the middle dot) goes as ASCII's punctuation does; other punctuation
# separates them, as the Ethiopic word space or the danda do; so do the wide forms that Chinese ends a clause with.
_WIDE = regex.compile("[，；！？]")
_WITHIN = regex.compile(r"[\p{WB=MidLetter}\p{WB=MidNumLet}\p{WB=Single_Quote}\p{WB=Double_Quote}\u2010\u2011]+")
_BETWEEN = regex.compile(r"\p{P}+")


def normal_form(text: str, words: Words) -> str:
    """Normalize a text, so that two that say the same are equal but for spaces.

    Args:
        text: An answer or a reference.
        words: ``published``: as the SQuAD script does: lower case, without ASCII punctuation, then without the English
            articles. ``unicode``: the same for ASCII; characters that look alike are one (NFKC, case folded), all
            punctuation goes, and what would leave nothing ("A", "The", "+") stays. Only a blank text becomes empty.
    """
    if words == "published":
        return " ".join(_PUBLISHED_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())
    folded = _folded(_WIDE.sub(" ", text)).strip() or _folded(text)
    bare = _BETWEEN.sub(" ", _WITHIN.sub("", folded.translate(_NO_PUNCTUATION))).split()
    return " ".join([word for word in bare if word not in _ARTICLES] or bare or folded.split())


def words_of(form: str, words: Words) -> tuple[str, ...]:
    """Split a normal form at its spaces; with ``unicode``, scripts without spaces into characters, too."""
    return tuple(form.split() if words == "published" else _PIECE.findall(form))


def rouge_text(text: str, words: Words) -> str:
    """Write a text as ``rouge_tokenizer`` is to read it; its lines stay, which ROUGE-Lsum takes for sentences.

    As ``unicode``: runs of letters, digits and their marks, with spaces between; symbols where there is nothing else.
    ``rouge-score`` 0.1.2 by itself reads a-z and 0-9 alone.
    """
    if words == "published":
        return text
    folded = _folded(text)
    lines = [" ".join(_WORD.findall(line)) for line in folded.split("\n")]
    return "\n".join(lines if any(lines) else folded.split())


def rouge_tokenizer(words: Words) -> Any:
    """Make ROUGE's tokenizer; that of the published scores is ``rouge-score``'s own, without stemming."""
    if words == "unicode":
        return _Spaced()
    from rouge_score.tokenizers import DefaultTokenizer

    return DefaultTokenizer(use_stemmer=False)


class _Spaced:
    """The tokenizer of what ``rouge_text`` has written."""

    def tokenize(self, text: str) -> list[str]:
        """Split a text at its spaces."""
        return text.split()


def _folded(text: str) -> str:
    """Fold a text's compatible forms and its case, as Unicode's NFKC_Casefold does, and drop what is invisible."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return _INVISIBLE.sub("", folded)
