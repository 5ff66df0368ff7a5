"""LoRA over the output head: reached, differentiated chunk by chunk, gathered by ZeRO-3's own hooks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import deepspeed
import peft
import pytest
import torch
from deepspeed.utils import safe_get_full_grad
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from tests.helpers.ranks import run_on_ranks
from tests.helpers.segments import micro_batch_of, teacher_of
from uld_ds.batches import SegmentRows, SideBatch
from uld_ds.losses import chunked
from uld_ds.losses.normalization import RowWeights
from uld_ds.losses.objective import Objective
from uld_ds.models import output_head, row_model
from uld_ds.models.output_head import LowRank
from uld_ds.models.row_model import Head, LogitMap, RowModel, choose_head_path
from uld_ds.recipe import ObjectiveSettings
from uld_ds.spectrum.spectrum import Spectrum

CPU = torch.device("cpu")
NOTHING = torch.empty(0, dtype=torch.long)
ANSWERS, HIDDEN, VOCAB, TEACHER_VOCAB = 21, 16, 211, 307
SEGMENTS = torch.tensor([0, 2, 3, 7, 8, 12, 13, 14, 20])


def tokens(input_ids: Tensor, answer_rows: Tensor, answer_ids: Tensor) -> SideBatch:
    return SideBatch(input_ids, torch.ones_like(input_ids), answer_rows, answer_ids, NOTHING, NOTHING)


def loss_of(settings: ObjectiveSettings, hidden: Tensor, head: Head, ids: Tensor, teacher: Tensor) -> Tensor:
    """The objective where segments begin at SEGMENTS, all rows weighed alike."""
    others = torch.tensor([row for row in range(len(ids)) if row not in SEGMENTS.tolist()])
    segments = SegmentRows(SEGMENTS, others, NOTHING, NOTHING, NOTHING, NOTHING)
    weights = RowWeights(torch.full((len(ids),), 1 / len(ids)), torch.full((len(SEGMENTS),), 1 / len(SEGMENTS)))
    batch = tokens(NOTHING, NOTHING, ids)
    spectrum = Spectrum.from_logits(teacher, temperature=settings.teacher_temperature)
    loss, _ = Objective(settings)(hidden, head, micro_batch_of(batch, segments), teacher_of(spectrum), weights)
    return loss


def reference_loss(settings: ObjectiveSettings, logits: Tensor, ids: Tensor, teacher: Tensor) -> Tensor:
    """The same by sorting, in float64."""
    logits = logits.double()
    p = (logits[SEGMENTS] / settings.student_temperature).softmax(-1).sort(-1, descending=True).values
    q = (teacher.double() / settings.teacher_temperature).softmax(-1).sort(-1, descending=True).values
    width = max(p.shape[1], q.shape[1])
    distance = (F.pad(p, (0, width - p.shape[1])) - F.pad(q, (0, width - q.shape[1]))).abs().sum(-1)
    return settings.ce * F.cross_entropy(logits, ids) + settings.uld * distance.mean()


def relative_error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


# --- the head by itself -------------------------------------------------------------------------------------------


def tensors(ranks: int) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        "hidden": torch.randn(ANSWERS, HIDDEN),
        "weight": torch.randn(VOCAB, HIDDEN) * 0.8,
        "bias": torch.randn(VOCAB),
        "down": torch.randn(ranks, HIDDEN) * 0.5,
        "up": torch.randn(VOCAB, ranks) * 0.5,
    }


IDS = torch.randint(0, VOCAB, (ANSWERS,), generator=torch.Generator().manual_seed(1))
TEACHER = 3 * torch.randn(len(SEGMENTS), TEACHER_VOCAB, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("rows_per_chunk", [1000, 4], ids=["one chunk", "six chunks"])
@pytest.mark.parametrize("learned", [("hidden", "down", "up"), ("weight", "bias", "down", "up"), ("up",), ("hidden",)])
@pytest.mark.parametrize("logit_map", [LogitMap(), LogitMap(scale=0.5, cap=6.0)], ids=["linear", "capped"])
@pytest.mark.parametrize("options", [{"uld": 1.5}, {"student_temperature": 2.0}], ids=["closed form", "temperature"])
def test_gradients_equal_autograd_in_float64(
    rows_per_chunk: int,
    learned: tuple[str, ...],
    logit_map: LogitMap,
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(row_model, "_CHUNK_ELEMENTS_CPU", rows_per_chunk * VOCAB)
    settings = ObjectiveSettings(**options)
    scale = torch.tensor([2.0, 2.0, 0.25])
    found = {name: tensor.requires_grad_(name in learned) for name, tensor in tensors(3).items()}
    wanted = {name: tensor.double().requires_grad_(name in learned) for name, tensor in tensors(3).items()}

    head = Head(found["weight"], found["bias"], logit_map, LowRank(found["down"], found["up"], scale))
    loss = loss_of(settings, found["hidden"], head, IDS, TEACHER)
    (3 * loss).backward()

    w = wanted
    delta = w["up"] @ torch.diag(scale.double()) @ w["down"]
    z = w["hidden"] @ (w["weight"] + delta).T + w["bias"]
    z = logit_map.scale * z
    z = z if logit_map.cap is None else logit_map.cap * torch.tanh(z / logit_map.cap)
    expected = reference_loss(settings, z, IDS, TEACHER)
    (3 * expected).backward()

    assert loss.item() == pytest.approx(expected.item(), rel=2e-5)
    for name, tensor in found.items():
        gradient, reference = tensor.grad, wanted[name].grad
        if name not in learned:
            assert gradient is None, name
            continue
        assert gradient is not None and reference is not None
        assert relative_error(gradient, reference) < 1e-4, name


def test_nothing_is_computed_for_what_is_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []
    add = chunked._add_product

    def noted(total: Tensor, left: Tensor, right: Tensor) -> None:
        shapes.append(tuple(total.shape))
        add(total, left, right)

    monkeypatch.setattr(chunked, "_add_product", noted)
    parts = tensors(3)
    for frozen, low_rank in [(True, True), (True, False), (False, True)]:
        shapes.clear()
        weight = parts["weight"].clone().requires_grad_(not frozen)
        matrices = [parts[name].clone().requires_grad_() for name in ("down", "up")]
        head = Head(weight, None, LogitMap(), LowRank(*matrices, torch.ones(3)) if low_rank else None)
        loss_of(ObjectiveSettings(), parts["hidden"].clone().requires_grad_(), head, IDS, TEACHER).backward()
        expected = [] if frozen else [(VOCAB, HIDDEN)]
        assert set(shapes) == set([*expected, (VOCAB, 3), (3, HIDDEN)] if low_rank else expected)


def test_gradients_of_many_bf16_chunks_add_up_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    # A thousand chunks of the same rows: a bf16 sum stops growing at 256 of them.
    monkeypatch.setattr(row_model, "_CHUNK_ELEMENTS_CPU", ANSWERS * VOCAB)
    gradients: dict[int, list[Tensor]] = {}
    for repeats in (1, 1000):
        parts = {name: tensor.bfloat16() for name, tensor in tensors(3).items()}
        low_rank = LowRank(parts["down"].requires_grad_(), parts["up"].requires_grad_(), torch.tensor([0.3] * 3))
        head = Head(parts["weight"], None, LogitMap(), low_rank)
        ids, hidden = IDS.repeat(repeats), parts["hidden"].repeat(repeats, 1)
        loss_of(ObjectiveSettings(uld=0.0), hidden, head, ids, TEACHER).backward()
        gradients[repeats] = [tensor.grad for tensor in (low_rank.down, low_rank.up) if tensor.grad is not None]
    assert len(gradients[1]) == 2
    for many, one in zip(gradients[1000], gradients[1], strict=True):
        assert many.dtype == torch.bfloat16
        # The rows' gradients are rounded to bf16, at another scale each time.
        assert relative_error(many, one) < 1e-2


# --- PEFT's layers ------------------------------------------------------------------------------------------------

# Several adapters on one model are what some of these tests are about.
pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute")
TARGETS = ["lm_head", "q_proj"]
PROMPT = torch.arange(3, 3 + 2 * 12).reshape(2, 12)
ROWS = torch.tensor([0, 2, 5, 1, 13, 14, 15, 16, 17, 18, 19, 20, 21, 6, 7, 8, 9, 10, 3, 4, 22])


def lora(**options: Any) -> peft.LoraConfig:
    return peft.LoraConfig(r=4, lora_alpha=6, target_modules=TARGETS, **options)


def adapted(place: Path, *configs: peft.LoraConfig, fill: bool = True) -> Any:
    """A model with one adapter per configuration, all active, every B away from zero unless ``fill`` is False."""
    torch.manual_seed(5)
    model: Any = AutoModelForCausalLM.from_pretrained(place)
    names = [f"adapter_{number}" for number in range(len(configs))]
    for name, config in zip(names, configs, strict=True):
        model.add_adapter(config, adapter_name=name)
    model.set_adapter(names)
    if fill:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.3)
    return model


def opened(lm: Any) -> RowModel:
    model = RowModel(lm)
    choose_head_path(model, model, CPU, "student")
    return model


def both_logits(model: RowModel) -> tuple[Tensor, Tensor]:
    """At ROWS: the model's own, and those made of hidden states and the lent head."""
    model.eval()
    with torch.no_grad():
        whole = model.lm(PROMPT).logits.flatten(0, 1)[ROWS]
        return whole, model(tokens(PROMPT, ROWS, NOTHING), ROWS, lambda hidden, head: head.logits(hidden).clone())


