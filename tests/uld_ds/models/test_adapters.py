"""Layers kept, parameters frozen, adapters learned and merged: on plain models, and under ZeRO-3 through the engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.utils import safe_get_full_grad
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    Llama4TextConfig,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.models.falcon.modeling_falcon import FalconLinear
from transformers.models.llama4.modeling_llama4 import Llama4Router
from transformers.pytorch_utils import Conv1D

from tests.helpers import tokenizers_zoo as zoo
from tests.helpers.engines import prepared_job
from tests.helpers.ranks import run_on_ranks
from tests.helpers.segments import teacher_of
from tests.helpers.tiny import save_tiny_model, save_tiny_t5
from uld_ds.checkpointing.export import export_student
from uld_ds.data.batching import Batcher
from uld_ds.errors import UserError
from uld_ds.losses.normalization import step_weights
from uld_ds.losses.objective import Objective
from uld_ds.models.adapters import adapted_layers, describe_adapters, freeze, merged, with_adapters
from uld_ds.models.architectures import is_encoder_decoder
from uld_ds.models.layer_pruning import with_layers
from uld_ds.models.quantization import _computes_a_product, is_linear
from uld_ds.models.row_model import body_of
from uld_ds.models.student import make_student
from uld_ds.models.trial import try_student
from uld_ds.recipe import LoraSettings, StudentSettings
from uld_ds.runs.job import Job
from uld_ds.spectrum.spectrum import Spectrum
from uld_ds.training.engines import load_student
from uld_ds.utils.distributed import Ranks

CPU = torch.device("cpu")
IDS = torch.arange(3, 19).reshape(2, 8)


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS, use_cache=False).logits


# ---- layers


def deep_llama(folder: Path, rows: list[dict[str, str]]) -> Path:
    return save_tiny_model(folder, rows, kind="bpe", vocab_size=400, seed=4, num_hidden_layers=5)


def test_a_pruned_student_is_the_larger_model_without_some_layers(tmp_path: Path, rows: list[dict[str, str]]) -> None:
    place = deep_llama(tmp_path / "large", rows)
    settings = StudentSettings(model=str(place), keep_layers=[0, 2, 4], max_length=64)
    folder = make_student(settings, lambda: [], 0, tmp_path / "student")
    student = AutoModelForCausalLM.from_pretrained(folder)
    assert student.config.num_hidden_layers == len(student.model.layers) == 3
    large = AutoModelForCausalLM.from_pretrained(place)
    # What a layer adds to the stream is nothing, once its two output matrices are zero: it might as well be gone.
    with torch.no_grad():
        for number in (1, 3):
            large.model.layers[number].self_attn.o_proj.weight.zero_()
            large.model.layers[number].mlp.down_proj.weight.zero_()
    torch.testing.assert_close(logits(student), logits(large), rtol=0, atol=1e-5)
    text = "def join(a, *p):"
    assert (
        AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
        == AutoTokenizer.from_pretrained(place)(text)["input_ids"]
    )


def test_what_a_configuration_says_of_each_layer_follows() -> None:
    config = Gemma3TextConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, sliding_window=2,
        layer_types=["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    )  # fmt: skip
    pruned = with_layers(Gemma3ForCausalLM(config), [1, 2])
    assert pruned.config.layer_types == ["full_attention", "sliding_attention"]


def test_layers_of_other_names() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=16, n_layer=3, n_head=2, n_positions=32))
    last = model.transformer.h[2].mlp.c_fc.weight.clone()
    pruned = with_layers(model, [0, 2])
    assert pruned.config.n_layer == 2
    assert torch.equal(pruned.transformer.h[1].mlp.c_fc.weight, last)


def test_layers_that_are_not_there(tmp_path: Path, tiny_student: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_student)
    with pytest.raises(
        UserError, match=r"^student.keep_layers: 2 is not among the 2 layers \(from 0\) of '.*; correct"
    ):
        with_layers(model, [0, 2])
    place = save_tiny_t5(tmp_path, zoo.unigram_t5(), seed=1)
    settings = StudentSettings(model=str(place), keep_layers=[0], max_length=64)
    with pytest.raises(UserError, match=r"^student.keep_layers: '.*' has an encoder; "):
        make_student(settings, lambda: [], 0, tmp_path / "student")


# ---- freezing


def test_patterns_freeze_what_they_name(tiny_student: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_student)
    freeze(model, ["model.embed_tokens.*", "model.layers.0.*"])
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad is not name.startswith(("model.embed_tokens.", "model.layers.0.")), name


@pytest.mark.parametrize(
    ("patterns", "problem"),
    [
        (["model.layer.0.*"], "'model.layer.0.*' names no parameter; they have names like 'model.embed_tokens.weight'"),
        (["*"], "['*'] leaves nothing to learn; freeze less"),
    ],
)
def test_patterns_that_cannot_be_meant(tiny_student: Path, patterns: list[str], problem: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_student)
    with pytest.raises(UserError) as caught:
        freeze(model, patterns)
    assert str(caught.value).startswith(f"student.freeze: {problem}")


def test_a_head_that_is_the_embeddings_is_frozen_by_either_name() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2, n_positions=32))
    freeze(model, ["lm_head.*"])
    assert not model.transformer.wte.weight.requires_grad


# ---- adapters


@pytest.mark.parametrize("kind", ["linear", "transposed"])
def test_merged_weights_are_the_adapted_model(kind: str, tiny_student: Path) -> None:
    torch.manual_seed(0)
    if kind == "linear":
        base: Any = AutoModelForCausalLM.from_pretrained(tiny_student)
        settings = LoraSettings(rank=4, alpha=6.0)
    else:
        base = GPT2LMHeadModel(GPT2Config(vocab_size=400, n_embd=16, n_layer=1, n_head=2, n_positions=32))
        settings = LoraSettings(rank=4, alpha=6.0, targets=["c_attn", "c_proj"])
    before = logits(base)
    wrapped = with_adapters(base, settings)
    learned = [name for name, parameter in wrapped.named_parameters() if parameter.requires_grad]
    assert all(".lora_" in name for name in learned) and len(learned) == (28 if kind == "linear" else 6)
    torch.testing.assert_close(logits(wrapped), before, rtol=0, atol=1e-5)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    plain = type(wrapped.get_base_model())(base.config)
    plain.load_state_dict(merged(wrapped, wrapped.state_dict()))
    torch.testing.assert_close(logits(plain), logits(wrapped), rtol=0, atol=2e-4)
    assert (logits(plain) - before).abs().max() > 0.1, "the adapters changed nothing"


LINEAR = "choose among {}, or write all-linear without brackets"
LLAMA = "down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj"


def refusal(model: Any, *targets: str) -> str:
    with pytest.raises(UserError) as caught:
        with_adapters(model, LoraSettings(targets=list(targets)))
    return str(caught.value)


def test_layers_that_cannot_be_adapted(tiny_student: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_student)
    fix = LINEAR.format(LLAMA)
    # One that is there does not excuse one that is not.
    assert refusal(base, "q_proj", "query") == f"student.lora.targets: 'query' is the name of no layer; {fix}"
    problem = "is a layer of kind Embedding, and only adapters of linear layers can be merged at export"
    assert refusal(base, "embed_tokens") == f"student.lora.targets: 'embed_tokens' {problem}; {fix}"
    tied = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2, n_positions=32))
    assert refusal(tied, "c_attn", "lm_head") == (
        "student.lora.targets: the output head is one matrix with the embeddings, which would not change with it; "
        "leave the head out"
    )
    # Its layers are transposed, and its head is none of the choice.
    fix = LINEAR.format("c_attn, c_fc, c_proj")
    assert refusal(tied, "q_proj") == f"student.lora.targets: 'q_proj' is the name of no layer; {fix}"


def mixture(**options: Any) -> Qwen3MoeForCausalLM:
    """A dense layer, and one of four experts, whose matrices are one 3-D parameter each."""
    config = Qwen3MoeConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, moe_intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_experts=4, num_experts_per_tok=2,
        mlp_only_layers=[0], initializer_range=0.3, **options,
    )  # fmt: skip
    torch.manual_seed(0)
    return Qwen3MoeForCausalLM(config)


def test_a_mixture_of_experts_is_adapted_but_for_its_experts_and_exported(tmp_path: Path) -> None:
    base = mixture()
    said = describe_adapters(base, LoraSettings())
    assert said == (
        "adapters for 11 linear layers (down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj); "
        "none for experts.down_proj, experts.gate_up_proj, lm_head, mlp.gate"
    )
    before = {name: weight.clone() for name, weight in base.state_dict().items()}
    wrapped = with_adapters(base, LoraSettings(rank=4))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    weights = merged(wrapped, wrapped.state_dict())
    changed = {name for name, weight in weights.items() if not torch.equal(weight, before[name])}
    attention = {f"model.layers.{n}.self_attn.{part}_proj.weight" for n in (0, 1) for part in "qkvo"}
    assert changed == attention | {f"model.layers.0.mlp.{part}_proj.weight" for part in ("gate", "up", "down")}
    wrapped.get_base_model().save_pretrained(tmp_path, state_dict=weights)
    plain, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    torch.testing.assert_close(logits(plain), logits(wrapped), rtol=0, atol=1e-4)
    assert wrapped.config.model_type == "qwen3_moe"


def test_experts_are_refused_by_name() -> None:
    problem = "is a parameter of shape [4, 32, 32], and only adapters of linear layers can be merged at export"
    assert f"'gate_up_proj' {problem}; {LINEAR.format(LLAMA)}" in refusal(mixture(), "gate_up_proj")
    # What PEFT itself would take for the experts' is the dense layer's.
    assert adapted_layers(mixture(), LoraSettings(targets=["up_proj"])) == ["model.layers.0.mlp.up_proj"]


def test_layers_whose_weights_are_read_past_them_get_no_adapter() -> None:
    config = AutoConfig.for_model("mamba", vocab_size=64, hidden_size=16, num_hidden_layers=2, state_size=4)
    model = AutoModelForCausalLM.from_config(config)
    fix = LINEAR.format("in_proj, x_proj")
    problem = "is a layer whose weight is read past it, and so past an adapter"
    assert refusal(model, "dt_proj") == f"student.lora.targets: 'dt_proj' {problem}; {fix}"
    wrapped = with_adapters(model, LoraSettings(targets="all-linear", rank=2))
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.3)
    wrapped(input_ids=IDS, use_cache=False).logits.square().mean().backward()
    learning = {name: p.grad for name, p in wrapped.named_parameters() if p.requires_grad}
    assert len(learning) == 2 * 2 * 2
    assert all(gradient is not None and bool(gradient.any()) for gradient in learning.values())


def test_a_linear_layer_is_known_by_what_it_computes() -> None:
    before = torch.get_rng_state()
    assert is_linear(FalconLinear(4, 4)) and is_linear(torch.nn.Linear(4, 4, bias=False)) and is_linear(Conv1D(4, 4))
    config = Llama4TextConfig(hidden_size=8, num_local_experts=2)
    assert not is_linear(Llama4Router(config))
    assert not is_linear(torch.nn.Embedding(4, 4))
    # Looking at it draws no random number: weights of adapters are drawn afterwards.
    torch.set_rng_state(before)
    _computes_a_product.cache_clear()
    with torch.device("meta"):
        layer = FalconLinear(4, 4)
    before = torch.get_rng_state()
    assert is_linear(layer)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
def test_adapters_of_every_architecture_can_be_exported() -> None:
    tried = []
    for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        try:
            config = AutoConfig.for_model(kind)
            with torch.device("meta"):
                model: Any = AutoModelForCausalLM.from_config(config)
        except Exception:  # its default configuration makes no model, or needs a library
            continue
        assert is_encoder_decoder(config) or body_of(model) is not None, kind
        found = try_student(config, StudentSettings(model="x", lora=LoraSettings()), kind)
        assert found.adapters is not None and found.adapters.startswith("adapters for "), kind
        tried.append(kind)
    assert len(tried) > 150


# ---- through the engine, under ZeRO-3


def one_step(config: dict[str, Any], target: str) -> dict[str, Any]:
    """A sharded step towards spectra of noise; gradients, weights, logits, and the student exported."""
    job = Job.from_config(config)
    ranks = Ranks.current()
    student = load_student(
        job.student,
        job.recipe.student,
        job.student_deepspeed,
        training=job.recipe.training,
        seed=job.recipe.run.seed,
        total_steps=1,
        device=CPU,
    )
    (micro_batch,) = Batcher(job.split("train").rows, padding=0).window([torch.arange(2).numpy()])
    spectrum = Spectrum.from_logits(torch.randn(len(micro_batch.pairs[0].student), 77, generator=torch.manual_seed(0)))
    ((weights,),) = step_weights([micro_batch], "token", ranks.sum)
    objective, side = Objective(job.recipe.objective), micro_batch.student
    student.train()
    loss = student(
        side, side.answer_rows,
        lambda hidden, head: objective(hidden, head, micro_batch.judged_by(0), teacher_of(spectrum), weights)[0],
    )  # fmt: skip
    student.backward(loss * ranks.size)
    learning = {name: p for name, p in student.module.named_parameters() if p.requires_grad}
    gradients = {name: safe_get_full_grad(parameter).clone() for name, parameter in learning.items()}
    student.step()
    student.eval()
    with torch.no_grad():
        after = student(side, side.answer_rows, lambda hidden, head: head.logits(hidden).clone())
    export_student(student, AutoTokenizer.from_pretrained(job.student), Path(target), ranks)
    return {"gradients": gradients, "after": after, "side": side, "loss": float(loss)}


def steps(configs: dict[str, dict[str, Any]], target: str) -> dict[str, dict[str, Any]]:
    return {name: one_step(config, f"{target}/{name}-export") for name, config in configs.items()}


def whole_logits(folder: Path, side: Any) -> Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(side.input_ids, attention_mask=side.attention_mask).logits.flatten(0, 1)[side.answer_rows]


def test_what_is_frozen_stays_and_adapters_are_merged_at_export(tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    tiny_recipe["training"] |= {"batch_size": 2, "micro_batch_size": 1}
    shapes: dict[str, dict[str, Any]] = {
        "plain": {},
        "recomputed": {"gradient_checkpointing": True},
        "frozen": {"freeze": ["model.embed_tokens.*", "model.layers.0.*", "lm_head.*"]},
        "adapted": {"lora": {"rank": 4, "targets": ["q_proj", "v_proj", "down_proj", "lm_head"]}},
    }
    jobs = {
        name: prepared_job(tiny_recipe | {"student": tiny_recipe["student"] | shape}, tmp_path / name)
        for name, shape in shapes.items()
    }
    configs = {name: job.to_config() for name, job in jobs.items()}
    found, other = run_on_ranks(steps, 2, configs, str(tmp_path))
    place = Path(jobs["plain"].student)
    before = AutoModelForCausalLM.from_pretrained(place).state_dict()
    exported = {name: AutoModelForCausalLM.from_pretrained(tmp_path / f"{name}-export").state_dict() for name in jobs}

    plain = found["plain"]["gradients"]
    for name, gradient in found["recomputed"]["gradients"].items():
        torch.testing.assert_close(gradient, plain[name], rtol=1e-5, atol=1e-7)
    # The parameters that learn have the gradients that they have anyway.
    frozen = found["frozen"]["gradients"]
    assert {name for name in plain if name not in frozen} == {
        name for name in plain if name.startswith(("lm.model.embed_tokens", "lm.model.layers.0.", "lm.lm_head"))
    }
    for name, gradient in frozen.items():
        torch.testing.assert_close(gradient, plain[name], rtol=1e-5, atol=1e-7)
    for name, weight in exported["frozen"].items():
        assert torch.equal(weight, before[name]) is (f"lm.{name}" not in frozen), name

    assert all(".lora_" in name for name in found["adapted"]["gradients"])
    changed = {
        name.split(".")[-2] for name, weight in exported["adapted"].items() if not torch.equal(weight, before[name])
    }
    assert changed == {"q_proj", "v_proj", "down_proj", "lm_head"}
    assert exported["adapted"].keys() == before.keys()
    for name in jobs:
        wanted = whole_logits(tmp_path / f"{name}-export", found[name]["side"])
        torch.testing.assert_close(found[name]["after"], wanted, rtol=0, atol=5e-5)
        assert torch.equal(found[name]["after"], other[name]["after"])
    written = json.loads((tmp_path / "adapted-export" / "config.json").read_text())
    assert (written["rope_theta"], written["rope_parameters"]["rope_theta"]) == (10_000.0, 10_000.0)
    of_tokenizer = json.loads((tmp_path / "adapted-export" / "tokenizer_config.json").read_text())
    assert of_tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert (found["adapted"]["after"] - whole_logits(place, found["adapted"]["side"])).abs().max() > 1e-3
