"""What ZeRO-3 loads is what transformers loads: the same weights, the same logits, the same complaints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PegasusConfig,
    PegasusForConditionalGeneration,
    PreTrainedModel,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
)
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from tests.helpers import tokenizers_zoo as zoo
from tests.helpers.engines import CPU, build, prepared_job, variant, window_of
from tests.helpers.ranks import run_on_ranks
from tests.helpers.tiny import save_tiny_model, save_tiny_t5, save_with_own_head
from uld_ds.batches import SideBatch
from uld_ds.checkpointing.export import export_student
from uld_ds.errors import FinalError
from uld_ds.models.pretrained import Pretrained
from uld_ds.recipe import ModelSettings, TeacherSettings
from uld_ds.runs.job import Job
from uld_ds.training.engines import load_teacher, load_weights
from uld_ds.training.partitioned_loading import partitioned

CONFIG = {
    "train_micro_batch_size_per_gpu": 1,
    "gradient_accumulation_steps": 1,
    "zero_optimization": {"stage": 3},
}
NONE = torch.empty(0, dtype=torch.long)
IDS = torch.arange(5, 45)[None]


def edited(source: Path, target: Path, change: Any) -> Path:
    """A copy of a model's folder with other weights in its file."""
    shutil.copytree(source, target)
    weights = load_file(target / "model.safetensors")
    change(weights)
    save_file(weights, target / "model.safetensors", {"format": "pt"})
    return target


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]]) -> dict[str, Path]:
    """Models whose heads are, are not, and are not quite what their configurations say."""
    folder = tmp_path_factory.mktemp("models")
    tied = save_tiny_model(folder / "tied", rows, kind="bpe", vocab_size=600, seed=1, tied=True)
    t5 = save_tiny_t5(folder / "t5", zoo.unigram_t5(), seed=5)
    torch.manual_seed(3)
    sizes = {"d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "vocab_size": 60, "pad_token_id": 0}
    layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    PegasusForConditionalGeneration(PegasusConfig(**sizes | layers)).save_pretrained(folder / "sinusoids")
    small = {"hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
    recurrent = RecurrentGemmaConfig(vocab_size=60, lru_width=32, head_dim=8, initializer_range=0.3, **small)
    RecurrentGemmaForCausalLM(recurrent).save_pretrained(folder / "declared types")
    return {
        "tied": tied,
        "own head": save_with_own_head(tied, folder / "own head"),
        # transformers ties the embeddings to the head where the head alone is there.
        "head alone": edited(
            tied, folder / "head", lambda held: held.update({"lm_head.weight": held.pop("model.embed_tokens.weight")})
        ),
        "t5": t5,
        "t5, own head": save_with_own_head(t5, folder / "t5 own head"),
        # It computes its positions by the shape of a weight that is loaded already.
        "sinusoids": folder / "sinusoids",
        # It multiplies by a number that is bf16 in a model of fp32.
        "declared types": folder / "declared types",
    }


def plain_logits(folder: str | Path, side: SideBatch) -> tuple[Tensor, PreTrainedModel]:
    """Logits by transformers alone, at every position that answers have, and the model."""
    kind = AutoModelForCausalLM if side.encoder_ids is None else AutoModelForSeq2SeqLM
    model = kind.from_pretrained(folder, dtype=torch.float32).eval()
    own = {"input_ids": side.input_ids, "attention_mask": side.attention_mask, "use_cache": False}
    if side.encoder_ids is not None:
        own = {"input_ids": side.encoder_ids, "attention_mask": side.encoder_mask, "decoder_input_ids": side.input_ids}
    with torch.no_grad():
        return model(**own).logits.flatten(0, 1)[side.answer_rows], model


def of_teacher(folder: str) -> dict[str, Any]:
    """Logits of a teacher, sharded, whole, and by transformers alone; and whether it was sharded from the beginning."""
    encoder = [IDS, torch.ones_like(IDS)] if "t5" in folder or "sinusoids" in folder else []
    side = SideBatch(IDS, torch.ones_like(IDS), torch.arange(IDS.numel()), NONE, NONE, NONE, *encoder)
    found: dict[str, Any] = {}
    for sharding in ("zero3", "none"):
        settings = TeacherSettings(model=folder, precision="fp32", sharding=sharding)
        teacher = load_teacher(folder, settings, CONFIG, CPU)
        with torch.no_grad():
            found[sharding] = teacher(side, side.answer_rows, lambda hidden, head: head.logits(hidden).clone())
        found["direct"] = getattr(teacher, "module", teacher).direct_head
    found["plain"], model = plain_logits(folder, side)
    found["own head"] = model.get_output_embeddings().weight is not model.get_input_embeddings().weight
    early = load_weights(Pretrained(folder), ModelSettings(model=folder, precision="fp32"), CONFIG)
    found["early"] = all(hasattr(parameter, "ds_tensor") for parameter in early.parameters())
    return found


def of_teachers(folders: dict[str, str]) -> dict[str, dict[str, Any]]:
    return {name: of_teacher(folder) for name, folder in folders.items()}


def test_a_sharded_teacher_says_what_a_whole_one_says(models: dict[str, Path]) -> None:
    first, second = run_on_ranks(of_teachers, 2, {name: str(folder) for name, folder in models.items()})
    for name, found in first.items():
        assert found["early"] and found["direct"], name
        assert found["own head"] is ("own head" in name), name
        assert torch.equal(found["zero3"], found["none"]), name
        assert torch.equal(found["zero3"], second[name]["zero3"]), name
        # Rounding: they multiply with the head for some rows at a time.
        torch.testing.assert_close(found["zero3"], found["plain"], rtol=1e-6, atol=2e-6)
    off = (first["own head"]["plain"] - first["tied"]["plain"]).abs().max()
    assert off > 1, "the head that a file has of its own makes no difference"


def trained_and_exported(configs: dict[str, dict[str, Any]], target: str) -> dict[str, dict[str, Any]]:
    """Logits of students before and after a step, and the places of their exports."""
    found = {}
    for name, config in configs.items():
        job = Job.from_config(config)
        engine, batcher = build(job)
        side = batcher.window([np.arange(3)])[0].student

        def logits(student: Any = engine.student, side: SideBatch = side) -> Tensor:
            student.eval()
            with torch.no_grad():
                return student(side, side.answer_rows, lambda hidden, head: head.logits(hidden).clone())

        before = logits()
        engine.train_step(window_of(job, batcher, np.arange(8), engine.ranks))
        place = Path(target) / name
        export_student(engine.student, AutoTokenizer.from_pretrained(job.student), place, engine.ranks)
        found[name] = {"side": side, "before": before, "after": logits(), "export": place}
    return found


def test_a_student_keeps_a_head_of_its_own_at_every_stage(
    models: dict[str, Path], tiny_recipe: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "student_stage0_cpu.json").write_text(json.dumps({"zero_optimization": {"stage": 0}}))
    tiny_recipe["student"]["model"] = str(models["own head"])
    configs = {}
    for stage in ("stage0", "zero2", "zero3"):
        recipe = variant(tiny_recipe, workers=2, micro=2, normalize="token", stage=stage)
        if stage == "stage0":
            recipe["student"]["deepspeed"] = str(tmp_path / "student_stage0_cpu.json")
        configs[stage] = prepared_job(recipe, tmp_path / f"{stage}-data").to_config()
    found = run_on_ranks(trained_and_exported, 2, configs, str(tmp_path))[0]
    for stage, student in found.items():
        before, _ = plain_logits(models["own head"], student["side"])
        torch.testing.assert_close(student["before"], before, rtol=0, atol=1e-5)
        after, again = plain_logits(student["export"], student["side"])
        torch.testing.assert_close(student["after"], after, rtol=0, atol=1e-5)
        torch.testing.assert_close(student["after"], found["stage0"]["after"], rtol=0, atol=1e-4)
        assert (after - before).abs().max() > 1e-3, stage
        assert again.get_output_embeddings().weight is not again.get_input_embeddings().weight
        # Who goes by the configuration alone reads it right, too.
        assert json.loads((student["export"] / "config.json").read_text())["tie_word_embeddings"] is False


def complaints(folders: dict[str, str]) -> dict[str, list[str]]:
    """What is said of each model's files, partitioned and whole."""
    found: dict[str, list[str]] = {}
    for name, folder in folders.items():
        for config in (CONFIG, {}):
            with pytest.raises(FinalError) as caught:
                load_weights(Pretrained(folder), ModelSettings(model=folder, precision="fp32"), config)
            found.setdefault(name, []).append(str(caught.value).removeprefix(folder))
            # With the error at hand, and so all that its frames hold.
            assert not is_deepspeed_zero3_enabled()
    return found


def test_files_that_do_not_fit_are_refused_alike(models: dict[str, Path], tiny_teacher: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "one head short": lambda held: held.pop("lm_head.weight"),
        "more layers": lambda held: held.update({"model.layers.2.input_layernorm.weight": torch.ones(32)}),
        "wider": lambda held: held.update({"model.norm.weight": torch.ones(33)}),
    }
    folders = {name: str(edited(tiny_teacher, tmp_path / name, change)) for name, change in changes.items()}
    first, second = run_on_ranks(complaints, 2, folders)
    expected = {
        "one head short": ": missing keys while loading (1): lm_head.weight",
        "more layers": ": unexpected keys while loading (1): model.layers.2.input_layernorm.weight",
        "wider": ": mismatched keys while loading (1): model.norm.weight [33] for [32]",
    }
    assert first == second == {name: [text, text] for name, text in expected.items()}


def failing(folder: str) -> list[bool]:
    """Whether transformers partitions models, whether it does after that has failed, and whether it ties as ever."""
    tie = PreTrainedModel.tie_weights
    with partitioned(CONFIG, torch.nn.Module()):
        alive = is_deepspeed_zero3_enabled()
    with pytest.raises(OSError) as kept, partitioned(CONFIG, torch.nn.Module()):
        Pretrained(f"{folder}/nowhere").load()
    assert kept.tb is not None
    return [alive, is_deepspeed_zero3_enabled(), PreTrainedModel.tie_weights is tie]


def test_nothing_is_left_of_a_load_that_failed(models: dict[str, Path]) -> None:
    assert run_on_ranks(failing, 1, str(models["tied"])) == [[True, False, True]]