@pytest.mark.parametrize(
    "configs",
    [[lora()], [lora(), lora(use_rslora=True)], [lora(lora_dropout=0.0, init_lora_weights="gaussian")]],
    ids=["one adapter", "two adapters", "gaussian"],
)
def test_logits_are_those_of_the_model(configs: list[peft.LoraConfig], tiny_student: Path) -> None:
    model = opened(adapted(tiny_student, *configs))
    assert model.direct_head
    whole, lent = both_logits(model)
    torch.testing.assert_close(lent, whole, rtol=0, atol=2e-5)
    plain = AutoModelForCausalLM.from_pretrained(tiny_student)(PROMPT).logits.flatten(0, 1)[ROWS]
    assert (lent - plain).abs().max() > 0.5, "the adapters changed nothing"


def test_a_model_wrapped_by_peft_is_reached_too(tiny_student: Path) -> None:
    torch.manual_seed(5)
    wrapped = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_student), lora(init_lora_weights=False))
    model = opened(wrapped)
    assert model.direct_head
    whole, lent = both_logits(model)
    torch.testing.assert_close(lent, whole, rtol=0, atol=2e-5)


def test_adapters_in_fp32_beside_a_base_in_bf16(tiny_student: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_student, dtype=torch.bfloat16)
    model = opened(peft.get_peft_model(base, lora(init_lora_weights=False)))
    head = model.lm.get_output_embeddings()
    assert head.lora_B["default"].weight.dtype == torch.float32  # type: ignore[union-attr,index]
    assert model.direct_head
    whole, lent = both_logits(model)
    assert lent.dtype == whole.dtype == torch.bfloat16
    assert relative_error(lent, whole) < 5e-3


