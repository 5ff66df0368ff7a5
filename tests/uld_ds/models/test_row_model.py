"""The way from a body's hidden states to logits, of architectures that keep their body in different places."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Llama4TextConfig
from transformers.models.mllama.configuration_mllama import MllamaTextConfig
from transformers.models.mllama.modeling_mllama import MllamaForCausalLM

from uld_ds.batches import SideBatch
from uld_ds.models.row_model import RowModel, choose_head_path

CPU = torch.device("cpu")
SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "initializer_range": 0.3,
}  # fmt: skip


def llama4() -> Any:
    options = {"intermediate_size_mlp": 64, "head_dim": 8, "num_local_experts": 2, "interleave_moe_layer_step": 1}
    return AutoModelForCausalLM.from_config(Llama4TextConfig(**SIZES, **options))


def mllama() -> Any:
    return MllamaForCausalLM(MllamaTextConfig(**SIZES, cross_attention_layers=[], pad_token_id=0))


@pytest.mark.parametrize("make", [llama4, mllama])
def test_a_body_that_goes_by_another_name_is_reached(make: Any) -> None:
    torch.manual_seed(0)
    lm = make().eval()
    assert lm.base_model is lm, "transformers calls the body by its name: body_of may go"
    model = RowModel(lm)
    choose_head_path(model, model, CPU, "teacher")
    assert model.direct_head
    ids = torch.tensor([[3, 9, 11, 2]])
    nothing = torch.empty(0, dtype=torch.long)
    batch = SideBatch(ids, torch.ones_like(ids), nothing, nothing, nothing, nothing)
    with torch.no_grad():
        found = model(batch, torch.tensor([1, 3]), lambda hidden, head: head.logits(hidden).clone())
        torch.testing.assert_close(found, lm(input_ids=ids).logits[0, [1, 3]], rtol=1e-5, atol=1e-5)


def test_a_body_that_cannot_be_reached_costs_memory_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    lm = llama4().eval()
    # Two parts hold the embeddings: which of them the head reads, nobody knows.
    lm.other = torch.nn.Sequential(lm.get_input_embeddings())
    model = RowModel(lm)
    choose_head_path(model, model, CPU, "teacher")
    assert not model.direct_head
    ids = torch.tensor([[3, 9, 11, 2]])
    nothing = torch.empty(0, dtype=torch.long)
    batch = SideBatch(ids, torch.ones_like(ids), nothing, nothing, nothing, nothing)
    with torch.no_grad():
        found = model(batch, torch.tensor([1, 3]), lambda hidden, head: head.logits(hidden).clone())
        torch.testing.assert_close(found, lm(input_ids=ids).logits[0, [1, 3]])
