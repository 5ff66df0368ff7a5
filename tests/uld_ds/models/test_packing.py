"""Examples that are laid end to end give the logits and gradients that each gives alone, in every architecture."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from uld_ds.batches import SideBatch
from uld_ds.models.adapters import shaped
from uld_ds.models.packing import PACKED, PackedRow, choose_packing, packed_attention
from uld_ds.models.row_model import RowModel, choose_head_path
from uld_ds.recipe import StudentSettings

CPU = torch.device("cpu")
NONE = torch.empty(0, dtype=torch.long)
LENGTHS = (7, 1, 12, 4, 9)
VOCAB = 97
SIZES = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
SIZES |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
PACKS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 5},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "gemma": {"head_dim": 8},
    "gemma3_text": {"head_dim": 8, "sliding_window": 4, "layer_types": MIXED},
    "gpt_neox": {},
    "gpt2": {"n_embd": 32, "n_head": 4, "n_layer": 3, "n_positions": 64},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32, "dropout": 0.0},
    "phi": {},
    "phi3": {"sliding_window": 5},
    "olmo2": {},
    "granite": {},
    "smollm3": {},
    "starcoder2": {"sliding_window": 5},
    "mixtral": {"num_local_experts": 4},
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 32, "num_experts_per_tok": 2, "head_dim": 8},
    "cohere": {},
    "glm4": {"head_dim": 8},
}
PADS: dict[str, tuple[dict[str, Any], str]] = {
    "mamba": ({"state_size": 4}, "attends by 'eager'"),
    "bloom": ({"n_head": 4, "n_layer": 2}, "attends by 'eager'"),
    "mpt": ({"d_model": 32, "n_heads": 4, "n_layers": 2}, "attends by 'eager'"),
    "falcon": ({}, "cannot be replaced"),
    "gemma2": ({"head_dim": 8, "sliding_window": 4}, "attends by 'eager'"),
    "gpt_oss": ({"num_local_experts": 4, "head_dim": 8}, "attends by 'eager'"),
    "llama4_text": ({"head_dim": 8, "num_local_experts": 2, "attention_chunk_size": 4}, "chunk"),
    "lfm2": ({"layer_types": ["conv", "full_attention", "conv"]}, "layers of the kind conv"),
    "qwen2_moe": (
        {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 3, "num_experts": 4}
        | {"num_experts_per_tok": 2, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32},
        "its sliding window is in the mask alone",
    ),
    "phimoe": ({"sliding_window": 16, "num_local_experts": 4}, "its sliding window is in the mask alone"),
    "doge": ({}, "makes a mask of its own"),
    "llama": (
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
        "rotary frequencies of llama (dynamic) follow the longest example",
    ),
    "t5": ({"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}, "has an encoder"),
}


def wrapped(kind: str, options: dict[str, Any], *, dtype: torch.dtype = torch.float32) -> RowModel:
    """A model of random weights large enough that attention decides its logits."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SIZES, **options})
    if kind == "t5":
        from transformers import AutoModelForSeq2SeqLM

        return RowModel(AutoModelForSeq2SeqLM.from_config(config).eval())
    lm = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
    for part in lm.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    return RowModel(lm.to(dtype).eval())


def batch_of(lengths: tuple[int, ...] = LENGTHS) -> SideBatch:
    """Random tokens, padded on the right."""
    draw = torch.Generator().manual_seed(1)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(3, VOCAB, mask.shape, generator=draw) * mask
    return SideBatch(ids, mask, mask.flatten().nonzero()[:, 0], NONE, NONE, NONE, lengths=lengths)


def logits_of(model: RowModel, batch: SideBatch) -> Tensor:
    """Logits of all tokens, [T, V]."""
    return model(batch, batch.answer_rows, lambda hidden, head: head.logits(hidden))