@pytest.mark.parametrize("state", ["disabled", "merged", "one of two active"])
def test_adapters_that_are_not_active_add_nothing(state: str, tiny_student: Path) -> None:
    lm = adapted(tiny_student, lora(), lora())
    head = lm.get_output_embeddings()
    if state == "disabled":
        lm.disable_adapters()
    elif state == "merged":
        head.merge()
    else:
        lm.set_adapter("adapter_1")
    model = opened(lm)
    assert model.direct_head
    whole, lent = both_logits(model)
    torch.testing.assert_close(lent, whole, rtol=0, atol=2e-5)


def test_a_switch_of_adapters_after_the_choice_is_followed(tiny_student: Path) -> None:
    lm = adapted(tiny_student, lora(), lora(lora_dropout=0.5))
    lm.set_adapter("adapter_0")
    model = opened(lm)
    assert model.direct_head
    lm.set_adapter("adapter_1")  # with dropout: its head cannot be lent any more
    whole, lent = both_logits(model)
    torch.testing.assert_close(lent, whole, rtol=0, atol=2e-5)
    widths = model(tokens(PROMPT, ROWS, NOTHING), ROWS, lambda hidden, head: hidden.shape[1])
    assert widths == lm.config.vocab_size


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (lora(lora_dropout=0.1), "has an adapter 'adapter_0' with dropout"),
        (lora(use_dora=True), "has an adapter 'adapter_0' that is not plain LoRA"),
    ],
    ids=["dropout", "DoRA"],
)
def test_what_cannot_be_lent_falls_back_to_whole_logits(
    config: peft.LoraConfig, reason: str, tiny_student: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = opened(adapted(tiny_student, config))
    assert not model.direct_head
    assert f"student: its output head {reason}" in caplog.text
    whole, given = both_logits(model)
    torch.testing.assert_close(given, whole, rtol=0, atol=0)


@pytest.mark.parametrize("fill", [True, False], ids=["B filled", "B still zero"])
@pytest.mark.parametrize("fault", ["scale", "no adapters"])
def test_the_measurement_notices_a_wrong_low_rank_part(
    fault: str, fill: bool, tiny_student: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lm = adapted(tiny_student, lora(), fill=fill)
    joined = output_head._joined

    def wrong(head: nn.Module, parts: Any) -> Any:
        whole = joined(head, parts)
        if fault == "no adapters":
            return whole._replace(low_rank=None)
        return whole._replace(low_rank=LowRank(whole.low_rank.down, whole.low_rank.up, whole.low_rank.scale * 1.5))

    monkeypatch.setattr(output_head, "_joined", wrong)
    model = opened(lm)
    assert not model.direct_head
    assert "student: logits are not head(body)" in caplog.text
    # ... and left everything as it was.
    whole, given = both_logits(model)
    torch.testing.assert_close(given, whole, rtol=0, atol=0)
    ups = [p for name, p in lm.named_parameters() if "lm_head.lora_B" in name]
    assert [bool((up == 0).all()) for up in ups] == [not fill]


# --- under ZeRO-3 -------------------------------------------------------------------------------------------------


def gradients_under_zero3(place: Path, configs: list[peft.LoraConfig]) -> dict[str, Any]:
    """Loss and gradients of one micro-batch, by an engine that keeps every parameter in shards."""
    row_model._CHUNK_ELEMENTS_CPU = 6 * 400  # several chunks
    model = RowModel(adapted(place, *configs))
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=[p for p in model.parameters() if p.requires_grad],
        config={
            "train_micro_batch_size_per_gpu": 1,
            "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}},
            "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0, "stage3_max_reuse_distance": 0},
            "gradient_clipping": 0.0,
        },
    )
    engine.eval()
    choose_head_path(model, engine, CPU, "student")
    engine.train()
    batch = tokens(PROMPT, ROWS, IDS % 400)

    def consume(hidden: Tensor, head: Head) -> Tensor:
        return loss_of(ObjectiveSettings(uld=1.5), hidden, head, batch.answer_ids, TEACHER)

    loss = engine(batch, ROWS, consume)
    engine.backward(loss)
    gradients = {name: safe_get_full_grad(p) for name, p in model.named_parameters() if p.requires_grad}
    return {
        "loss": loss.item(),
        "direct": model.direct_head,
        "gradients": {name.removeprefix("lm."): gradient.clone() for name, gradient in gradients.items()},
        "in_shards": all(p.ds_tensor.numel() < p.ds_numel for p in model.parameters()),
    }


def one_and_two_adapters(place: Path) -> list[dict[str, Any]]:
    """Both in one process: most of a process's life is importing."""
    return [gradients_under_zero3(place, configs) for configs in ADAPTERS]


ADAPTERS = [[lora()], [lora(), lora(use_rslora=True)]]


def test_gradients_under_zero3_are_those_of_an_unsharded_model(tiny_student: Path) -> None:
    outcomes = run_on_ranks(one_and_two_adapters, 2, tiny_student)
    for number, configs in enumerate(ADAPTERS):
        reference = adapted(tiny_student, *configs).double()
        logits = reference(PROMPT).logits.flatten(0, 1)[ROWS]
        loss = reference_loss(ObjectiveSettings(uld=1.5), logits, IDS % 400, TEACHER)
        loss.backward()
        wanted = {name: p.grad for name, p in reference.named_parameters() if p.requires_grad}
        assert sum("lm_head.lora" in name for name in wanted) == 2 * len(configs)
        for found in (of_rank[number] for of_rank in outcomes):
            assert found["direct"] and found["in_shards"]
            assert found["loss"] == pytest.approx(loss.item(), rel=1e-5)
            assert found["gradients"].keys() == wanted.keys()
            for name, gradient in found["gradients"].items():
                assert relative_error(gradient, wanted[name]) < 1e-4, name
