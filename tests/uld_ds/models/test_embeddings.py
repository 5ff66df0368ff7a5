"""Embeddings for another tokenizer: which old tokens spell a new one, and what becomes of a model's matrices."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizer

from tests.helpers import tokenizers_zoo as zoo
from tests.helpers.tiny import save_tiny_model
from uld_ds.errors import UserError
from uld_ds.models.embeddings import remake_embeddings, spellings
from uld_ds.models.student import make_student
from uld_ds.recipe import StudentSettings
from uld_ds.tokenization.vocabulary import Vocabulary


def test_old_tokens_spell_the_new_ones_byte_by_byte() -> None:
    old, new = zoo.gpt2(), zoo.unigram()
    found = spellings(old, new)
    wanted, of_old = Vocabulary.of(new).spellings, Vocabulary.of(old).spellings
    assert len(found) == len(new)
    spelled = [number for number, ids in enumerate(found) if ids and wanted[number] is not None]
    assert len(spelled) > 0.95 * len(new)
    assert all(b"".join(of_old[i] or b"?" for i in found[number]) == wanted[number] for number in spelled)
    word = next(number for number, spelling in enumerate(wanted) if spelling == b" the")
    assert found[word] == old(" the")["input_ids"]
    assert found[new.eos_token_id] == [old.eos_token_id]


@pytest.mark.parametrize("tied", [True, False])
def test_a_row_is_the_mean_of_what_spells_it(tied: bool, tmp_path: Path, rows: list[dict[str, str]]) -> None:
    place = save_tiny_model(tmp_path / "old", rows, kind="bpe", vocab_size=500, seed=4, tied=tied)
    other = save_tiny_model(tmp_path / "new", rows, kind="unigram", vocab_size=400, seed=4)
    settings = StudentSettings(model=str(place), tokenizer=str(other), embeddings="spelled", max_length=64)
    folder = make_student(settings, lambda: [], 0, tmp_path / "student")
    student, model = (AutoModelForCausalLM.from_pretrained(item) for item in (folder, place))
    old, new = (AutoTokenizer.from_pretrained(item) for item in (place, other))
    assert student.config.vocab_size == len(new) < model.config.vocab_size
    found = spellings(old, new)
    number = max(range(len(new)), key=lambda number: len(found[number]))
    assert len(found[number]) > 1
    for matrix in ("get_input_embeddings", "get_output_embeddings"):
        weight, before = (getattr(item, matrix)().weight for item in (student, model))
        torch.testing.assert_close(weight[number], before[found[number]].mean(0))
    shared = student.get_input_embeddings().weight is student.get_output_embeddings().weight
    assert shared is tied
    layers = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(student.state_dict()[layers], model.state_dict()[layers])


def test_random_rows_have_the_spread_of_the_old_ones(tiny_student: Path, tiny_teacher: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_student)
    before = model.get_input_embeddings().weight.detach().clone()
    old, new = (AutoTokenizer.from_pretrained(place) for place in (tiny_student, tiny_teacher))
    torch.manual_seed(0)
    remake_embeddings(model, old, new, spelled=False)
    after = model.get_input_embeddings().weight.detach()
    assert len(after) == len(new) == model.config.vocab_size
    assert 0.9 < float(after.std() / before.std()) < 1.1
    assert not any(torch.equal(row, after[0]) for row in before)


def test_it_needs_another_tokenizer() -> None:
    with pytest.raises(ValueError, match=r"student.embeddings .random. needs student.model and another"):
        StudentSettings(model="org/name", embeddings="random")


class Ciphered(PreTrainedTokenizer):
    """Written in Python, and its tokens are no text: what they spell cannot be told."""

    def __init__(self) -> None:
        self._ids = {f"#{index}#": index for index in range(128)}
        super().__init__()

    @property
    def vocab_size(self) -> int:
        return len(self._ids)

    def get_vocab(self) -> dict[str, int]:
        return self._ids

    def _tokenize(self, text: str) -> list[str]:
        return [f"#{ord(character) % 128}#" for character in text]

    def _convert_token_to_id(self, token: str) -> int:
        return self._ids[token]

    def _convert_id_to_token(self, index: int) -> str:
        return f"#{index}#"


def test_a_tokenizer_whose_tokens_cannot_be_read() -> None:
    with pytest.raises(
        UserError, match=r"^student.embeddings: 'spelled' needs to know what tokens spell: .*; take random"
    ):
        spellings(Ciphered(), zoo.unigram())