def alone(model: RowModel, batch: SideBatch) -> Tensor:
    """Logits of each example by a forward of its own through the plain language model, [T, V]."""
    rows = zip(batch.input_ids, batch.lengths or (), strict=True)
    return torch.cat([model.lm(input_ids=ids[None, :length], use_cache=False).logits[0] for ids, length in rows])


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("kind", PACKS)
def test_logits_are_those_of_each_example_alone(kind: str, mode: str) -> None:
    model, batch = wrapped(kind, PACKS[kind]), batch_of()
    with torch.no_grad():
        expected = alone(model, batch)
        choose_head_path(model, model, CPU, "student")
        choose_packing(model, model, CPU, "student")
        model.train(mode == "train")
        found = logits_of(model, batch)
    assert model.packs
    assert model.num_positions(batch) == sum(LENGTHS)
    assert float((found - expected).abs().max()) < 1e-5 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("kind", PADS)
def test_others_are_padded_and_that_is_said(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    options, reason = PADS[kind]
    model = wrapped(kind, options)
    attention = model.inner.config._attn_implementation
    with caplog.at_level(logging.WARNING, "uld_ds"):
        choose_head_path(model, model, CPU, "student")
        choose_packing(model, model, CPU, "student")
    (said,) = [record.getMessage() for record in caplog.records if "padded" in record.getMessage()]
    assert said.startswith("student: examples are padded to the longest of a batch: ")
    assert reason in said
    assert not model.packs
    assert model.inner.config._attn_implementation == attention
    if not model.has_encoder:
        batch = batch_of()
        assert model.num_positions(batch) == len(LENGTHS) * max(LENGTHS)
        with torch.no_grad():
            found, expected = logits_of(model, batch), alone(model, batch)
        if kind not in ("mamba", "doge"):  # their kernels differ by length
            assert float((found - expected).abs().max()) < 1e-4


def test_packing_can_be_declined(caplog: pytest.LogCaptureFixture) -> None:
    model = wrapped("llama", {})
    choose_packing(model, model, CPU, "student", wanted=False)
    assert (model.packs, model.inner.config._attn_implementation, caplog.records) == (False, "sdpa", [])


# Of a gradient's size: in fp32 as much as other kernels round differently, which is the CPU's affair.
PRECISE = {torch.float64: 1e-12, torch.float32: 1e-5}


@pytest.mark.parametrize("dtype", PRECISE)
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "gpt2"])
def test_gradients_are_those_of_each_example_alone(kind: str, checkpointing: bool, dtype: torch.dtype) -> None:
    model, batch = wrapped(kind, PACKS[kind], dtype=dtype), batch_of()
    choose_packing(model, model, CPU, "student")
    if checkpointing:
        model.lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    weights = torch.linspace(-1, 1, VOCAB, dtype=dtype)

    def gradients(logits: Tensor) -> list[Tensor]:
        model.zero_grad()
        (logits.log_softmax(1) @ weights).sum().backward()
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    found, expected = gradients(logits_of(model, batch)), gradients(alone(model, batch))
    assert len(found) == len(expected) > 10
    # Gemma normalizes in fp32, whatever it is held in.
    most = max(PRECISE[dtype], 1e-6 if kind == "gemma3_text" else 0.0)
    for own, right in zip(found, expected, strict=True):
        assert float((own - right).norm()) <= most * (float(right.norm()) + 1)


def test_adapters_learn_what_they_learn_of_each_example_alone() -> None:
    settings = StudentSettings(model="m", lora={"rank": 4, "dropout": 0.0}, precision="fp32")
    model = RowModel(shaped(wrapped("llama", {}).lm, settings)).double()
    batch = batch_of()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.3)
    choose_packing(model, model, CPU, "student")
    assert model.packs
    found, expected = [], []
    for logits, kept in ((logits_of(model, batch), found), (alone(model, batch), expected)):
        model.zero_grad()
        (logits.log_softmax(1) @ torch.linspace(-1, 1, VOCAB, dtype=torch.float64)).sum().backward()
        kept += [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]
    assert len(found) == len(expected) > 10
    for own, right in zip(found, expected, strict=True):
        assert float((own - right).norm()) <= 1e-12 * (float(right.norm()) + 1)


