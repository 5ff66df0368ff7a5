"""Tokenizers of which there is a SentencePiece model alone: ``tokenizer.model``, ``spiece.model``.

The file holds the whole pipeline, and the sentencepiece library is what the model was trained with. transformers (5.23)
takes the vocabulary and guesses the rest by class: a folder of ``model_type: llama`` without a tokenizer_config.json
gets no space before the text, a Unigram model under ``LlamaTokenizer`` becomes BPE. So what it makes is compared with
the library on a few texts, and where they differ the pipeline is rebuilt from the file.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from uld_ds.tokenization.notices import say

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

SENTENCEPIECE_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")

_MARK = "▁"
_UNIGRAM, _BPE = 1, 2
# Words, digits and punctuation; spaces where they may be dropped; letters that are rare, and that are normalized.
_PROBES = (
    "The cat's 12 naïve words, unbelievably (re)read.",
    " two  spaces \n and a line",
    "ﬁne ½ größer",
    "日本語の文章",
)


def with_the_pipeline_of(file: Path, made: PreTrainedTokenizerBase, place: str) -> PreTrainedTokenizerBase:
    """Give a tokenizer the pipeline of its SentencePiece model, where it has another one.

    Args:
        file: the SentencePiece model.
        made: tokenizer that transformers made of it.
        place: directory or hub id, for messages.

    Returns:
        The tokenizer as it is, where both cut texts alike, or one of the generic class.
    """
    import sentencepiece

    try:
        processor = sentencepiece.SentencePieceProcessor(model_file=str(file))
    except RuntimeError:  # tiktoken's files have the same name
        return made

    def disagree(tokenizer: PreTrainedTokenizerBase) -> str:
        """Say where both cut a text otherwise; nothing where they do not."""
        for text in _PROBES:
            # Pieces: ids are another order's where a class has one of its own (XLM-R).
            found = tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False)["input_ids"])
            right = [processor.id_to_piece(index) for index in processor.encode(text)]
            if found != right:
                at = next((i for i, pair in enumerate(zip(found, right, strict=False)) if pair[0] != pair[1]), 0)
                return f"{text!r} becomes {found[at : at + 4]} for {right[at : at + 4]}"
        return ""

    problem = disagree(made)
    if not problem:
        return made
    name = type(made).__name__
    if _has_own_ids(made, processor):
        say(f"{place}: {name} cuts text otherwise than {file.name}: {problem}")
        return made
    tokenizer = _rebuilt(file, made)
    say(
        f"{place}: rebuilt from {file.name}; {name}, which AutoTokenizer and so other programs make of it, is another "
        f"tokenizer: {problem}"
    )
    if problem := disagree(tokenizer):
        say(f"{place}: {file.name} cannot be rebuilt exactly: {problem}")
    return tokenizer


def _has_own_ids(tokenizer: PreTrainedTokenizerBase, processor: Any) -> bool:
    """Tell whether a class numbers the pieces otherwise than the file, as its models want it."""
    return any(
        tokenizer.convert_tokens_to_ids(processor.id_to_piece(index)) != index
        for index in range(processor.get_piece_size() // 2, processor.get_piece_size())
    )


def _rebuilt(file: Path, made: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Rebuild the pipeline from the file; special tokens and what is added around a text stay as they are."""
    from transformers import PreTrainedTokenizerFast

    backend, own = made.backend_tokenizer, _pipeline(file)
    backend.normalizer, backend.pre_tokenizer = own.normalizer, own.pre_tokenizer
    backend.model, backend.decoder = own.model, own.decoder
    with TemporaryDirectory() as folder:
        made.save_pretrained(folder)
        tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.name_or_path = made.name_or_path
    return tokenizer


def _pipeline(file: Path) -> Tokenizer:
    """Build the pipeline that a SentencePiece model describes.

    Raises:
        ValueError: its model is neither Unigram nor BPE.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers
    from transformers.convert_slow_tokenizer import generate_merges, import_protobuf

    proto = import_protobuf().ModelProto()
    proto.ParseFromString(file.read_bytes())
    trained, rules = proto.trainer_spec, proto.normalizer_spec
    scores = {piece.piece: piece.score for piece in proto.pieces}
    if trained.model_type == _UNIGRAM:
        entries = [(piece.piece, piece.score) for piece in proto.pieces]
        tokenizer = Tokenizer(models.Unigram(entries, trained.unk_id, trained.byte_fallback))
    elif trained.model_type == _BPE:
        vocab = {piece.piece: index for index, piece in enumerate(proto.pieces)}
        merges = generate_merges(vocab, scores)
        unknown = proto.pieces[trained.unk_id].piece
        tokenizer = Tokenizer(
            models.BPE(vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=trained.byte_fallback)
        )
    else:
        raise ValueError(f"{file.name} is neither Unigram nor BPE")
    steps: list[Any] = []
    if rules.precompiled_charsmap:
        steps.append(normalizers.Precompiled(rules.precompiled_charsmap))
    if rules.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if rules.add_dummy_prefix:
        steps.append(normalizers.Prepend(_MARK))
    steps.append(normalizers.Replace(" ", _MARK))
    tokenizer.normalizer = normalizers.Sequence(steps)
    fallback = [decoders.ByteFallback()] if trained.byte_fallback else []
    prefix = [decoders.Strip(" ", 1, 0)] if rules.add_dummy_prefix else []
    tokenizer.decoder = decoders.Sequence([decoders.Replace(_MARK, " "), *fallback, decoders.Fuse(), *prefix])
    return tokenizer
