"""Relations between two vocabularies by the bytes of their tokens: twins, prefixes and completions."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from uld_ds.alignment.completions import CompletionIndex
from uld_ds.alignment.outcomes import shared_outcomes
from uld_ds.tokenization.loading import tokenizer_digest
from uld_ds.tokenization.vocabulary import Ints, Vocabulary, log
from uld_ds.utils.cache import cache_dir
from uld_ds.utils.files import whole_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


NONE = -1
"""Id that stands for "no token"."""
# Part of the name of a cached file: to be raised when relations come to mean something else.
_VERSION = 6
_INTS = ("identity", "projection", "outcomes", "teacher_outcomes")


@dataclass(frozen=True)
class VocabularyRelations:
    """Relations of the teacher's V_t tokens to the student's tokens, by their bytes."""

    identity: Ints
    """[V_t] the twin of each teacher token: the student's token with the same bytes, or -1.

    No two of the teacher's tokens have the same twin: of several with the same bytes one has it, chosen as
    ``Vocabulary.by_bytes`` says.
    """
    projection: Ints
    """[V_t] the student's token with the longest bytes that the teacher's token begins with, or is; or -1."""
    num_student: int
    """Size V_s of the student's vocabulary."""
    is_space: NDArray[np.bool_]
    """[V_s] ``Vocabulary.is_space`` of the student's tokens: whether they spell nothing but white space."""
    outcomes: Ints
    """[V_s] the outcome that each of the student's tokens is part of, as ``shared_outcomes`` numbers them."""
    teacher_outcomes: Ints
    """[V_t] the same for the teacher's tokens; -1 where no token of the student is part of it."""
    completions: CompletionIndex
    """Which of the student's tokens finish what a teacher's token spells that the student has not."""


def relate(student: Vocabulary, teacher: Vocabulary) -> VocabularyRelations:
    """Relate two vocabularies by the rules that ``uld_ds.tokenization.vocabulary`` gives."""
    if list(student.tokens) == list(teacher.tokens):
        same = np.arange(len(teacher), dtype=np.int64)
        completions = CompletionIndex.nothing(len(student), len(teacher))
        return VocabularyRelations(same, same, len(student), student.is_space(), same, same, completions)
    ids, of_teacher = student.by_bytes(), teacher.by_bytes()
    identity = np.full(len(teacher), NONE, np.int64)
    projection, backward = _longest_beginnings(teacher, ids), _longest_beginnings(student, of_teacher)
    for spelled, index in of_teacher.items():
        identity[index] = ids.get(spelled, NONE)
    if student.end is not None and teacher.end is not None:
        identity[teacher.end] = projection[teacher.end] = student.end
        backward[student.end] = teacher.end
    return VocabularyRelations(
        identity,
        projection,
        len(student),
        student.is_space(),
        *shared_outcomes(projection, backward),
        CompletionIndex.of(student, teacher),
    )


def _longest_beginnings(vocabulary: Vocabulary, ids: dict[bytes, int]) -> Ints:
    """Find, for each token of a vocabulary, the longest of the spellings in ``ids`` that it begins with, or -1."""
    longest = max(map(len, ids), default=0)
    found = np.full(len(vocabulary), NONE, np.int64)
    for index, spelled in enumerate(vocabulary.spellings):
        for length in range(min(len(spelled or b""), longest), 0, -1):
            begun = ids.get((spelled or b"")[:length], NONE)
            if begun != NONE:
                found[index] = begun
                break
    return found


def relations_of(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> VocabularyRelations:
    """Relate two tokenizers' vocabularies, or read their relations from the cache folder.

    A file there that is damaged is made anew, and a folder that cannot be written to is no error.
    """
    name = f"{tokenizer_digest(student)[:24]}-{tokenizer_digest(teacher)[:24]}-v{_VERSION}.npz"
    file = cache_dir() / "vocabularies" / name
    kept = _read(file)
    if kept is not None:
        return kept
    relations = relate(Vocabulary.of(student), Vocabulary.of(teacher))
    try:
        _write(file, relations)
    except OSError as error:
        log.warning("the relations of two vocabularies are not kept: %s", error)
    return relations


def _read(file: Path) -> VocabularyRelations | None:
    """Read the relations that ``_write`` left; None if there are none, or the file is damaged."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            known = {name: arrays[name].astype(np.int64) for name in _INTS}
            size, is_space = int(arrays["num_student"]), arrays["is_space"].astype(bool)
            completions = CompletionIndex(**{name: arrays[name].astype(np.int64) for name in CompletionIndex.names()})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        log.warning("%s is damaged (%s) and is made anew", file, error)
        return None
    return VocabularyRelations(**known, num_student=size, is_space=is_space, completions=completions)


def _write(file: Path, relations: VocabularyRelations) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as out:  # not synchronized: whoever reads a damaged one makes it anew
        np.savez_compressed(
            out,
            **{name: getattr(relations, name).astype(np.int32) for name in _INTS},
            num_student=np.int64(relations.num_student),
            is_space=relations.is_space,
            **{name: getattr(relations.completions, name).astype(np.int32) for name in CompletionIndex.names()},
        )