def test_in_bf16_logits_are_off_by_rounding() -> None:
    model, batch = wrapped("qwen3", PACKS["qwen3"], dtype=torch.bfloat16), batch_of()
    with torch.no_grad():
        expected = alone(model, batch)
        choose_packing(model, model, CPU, "teacher")
        found = logits_of(model, batch)
    assert model.packs
    assert float((found - expected).abs().max()) < 2e-2 * float(expected.abs().max())


def test_a_model_whose_examples_see_each_other_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def leaking(*arguments: Any, packed_lengths: Any = None, **options: Any) -> Any:
        whole = None if packed_lengths is None else (sum(packed_lengths),)
        return packed_attention(*arguments, packed_lengths=whole, **options)

    monkeypatch.setitem(
        __import__("transformers").modeling_utils.ALL_ATTENTION_FUNCTIONS._local_mapping, PACKED, leaking
    )
    model = wrapped("llama", {})
    choose_packing(model, model, CPU, "student")
    assert not model.packs


def test_in_bf16_a_leak_below_rounding_is_found_by_another_neighbor(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Rounding hides it from the padded batch; it does not from the same row with another first example."""

    def leaking(*arguments: Any, packed_lengths: Any = None, **options: Any) -> Any:
        found, weights = packed_attention(*arguments, packed_lengths=packed_lengths, **options)
        # A touch of everybody's mean.
        return (found if packed_lengths is None else found + 0.006 * found.mean(1, keepdim=True)), weights

    monkeypatch.setitem(
        __import__("transformers").modeling_utils.ALL_ATTENTION_FUNCTIONS._local_mapping, PACKED, leaking
    )
    model = wrapped("qwen3", PACKS["qwen3"], dtype=torch.bfloat16)
    choose_packing(model, model, CPU, "teacher")
    assert not model.packs
    assert "with another beside it in a packed row" in caplog.text


def test_a_model_that_loses_its_places_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    right = PackedRow.of

    def running_on(batch: SideBatch, *, flash: bool) -> PackedRow:
        row = right(batch, flash=flash)
        row.arguments["position_ids"] = torch.arange(row.arguments["input_ids"].shape[1])[None]
        return row

    monkeypatch.setattr(PackedRow, "of", running_on)
    model = wrapped("gpt2", PACKS["gpt2"])  # with learned places; rotary ones are relative
    choose_packing(model, model, CPU, "student")
    assert not model.packs


def test_the_row_of_a_batch_by_hand() -> None:
    ids = torch.tensor([[5, 6, 7], [8, 0, 0], [9, 10, 0]])
    mask = (ids > 0).long()
    batch = SideBatch(ids, mask, NONE, NONE, NONE, NONE, lengths=(3, 1, 2))
    row = PackedRow.of(batch, flash=False)
    assert row.arguments["input_ids"].tolist() == [[5, 6, 7, 8, 9, 10]]
    assert row.arguments["position_ids"].tolist() == [[0, 1, 2, 0, 0, 1]]
    assert row.places(torch.tensor([0, 2, 3, 6, 7])).tolist() == [0, 2, 3, 4, 5]
    boundaries = PackedRow.of(batch, flash=True).arguments
    assert boundaries["cu_seq_lens_q"].tolist() == boundaries["cu_seq_lens_k"].tolist() == [0, 3, 4, 6]
    assert (boundaries["max_length_q"], boundaries["max_length_k"]) == (3, 3)
    assert "attention_mask" not in boundaries


def test_rows_that_are_not_packed_are_as_with_sdpa() -> None:
    model, batch = wrapped("llama", {}), batch_of()
    with torch.no_grad():
        left = {"input_ids": batch.input_ids.flip(1), "attention_mask": batch.attention_mask.flip(1)}
        expected = model.lm(**left).logits
        model.inner.set_attn_implementation(PACKED)
        assert torch.equal(model.lm(**left).logits, expected)


def test_the_attention_is_not_written_into_a_configuration(tmp_path: Any) -> None:
    model = wrapped("llama", {})
    choose_packing(model, model, CPU, "student")
    model.lm.save_pretrained(tmp_path)
    assert PACKED not in (tmp_path / "config.json").read_text()
