"""Answers of tiny models, against decoding token by token."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, RwkvConfig

from uld_ds.generation.decoding import Decoding, Model, SeededSampling, filtered
from uld_ds.models.pretrained import Pretrained
from uld_ds.recipe import GenerationSettings
from uld_ds.tasks import get_task

PROMPTS = ["What does it return?", "Say", "How are the files of a folder listed, one by one?"]
IDS = ["a", "b", "c"]


@pytest.fixture(scope="module")
def model(tiny_teacher: Path) -> Model:
    return Model(Pretrained(str(tiny_teacher)), "fp32", torch.device("cpu"))


@pytest.fixture(scope="module")
def prompts(tiny_teacher: Path) -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(tiny_teacher)
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in PROMPTS]


def by_hand(folder: Path, prompt: list[int], number: int) -> str:
    """The most probable token, again and again, without a cache or padding."""
    lm, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(number):
            ids.append(int(lm(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == tokenizer.eos_token_id:
                break
    return tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True).strip()


def test_greedy_answers_are_the_top_k_tokens(model: Model, prompts: list[list[int]], tiny_teacher: Path) -> None:
    answers = model.answer(prompts, Decoding(6), IDS)
    assert [answer.text for answer in answers] == [by_hand(tiny_teacher, prompt, 6) for prompt in prompts]
    assert [(answer.tokens, answer.finish) for answer in answers] == [(6, "length")] * 3


def test_answers_that_a_batch_would_change_are_not_made_in_one(
    tiny_teacher: Path, tmp_path: Path, prompts: list[list[int]], caplog: pytest.LogCaptureFixture
) -> None:
    # transformers 5.23 mixes the rows of a batch in an RWKV with its state.
    tokenizer = AutoTokenizer.from_pretrained(tiny_teacher)
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(
        RwkvConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, attention_hidden_size=32)
    )
    for parameter in lm.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    lm.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = Model(Pretrained(str(tmp_path)), "fp32", torch.device("cpu"))
    asked = [*prompts, prompts[0][::-1]]
    answers = model.answer(asked, Decoding(6), ["a", "b", "c", "d"])
    assert [answer.text for answer in answers] == [by_hand(tmp_path, prompt, 6) for prompt in asked]
    assert "change the model's answers: one by one, slower" in caplog.text


def test_sampled_answers_depend_on_prompt_and_seed_alone(model: Model, prompts: list[list[int]]) -> None:
    decoding = Decoding(8, temperature=1.0, seed=3)
    together = model.answer(prompts, decoding, IDS)
    backwards = model.answer(prompts[::-1], decoding, IDS[::-1])[::-1]
    alone = [model.answer([prompt], decoding, [name])[0] for prompt, name in zip(prompts, IDS, strict=True)]
    assert together == backwards == alone
    assert model.answer(prompts, Decoding(8, temperature=1.0, seed=4), IDS) != together
    assert model.answer(prompts, Decoding(8), IDS) != together
    # The most probable token alone is the greedy answer, whatever the noise.
    assert model.answer(prompts, Decoding(8, temperature=1.0, top_k=1), IDS) == model.answer(prompts, Decoding(8), IDS)


def test_sampling_takes_tokens_as_often_as_they_are_likely() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    sampling = SeededSampling(Decoding(1, temperature=1.0), [str(n) for n in range(20_000)])
    chosen = sampling(None, probabilities.log().expand(20_000, 4)).argmax(1)
    assert torch.allclose(chosen.bincount(minlength=4) / 20_000, probabilities, atol=0.012)


def test_what_is_sampled_from() -> None:
    logits = torch.tensor([[0.15, 0.5, 0.05, 0.3]]).log()
    assert torch.isfinite(filtered(logits, 2, 1.0)).tolist() == [[False, True, False, True]]
    assert torch.isfinite(filtered(logits, 0, 0.79)).tolist() == [[False, True, False, True]]
    assert torch.isfinite(filtered(logits, 0, 0.81)).tolist() == [[True, True, False, True]]
    assert torch.isfinite(filtered(logits, 0, 0.01)).tolist() == [[False, True, False, False]]
    assert torch.equal(filtered(logits, 9, 1.0), logits)


def test_an_answer_ends_before_a_stop(model: Model, prompts: list[list[int]]) -> None:
    whole = model.answer(prompts[:1], Decoding(12), IDS[:1])[0]
    stop = whole.text[4:6]
    cut, *others = model.answer(prompts, Decoding(12, stop=(stop, "never said")), IDS)
    assert cut.text == whole.text[: whole.text.index(stop)].strip()
    assert cut.finish == "stop"
    assert 0 < cut.tokens < whole.tokens
    # Those beside it that do not say it go on.
    plain = model.answer(prompts[1:], Decoding(12), IDS[1:])
    assert [a.text == p.text or a.finish == "stop" for a, p in zip(others, plain, strict=True)] == [True, True]


def test_an_answer_ends_with_the_turn(model: Model, prompts: list[list[int]], tiny_teacher: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_teacher)
    ids = tokenizer("return the", add_special_tokens=False)["input_ids"]
    answer = model._read([*ids, tokenizer.eos_token_id, *ids], ())
    assert (answer.text, answer.tokens, answer.finish) == ("return the", len(ids) + 1, "stop")
    answer = model._read([tokenizer.eos_token_id], ("\n",))
    assert (answer.text, answer.tokens, answer.finish) == ("", 1, "stop")


def test_the_recipe_overrides_the_task() -> None:
    squad = get_task("squad")
    assert Decoding.of(GenerationSettings(), squad, 7) == Decoding(32, ("\n",))
    settings = GenerationSettings(max_new_tokens=5, stop=[], temperature=0.5, top_p=0.9, top_k=3)
    assert Decoding.of(settings, squad, 7) == Decoding(5, (), 0.5, 0.9, 3, 7)
