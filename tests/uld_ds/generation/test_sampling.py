"""Sampled answers of tiny models: what they are drawn from, what they depend on, and what a forward says of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    Mamba2Config,
    MambaConfig,
    OPTConfig,
    Qwen3Config,
    RecurrentGemmaConfig,
    RwkvConfig,
)

from uld_ds.batches import SideBatch
from uld_ds.errors import FinalError
from uld_ds.generation.sampling import Asked, Sampled, Sampler, Sampling, inverse_cdf
from uld_ds.models.row_model import RowModel, choose_head_path, log_probs_of

CPU = torch.device("cpu")
VOCAB = 97
NONE = torch.empty(0, dtype=torch.long)
PLAIN: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2}
HEADS: dict[str, Any] = {**PLAIN, "num_attention_heads": 4, "intermediate_size": 64}
GROUPED = {**HEADS, "num_key_value_heads": 2}
STATES = {**PLAIN, "state_size": 4}
# Windows and positions that the answers below go beyond.
CONFIGS: dict[str, Any] = {
    "llama": LlamaConfig(**GROUPED),
    "qwen3": Qwen3Config(**GROUPED, head_dim=8),
    "gemma3": Gemma3TextConfig(
        **GROUPED, head_dim=8, sliding_window=6, layer_types=["sliding_attention", "full_attention"]
    ),
    "gpt2": GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "gpt_neox": GPTNeoXConfig(**HEADS),
    "opt": OPTConfig(**PLAIN, num_attention_heads=4, ffn_dim=64, word_embed_proj_dim=32, max_position_embeddings=64),
    "bloom": BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4),
    "mamba": MambaConfig(**STATES),
    "mamba2": Mamba2Config(**STATES, num_heads=8, head_dim=8, n_groups=1),
    "recurrent_gemma": RecurrentGemmaConfig(
        **PLAIN | {"num_hidden_layers": 3}, num_attention_heads=4, intermediate_size=96, lru_width=32, head_dim=8,
        attention_window_size=6,
    ),
    "rwkv": RwkvConfig(**PLAIN, attention_hidden_size=32, context_length=64),
}  # fmt: skip
LENGTHS = (20, 13, 13, 4, 2)


def model_of(kind: str) -> Any:
    """A random model whose next token depends on all of its context."""
    torch.manual_seed(3)
    lm = AutoModelForCausalLM.from_config(CONFIGS[kind]).eval()
    for parameter in lm.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    lm.generation_config.eos_token_id = None
    return lm


def asked_of(lengths: Sequence[int] = LENGTHS) -> list[Asked]:
    draw = np.random.default_rng(0)
    return [Asked(f"prompt {n}", draw.integers(1, VOCAB, size).astype(np.int32)) for n, size in enumerate(lengths)]


def sampler_of(lm: Any, ends: Sequence[int] = ()) -> Sampler:
    return Sampler(lm, ends=ends, padding=0, device=CPU)


def of_the_loss(lm: Any, asked: Sequence[Asked], sampled: Sequence[Sampled]) -> list[np.ndarray]:
    """Log-probabilities of the answers' tokens as training computes them: padded on the right, no cache."""
    model = RowModel(lm)
    choose_head_path(model, model, CPU, "student")
    whole = [np.concatenate([one.prompt, answer.ids]) for one, answer in zip(asked, sampled, strict=True)]
    longest = max(map(len, whole))
    ids, mask = torch.zeros(len(whole), longest, dtype=torch.long), torch.zeros(len(whole), longest, dtype=torch.long)
    rows, right = [], []
    for row, (one, tokens) in enumerate(zip(asked, whole, strict=True)):
        ids[row, : len(tokens)], mask[row, : len(tokens)] = torch.from_numpy(tokens.astype(np.int64)), 1
        rows.append(row * longest + torch.arange(len(one.prompt) - 1, len(tokens) - 1))
        right.append(ids[row, len(one.prompt) : len(tokens)])
    with torch.no_grad():
        found = model(SideBatch(ids, mask, NONE, NONE, NONE, NONE), torch.cat(rows), log_probs_of(torch.cat(right)))
    return [part.numpy() for part in found.split([len(part) for part in right])]


@pytest.mark.parametrize("kind", CONFIGS)
def test_log_probabilities_are_those_of_the_loss(kind: str) -> None:
    lm, asked = model_of(kind), asked_of()
    sampler = sampler_of(lm, [5, 2])
    sampled = sampler.sample(asked, Sampling(14, temperature=0.9, top_p=0.95, top_k=60, seed=1))
    for answer, wanted in zip(sampled, of_the_loss(lm, asked, sampled), strict=True):
        assert answer.log_probs.dtype == np.float32 and answer.ids.dtype == np.int32
        np.testing.assert_allclose(answer.log_probs, wanted, rtol=0, atol=1e-5)
    # Measured, not known by name: what transformers' batches do to these.
    together = {"recurrent_gemma": "equal", "rwkv": "alone"}.get(kind, "any")
    assert sampler._way is not None
    assert (sampler._way.together, sampler._way.caches) == (together, True)


def test_a_cache_that_changes_answers_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    lm = model_of("llama")
    attention = lm.model.layers[0].self_attn
    forward = attention.forward

    def forgetful(**named: Any) -> Any:
        found = forward(**named)
        if (cache := named.get("past_key_values")) is not None:
            cache.layers[0].keys.zero_()
        return found

    attention.forward = forgetful
    asked = asked_of()
    sampled = sampler_of(lm).sample(asked, Sampling(6))
    assert "one by one, without a cache" in caplog.text
    for answer, wanted in zip(sampled, of_the_loss(lm, asked, sampled), strict=True):
        np.testing.assert_allclose(answer.log_probs, wanted, rtol=0, atol=1e-5)


