"""Weights in 4 bits beside adapters: what they stand for, what is merged, kept and refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
)

from tests.helpers import tokenizers_zoo as zoo
from tests.helpers.engines import build, prepared_job, variant
from tests.helpers.ranks import run_on_ranks
from tests.helpers.steps import steps
from tests.helpers.tiny import save_tiny_model, save_tiny_t5
from uld_ds.checkpointing.deepspeed_state import host_state, load_state
from uld_ds.checkpointing.export import export_student
from uld_ds.checkpointing.files import write_shard
from uld_ds.checkpointing.state import TrainState
from uld_ds.errors import FinalError, UserError
from uld_ds.models.adapters import shaped
from uld_ds.models.pretrained import Pretrained
from uld_ds.models.quantization import (
    BYTES_PER_WEIGHT,
    base_digest,
    check_installed,
    check_quantizable,
    dequantized,
    loading_options,
    quantized_linears,
    settle,
)
from uld_ds.models.row_model import RowModel, choose_head_path
from uld_ds.recipe import LoraSettings, StudentSettings, parse_recipe
from uld_ds.runs.job import Job
from uld_ds.training.deepspeed_config import student_config
from uld_ds.training.engines import load_weights
from uld_ds.utils.distributed import Ranks

CPU = torch.device("cpu")
IDS = torch.arange(3, 35).reshape(2, 16)

# Quantiles of the normal distribution, scaled to [-1, 1], with an exact zero (arXiv 2305.14314, appendix E).
NF4 = torch.tensor(
    [-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0,
     0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0]
)  # fmt: skip


def settings_for(place: Path, precision: str = "fp32", **lora: Any) -> StudentSettings:
    adapters = LoraSettings(quantize="nf4", **{"rank": 4, **lora})
    return StudentSettings(model=str(place), precision=precision, lora=adapters, max_length=64)  # type: ignore[arg-type]


def loaded(settings: StudentSettings) -> Any:
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[settings.precision]
    options = loading_options(settings, AutoConfig.from_pretrained(settings.model), dtype, CPU)
    model = load_weights(Pretrained.at(str(settings.model), settings, "student"), settings, {}, **options)
    settle(model)
    return model


def save_tiny_gpt2(folder: Path) -> Path:
    torch.manual_seed(3)
    # (In 4 bits its matrices are the other way round.)
    config = GPT2Config(vocab_size=96, n_embd=64, n_layer=2, n_head=2, n_positions=64, initializer_range=0.3)
    GPT2LMHeadModel(config).save_pretrained(folder)
    zoo.unigram_t5().save_pretrained(folder)
    return folder


def wide_llama(folder: Path, rows: list[dict[str, str]], **options: Any) -> Path:
    """All its linear layers can be held in 4 bits but the last: the MLP is 96 wide."""
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 96,
    }
    return save_tiny_model(folder, rows, kind="bpe", vocab_size=400, seed=2, **sizes | options)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]]) -> Path:
    return wide_llama(tmp_path_factory.mktemp("wide"), rows)


def models(folder: Path, rows: list[dict[str, str]]) -> dict[str, Callable[[], Path]]:
    return {
        "llama": lambda: wide_llama(folder, rows),
        "tied": lambda: wide_llama(folder, rows, tied=True),
        "gpt2": lambda: save_tiny_gpt2(folder),
        "t5": lambda: save_tiny_t5(folder, zoo.unigram_t5(), seed=2, d_model=64),
    }


def inputs(kind: str) -> dict[str, Any]:
    return {"input_ids": IDS, "use_cache": False} | ({"decoder_input_ids": IDS} if kind == "t5" else {})


def reference(weight: Tensor) -> Tensor:
    """Blocks of 64 in row order, each number the nearest of 16 levels times the largest of its block."""
    blocks = weight.flatten().reshape(-1, 64)
    largest = blocks.abs().amax(1, keepdim=True)
    nearest = ((blocks / largest)[..., None] - NF4).abs().argmin(-1)
    return (NF4[nearest] * largest).reshape(weight.shape)


def test_what_four_bits_stand_for(student: Path) -> None:
    model = loaded(settings_for(student))
    whole = AutoModelForCausalLM.from_pretrained(student)
    plain = dequantized(model, model.state_dict())
    assert plain.keys() == whole.state_dict().keys()
    linears = quantized_linears(whole)
    for name, weight in whole.state_dict().items():
        if name.removesuffix(".weight") not in linears:
            assert torch.equal(plain[name], weight), name
            continue
        wanted = reference(weight)
        # The scales, quantized to 8 bits, are off by at most half a step of their own range.
        assert (plain[name] - wanted).abs().max() < 0.02 * weight.abs().max(), name
        # What the paper's levels cost weights that are distributed normally.
        assert (plain[name] - weight).norm() / weight.norm() == pytest.approx(0.092, abs=0.004), name


def test_bytes_of_a_weight(tmp_path: Path, rows: list[dict[str, str]]) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4, "num_key_value_heads": 4}
    place = save_tiny_model(tmp_path, rows, kind="bpe", vocab_size=400, seed=2, **sizes)
    model = loaded(settings_for(place))
    number = taken = 0
    for _, layer in model.named_modules():
        if (state := getattr(layer, "quant_state", None)) is not None:
            number += state.shape.numel()
            taken += layer.weight.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes
    assert number == 2 * (4 * 256 * 256 + 3 * 256 * 1024)
    assert taken == pytest.approx(BYTES_PER_WEIGHT * number, rel=1e-6)
    assert taken < 0.13 * 4 * number


@pytest.mark.parametrize("kind", ["llama", "tied", "gpt2", "t5"])
def test_merged_weights_are_what_was_trained(kind: str, tmp_path: Path, rows: list[dict[str, str]]) -> None:
    place = models(tmp_path / "student", rows)[kind]()
    auto: Any = AutoModelForSeq2SeqLM if kind == "t5" else AutoModelForCausalLM
    whole = auto.from_pretrained(place)
    base = loaded(settings_for(place))
    quantized = {name for name, layer in base.named_modules() if getattr(layer, "quant_state", None) is not None}
    assert quantized == set(quantized_linears(whole))
    targets = {"gpt2": ["c_attn", "c_fc"], "t5": ["q", "v", "wo"]}.get(kind, ["q_proj", "v_proj", "down_proj"])
    model = RowModel(shaped(base, settings_for(place, alpha=6.0, targets=targets)))
    choose_head_path(model, model, CPU, "student")
    assert model.direct_head
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            assert parameter.requires_grad is (".lora_" in name)
            if "lora_B" in name:
                parameter.normal_(std=0.2)

    def logits_of(lm: Any) -> Tensor:
        with torch.no_grad():
            return lm(**inputs(kind)).logits

    engine: Any = type("Engine", (), {"module": model, "zero_optimization_partition_weights": lambda self: False})()
    export_student(engine, AutoTokenizer.from_pretrained(place), tmp_path / "export", Ranks(0, 1))
    trained, evaluated = logits_of(model.lm.train()), logits_of(model.lm.eval())
    if kind != "gpt2":  # which has dropout
        assert torch.equal(trained, evaluated)
    exported, info = auto.from_pretrained(tmp_path / "export", output_loading_info=True)
    assert not any(info.values())
    scale = evaluated.abs().max()
    assert (logits_of(exported.eval()) - evaluated).abs().max() < 1e-5 * scale
    # The adapters change something, and on the weights that 4 bits were made of they would predict something else.
    assert (logits_of(whole.eval()) - evaluated).abs().max() > 0.05 * scale
    made, given = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "export", place))
    # What transformers 4 calls the rotary embeddings' numbers stands beside; nothing of 4 bits does.
    older = {"rope_theta": 10_000.0, "rope_scaling": None} if given.get("rope_parameters") else {}
    assert made == given | older


def test_in_bf16_merging_rounds_each_weight_once(tmp_path: Path, student: Path) -> None:
    base = loaded(settings_for(student, "bf16"))
    model = RowModel(shaped(base, settings_for(student, "bf16", targets=["q_proj", "down_proj"])).bfloat16())
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
        wanted = model.lm.eval()(**inputs("llama")).logits.float()
    engine: Any = type("Engine", (), {"module": model, "zero_optimization_partition_weights": lambda self: False})()
    export_student(engine, AutoTokenizer.from_pretrained(student), tmp_path / "export", Ranks(0, 1))
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    assert exported.dtype == torch.bfloat16
    with torch.no_grad():
        found = exported.eval()(**inputs("llama")).logits.float()
    # 0.021 here: a network of random weights passes every rounding on. The unadapted one is off by 0.9.
    assert (found - wanted).norm() < 0.05 * wanted.norm()
    lm = model.lm.get_base_model()
    plain = dequantized(lm, {name.replace(".base_layer.", "."): tensor for name, tensor in lm.state_dict().items()})
    for name, layer in lm.named_modules():
        if hasattr(layer, "lora_A"):
            down, up = (getattr(layer, part)["default"].weight.detach().float() for part in ("lora_A", "lora_B"))
            once = (plain[f"{name}.weight"].float() + layer.scaling["default"] * up @ down).bfloat16()
            assert torch.equal(exported.get_submodule(name).weight, once), name


def test_the_digest_is_of_what_is_frozen(tmp_path: Path, student: Path) -> None:
    def digest_of(place: Path, std: float = 0.0) -> str:
        model = shaped(loaded(settings_for(place)), settings_for(place))
        for name, parameter in model.named_parameters():
            if "lora_A" in name:
                torch.nn.init.normal_(parameter, std=std)
        return base_digest(model)

    other = AutoModelForCausalLM.from_pretrained(student)
    with torch.no_grad():
        # What is largest in a block decides its scale.
        other.model.layers[1].mlp.up_proj.weight.view(-1)[:64].mul_(1.5)
    other.save_pretrained(tmp_path)
    assert digest_of(student) == digest_of(student, std=1.0) != digest_of(tmp_path)


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, student: Path) -> None:
    monkeypatch.setattr("uld_ds.models.quantization.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^student.lora.quantize: 'nf4' needs bitsandbytes, .* 'uld-ds\[qlora\]'"):
        check_installed(settings_for(student))
    check_installed(StudentSettings(model=str(student), lora=LoraSettings(), max_length=64))


def test_what_cannot_be_held_in_four_bits(tiny_student: Path, student: Path) -> None:
    def model_of(place: Path) -> Any:
        return AutoModelForCausalLM.from_pretrained(place)

    key = "^student.lora.quantize: "
    narrow = model_of(tiny_student)  # whose MLP is 64 wide, and everything else 32
    assert quantized_linears(narrow) == [f"model.layers.{layer}.mlp.down_proj" for layer in (0, 1)]
    narrow.config.quantization_config = {"quant_method": "bitsandbytes"}
    with pytest.raises(UserError, match=f"{key}'nf4' of a model whose weights are quantized already; start from"):
        check_quantizable(settings_for(tiny_student), narrow)
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=96, n_embd=48, n_layer=1, n_head=2, n_positions=64, n_inner=96))
    with pytest.raises(UserError, match=f"{key}'gpt2' of this size has no linear layer with an input of a multiple"):
        check_quantizable(settings_for(student), gpt2)
    check_quantizable(settings_for(student), model_of(student))
    recipe = parse_recipe(
        {"run": {"name": "x"}, "teacher": {"model": "t"}, "training": {"steps": 1},
         "student": {"model": "s", "deepspeed": "student_zero3_cpu.json", "lora": {"quantize": "nf4"}},
         "data": {"train": {"source": "files", "path": "x"}}}
    )  # fmt: skip
    with pytest.raises(
        UserError, match=r"^student.deepspeed: 'student_zero3_cpu.json' shards weights .*zero2_cpu.json"
    ):
        student_config(recipe, on_gpu=False)
    student_settings = recipe.student.model_copy(update={"deepspeed": None})
    for on_gpu in (False, True):
        config = student_config(recipe.model_copy(update={"student": student_settings}), on_gpu=on_gpu)
        assert config["zero_optimization"]["stage"] == 2


# ---- through the engine, under ZeRO-2


def stopped_and_not(config: dict[str, Any], folder: str) -> dict[str, Any]:
    """Losses of the last two of four steps, of a run that went through and of one that began anew after two."""
    job, place = Job.from_config(config), Path(folder)
    engine, batcher = build(job)
    first = steps(engine, job, batcher, range(2))
    shard = host_state(engine.student, TrainState(step=2))
    held = {file: sorted(state.get("module", {})) for file, state in shard.items()}
    write_shard(place / "checkpoint_000000002", engine.ranks.rank, engine.ranks.size, shard)
    through = steps(engine, job, batcher, range(2, 4))
    export_student(engine.student, AutoTokenizer.from_pretrained(job.student), place / "export", engine.ranks)
    (window,) = [batcher.window([torch.arange(2).numpy()])]
    side = window[0].student
    after = engine.apply_at(side, side.answer_rows, lambda hidden, head: head.logits(hidden).clone())

    engine, batcher = build(job)
    engine.ranks.barrier()
    path, client = load_state(engine.student, place / "checkpoint_000000002", engine.ranks)
    assert path is not None
    assert client["uld_ds"]["step"] == 2
    again = steps(engine, job, batcher, range(2, 4))
    engine.student.module.frozen_digest = "another"
    refused = ""
    try:
        load_state(engine.student, place / "checkpoint_000000002", engine.ranks)
    except FinalError as error:
        refused = str(error)
    return {
        "first": first, "through": through, "again": again, "held": held, "after": after, "side": side,
        "refused": refused,
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_learns_goes_on_bit_for_bit_and_is_exported(
    tiny_recipe: dict[str, Any], tmp_path: Path, student: Path, precision: str
) -> None:
    recipe = variant(tiny_recipe, workers=2, micro=2, normalize="token", stage="zero2")
    recipe["student"] |= {"model": str(student), "precision": precision, "lora": {"rank": 4, "quantize": "nf4"}}
    config = prepared_job(recipe, tmp_path / "data").to_config()
    found, other = run_on_ranks(stopped_and_not, 2, config, str(tmp_path))
    assert found["again"] == found["through"] == other["again"]
    assert found["through"][-1] < found["first"][0], "nothing was learned"
    names = [name for module in found["held"].values() for name in module]
    assert len(names) == 28
    assert all(".lora_" in name for name in names)
    assert "was learned beside other 4-bit weights" in found["refused"]
    assert found["refused"] == other["refused"]
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "export").eval()
    side = found["side"]
    with torch.no_grad():
        logits = exported(side.input_ids, attention_mask=side.attention_mask).logits.flatten(0, 1)[side.answer_rows]
    far = (logits.float() - found["after"].float()).norm() / found["after"].float().norm()
    assert far < {"fp32": 1e-5, "bf16": 0.05}[precision]
