"""vLLM's own server as the teacher, built for CPUs, of a small random model: killed and started again."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.ranks import run_on_ranks
from tests.helpers.tiny import save_tiny_model
from tests.helpers.vllm_server import VllmServer
from uld_ds.errors import UserError
from uld_ds.models.pretrained import Pretrained
from uld_ds.recipe import NamedTeacherSettings, TeacherSettings
from uld_ds.teachers.served.trust import examine
from uld_ds.training.trainer import Trainer

# Sizes that the attention kernels of vLLM's build for CPUs know.
SIZES = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64}
TOP = 32


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]]) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    return save_tiny_model(folder, rows, kind="bpe", vocab_size=1000, seed=1, tied=True, **SIZES)


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    running = VllmServer(model, tmp_path_factory.mktemp("vllm") / "log", "--max-logprobs", str(TOP))
    try:
        running.start()
        yield running
    finally:
        running.kill()


def run(recipe: dict[str, Any]) -> dict[str, Any]:
    """Train to the end: losses, and held-out bits per byte of the teacher."""
    trainer = Trainer.from_recipe(recipe, callbacks=[])
    result = trainer.run()
    return {"losses": [step["train/loss"] for step in trainer.history], "bits": result.state.bits_teacher}


def recipes(tiny_recipe: dict[str, Any], model: Path, url: str) -> tuple[dict[str, Any], ...]:
    tiny_recipe["cluster"] |= {"workers": 1}
    tiny_recipe["student"] |= {"deepspeed": "student_zero2_cpu.json"}
    tiny_recipe["objective"] = {"ce": 1.0, "uld": 0.0, "likelihood": 0.5, "hybrid": 0.5, "top_ids": 16}
    online = tiny_recipe | {"teacher": tiny_recipe["teacher"] | {"model": str(model)}}
    place = {"url": url, "api": "vllm", "top": TOP, "patience": 900.0}
    served = {"model": str(model), "max_length": 256, "source": "served", "server": place}
    named = [tiny_recipe["run"] | {"name": name} for name in ("calm", "killed")]
    return online, *(tiny_recipe | {"run": own, "teacher": served} for own in named)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_vllm_teaches_and_may_be_killed(
    tiny_recipe: dict[str, Any], model: Path, server: VllmServer, tmp_path: Path
) -> None:
    online, calm, killed = recipes(tiny_recipe, model, server.url)
    theirs = run_on_ranks(run, 1, online)[0]
    ours = run_on_ranks(run, 1, calm)[0]
    # In fp32 an engine's log-probabilities are within 1e-3 of transformers' own.
    assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-3)
    assert ours["bits"] == pytest.approx(theirs["bits"], rel=1e-3)

    def restart() -> None:
        folder = tmp_path / "runs" / "killed" / "teacher"
        while not list(folder.glob("*.journal")):
            time.sleep(0.01)
        server.kill()
        server.start()

    thread = threading.Thread(target=restart, daemon=True)
    thread.start()
    again = run_on_ranks(run, 1, killed)[0]
    thread.join(900)
    assert not thread.is_alive()
    # What is in a batch beside a text moves it in fp32 by less than a step of the cache, mostly.
    assert again["losses"] == pytest.approx(ours["losses"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_what_vllm_is_asked_before_a_run(model: Path, server: VllmServer) -> None:
    def settings(**changes: Any) -> NamedTeacherSettings:
        place = {"url": server.url, "api": "vllm", "top": TOP} | changes
        tree = {"model": str(model), "max_length": 256, "source": "served", "server": place}
        return NamedTeacherSettings.only(TeacherSettings.model_validate(tree))

    teacher = Pretrained.from_settings(settings(), "teacher", runs=False)
    found = examine(settings(), teacher)
    assert (found.engine, found.model, found.top) == ("vLLM", "teacher", TOP) and found.version
    with pytest.raises(UserError, match=r"--max-logprobs 64"):
        examine(settings(top=64), teacher)
    with pytest.raises(UserError, match="serves teacher"):
        examine(settings(name="other"), teacher)
    with pytest.raises(UserError, match="says that it is vLLM; set it to vllm"):
        examine(settings(api="sglang"), teacher)
    longer = settings().model_copy(update={"max_length": 512})
    with pytest.raises(UserError, match=r"--max-model-len 513"):
        examine(longer, teacher)