def test_an_answer_depends_on_its_prompt_its_name_and_the_seed() -> None:
    sampler, asked, sampling = sampler_of(model_of("llama")), asked_of(), Sampling(10, seed=7)
    together = sampler.sample(asked, sampling)
    backwards = sampler.sample(asked[::-1], sampling)[::-1]
    alone = [sampler.sample([one], sampling)[0] for one in asked]
    for others in (backwards, alone):
        assert [answer.ids.tolist() for answer in others] == [answer.ids.tolist() for answer in together]
        for other, answer in zip(others, together, strict=True):
            np.testing.assert_allclose(other.log_probs, answer.log_probs, rtol=0, atol=1e-5)
    again = sampler.sample(asked, sampling)
    assert all(one.log_probs.tobytes() == other.log_probs.tobytes() for one, other in zip(again, together, strict=True))
    # The draws of one token do not depend on how many may follow.
    shorter = sampler.sample(asked, Sampling(4, seed=7))
    assert [answer.ids.tolist() for answer in shorter] == [answer.ids.tolist()[:4] for answer in together]
    ids = [answer.ids.tolist() for answer in together]
    assert [answer.ids.tolist() for answer in sampler.sample(asked, Sampling(10, seed=8))] != ids
    renamed = [Asked(one.name + "'", one.prompt) for one in asked]
    assert [answer.ids.tolist() for answer in sampler.sample(renamed, sampling)] != ids


def test_the_top_token_alone_is_the_greedy_answer() -> None:
    lm, asked = model_of("gpt2"), asked_of()
    sampled = sampler_of(lm).sample(asked, Sampling(6, temperature=3.0, top_k=1))
    for one, answer in zip(asked, sampled, strict=True):
        ids = one.prompt.tolist()
        with torch.no_grad():
            for _ in range(6):
                ids.append(int(lm(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        assert answer.ids.tolist() == ids[len(one.prompt) :]


def test_answers_end_at_any_of_the_ends() -> None:
    lm = model_of("qwen3")
    asked = asked_of([3] * 24)
    free = sampler_of(lm).sample(asked, Sampling(8, seed=2))
    assert not any(answer.ended for answer in free)
    # One that the model names, one that is given.
    lm.generation_config.eos_token_id = [int(free[0].ids[3])]
    ends = {int(free[0].ids[3]), int(free[1].ids[0])}
    sampled = sampler_of(lm, [int(free[1].ids[0])]).sample(asked, Sampling(8, seed=2))
    for answer, whole in zip(sampled, free, strict=True):
        place = next((place for place, token in enumerate(whole.ids.tolist()) if token in ends), None)
        length = 8 if place is None else place + 1
        assert answer.ended == (place is not None)
        assert answer.ids.tolist() == whole.ids[:length].tolist()
        assert len(answer.log_probs) == length
    assert sampled[1].ids.tolist() == free[1].ids[:1].tolist()


def test_a_checkpoints_own_options_are_not_mixed_in() -> None:
    lm, asked = model_of("llama"), asked_of()
    wanted = sampler_of(lm).sample(asked, Sampling(8))
    lm.generation_config.update(
        do_sample=True, temperature=0.2, top_k=3, repetition_penalty=1.7, min_new_tokens=8, num_beams=2
    )
    own = lm.generation_config
    draws = torch.get_rng_state()
    found = sampler_of(lm).sample(asked, Sampling(8))
    assert [answer.ids.tolist() for answer in found] == [answer.ids.tolist() for answer in wanted]
    assert lm.generation_config is own
    assert torch.equal(draws, torch.get_rng_state())


def test_a_model_that_has_diverged_says_so() -> None:
    lm = model_of("llama")
    sampler, asked = sampler_of(lm), asked_of()
    sampler.sample(asked, Sampling(2))
    lm.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(FinalError, match="not finite"):
        sampler.sample(asked, Sampling(2))


def test_inverse_cdf_by_hand() -> None:
    logits = torch.tensor([0.2, 0.0, 0.5, 0.3]).log()
    uniform = torch.tensor([0.0, 0.19, 0.21, 0.69, 0.71, 1 - 2**-53], dtype=torch.float64)
    assert inverse_cdf(logits.expand(6, 4), uniform).tolist() == [0, 0, 2, 2, 3, 3]


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    uniform = torch.rand(50_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    shares = inverse_cdf(probabilities.log().expand(50_000, 4), uniform).bincount(minlength=4) / 50_000
    # Four standard deviations of the largest.
    torch.testing.assert_close(shares, probabilities, rtol=0, atol=0.009)


@given(
    logits=arrays.arrays(np.float32, st.integers(1, 40), elements=st.floats(-60, 60, width=32)),
    left_out=st.sets(st.integers(0, 39)),
    uniform=st.one_of(st.floats(0, 1, exclude_max=True), st.just(1 - 2**-53)),
)
def test_inverse_cdf_is_that_of_float64(logits: np.ndarray, left_out: set[int], uniform: float) -> None:
    kept = [place for place in range(len(logits)) if place not in left_out] or [0]
    masked = np.full_like(logits, -np.inf)
    masked[kept] = logits[kept]
    [chosen] = inverse_cdf(torch.from_numpy(masked)[None], torch.tensor([uniform], dtype=torch.float64)).tolist()
    mass = np.exp((masked - masked.max()).astype(np.float64))
    assert mass[chosen] > 0, "a token that is left out"
    below, through = mass[:chosen].sum() / mass.sum(), mass[: chosen + 1].sum() / mass.sum()
    assert below - 1e-6 <= uniform <= through + 1e-6
