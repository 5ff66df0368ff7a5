"""Under ZeRO-3 a head is gathered once for all chunks of a forward, by DeepSpeed's own hooks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import deepspeed
import peft
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.helpers.ranks import run_on_ranks
from tests.helpers.segments import micro_batch_of, teacher_of
from uld_ds.batches import SegmentRows, SideBatch
from uld_ds.losses.normalization import RowWeights
from uld_ds.losses.objective import Objective
from uld_ds.models import row_model
from uld_ds.models.row_model import Head, RowModel, choose_head_path
from uld_ds.recipe import ObjectiveSettings, parse_recipe
from uld_ds.spectrum.spectrum import Spectrum
from uld_ds.training.deepspeed_config import student_config

ROWS_PER_CHUNK = 3


class Batch:
    """Two sequences of which 20 positions count; at every second one a segment begins."""

    def __init__(self, vocab_size: int) -> None:
        torch.manual_seed(0)
        ids, nothing = torch.randint(0, vocab_size, (2, 12)), torch.empty(0, dtype=torch.long)
        self.rows = torch.arange(20)
        self.tokens = SideBatch(ids, torch.ones_like(ids), self.rows, ids.flatten()[1:21], nothing, nothing)
        self.segments = SegmentRows(self.rows[::2], self.rows[1::2], nothing, nothing, nothing, nothing)
        self.spectrum = Spectrum.from_logits(torch.randn(10, 300))
        self.weights = RowWeights(torch.full((20,), 1 / 20), torch.full((10,), 1 / 10))

    def loss(self, hidden: Tensor, head: Head) -> Tensor:
        loss, _ = Objective(ObjectiveSettings())(
            hidden, head, micro_batch_of(self.tokens, self.segments), teacher_of(self.spectrum), self.weights
        )
        return loss


def count_gathers(engine: Any, names: Iterable[str]) -> Counter[str]:
    """Counts from now on how often each of some parameters is gathered, alone or with others."""
    named = dict(engine.module.named_parameters())
    wanted = {named[name].ds_id: name for name in names}
    counts: Counter[str] = Counter()
    for parameter in named.values():

        def gather(
            params: Iterable[Any], *rest: Any, _gather: Any = parameter.all_gather_coalesced, **options: Any
        ) -> Any:
            params = list(params)
            counts.update(wanted[p.ds_id] for p in params if p.ds_id in wanted)
            return _gather(params, *rest, **options)

        parameter.all_gather_coalesced = gather
    return counts


def taken(counts: Counter[str]) -> dict[str, int]:
    """What was counted, and zero again."""
    seen = dict(counts)
    counts.clear()
    return seen


def gathers(recipe: dict[str, Any], place: Path, with_lora: bool) -> dict[str, Any]:
    lm = AutoModelForCausalLM.from_pretrained(place)
    if with_lora:
        lm.add_adapter(peft.LoraConfig(r=4, target_modules=["lm_head"], init_lora_weights=False))
        names = [f"lm.lm_head.{part}.weight" for part in ("base_layer", "lora_A.default", "lora_B.default")]
    else:
        names = ["lm.lm_head.weight"]
    config = student_config(parse_recipe(recipe), on_gpu=False)
    # Small parameters would stay whole for good: A and B of the adapter, and the layer norms.
    config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    model = RowModel(lm)
    trained = [p for p in model.parameters() if p.requires_grad]
    engine, *_ = deepspeed.initialize(model=model, model_parameters=trained, config=config)
    engine.eval()
    choose_head_path(model, engine, torch.device("cpu"), "student")
    row_model._CHUNK_ELEMENTS_CPU = ROWS_PER_CHUNK * lm.config.vocab_size
    batch, num_chunks = Batch(lm.config.vocab_size), []

    def consume(hidden: Tensor, head: Head) -> Tensor:
        num_chunks.append(len(list(head.chunks(hidden))))
        return batch.loss(hidden, head)

    counts = count_gathers(engine, names)
    outcome: dict[str, Any] = {"names": names, "direct": model.direct_head}
    with torch.no_grad():
        engine(batch.tokens, batch.rows, consume)
    outcome["no gradient"] = taken(counts)
    engine.train()
    for micro_batch in ("first", "second"):
        loss = engine(batch.tokens, batch.rows, consume)
        outcome[f"{micro_batch} forward"] = taken(counts)
        engine.backward(loss)
        outcome[f"{micro_batch} backward"] = taken(counts)
        engine.step()
        outcome[f"{micro_batch} step"] = taken(counts)
    return outcome | {"chunks": num_chunks}


def with_and_without_lora(recipe: dict[str, Any], place: Path) -> list[dict[str, Any]]:
    """Both in one process: most of a process's life is importing."""
    return [gathers(recipe, place, with_lora) for with_lora in (False, True)]


def test_a_head_is_gathered_once_for_all_its_chunks(tiny_recipe: dict[str, Any], tiny_student: Path) -> None:
    tiny_recipe["student"]["deepspeed"] = "student_zero3_cpu.json"
    for of_rank in run_on_ranks(with_and_without_lora, 2, tiny_recipe, tiny_student):
        for found, num_parts in zip(of_rank, (1, 3), strict=True):
            assert found["direct"]
            assert found["chunks"] == [7, 7, 7]
            once = dict.fromkeys(found["names"], 1)
            assert len(once) == num_parts
            assert found["no gradient"] == once
            for micro_batch in ("first", "second"):
                assert found[f"{micro_batch} forward"] == once
                # DeepSpeed gathers what a module owns before its backward, whether or not it is read there.
                assert found[f"{micro_batch} backward"] == once
                assert found[f"{micro_batch} step"] == {}
