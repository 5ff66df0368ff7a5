"""vLLM behind an actor: what it is asked for, how its answers are read, and the real one where there is one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.helpers.tiny import save_tiny_model
from tests.helpers.vllm_python import vllm_python
from uld_ds.workers.vllm_engine import VllmEngine, VllmOptions, _answer

OPTIONS = VllmOptions(
    precision="fp32",
    max_length=96,
    batch_size=8,
    max_new_tokens=20,
    temperature=0.7,
    top_p=1.0,
    top_k=0,
    ends=(3, 7),
    gpus=0.0,
)
PROBE = """
import json, sys
import numpy as np
from uld_ds.workers.vllm_engine import VllmEngine, VllmOptions
asked = json.loads(sys.stdin.read())
engine = VllmEngine(VllmOptions(**asked["options"] | {"ends": tuple(asked["options"]["ends"])}))
found = []
for folder in asked["folders"]:
    engine.load(folder)
    answers = engine.sample([(seed, np.array(ids, np.int32)) for seed, ids in asked["prompts"]])
    found.append([(ids.tolist(), log_probs.tolist(), ended) for ids, log_probs, ended in answers])
print(json.dumps(found))
"""


def output(ids: list[int], log_probs: list[float], reason: str) -> Any:
    """As vLLM says it: for each token the sampled one, and others where it likes."""
    pairs = zip(ids, log_probs, strict=True)
    said = [{99: SimpleNamespace(logprob=-0.1), i: SimpleNamespace(logprob=p)} for i, p in pairs]
    return SimpleNamespace(token_ids=ids, logprobs=said, finish_reason=reason)


def test_answers_are_read_by_the_sampled_tokens() -> None:
    ids, log_probs, ended = _answer(output([5, 8, 3], [-1.5, -0.25, -2.0], "stop"))
    assert (ids.dtype, log_probs.dtype) == (np.int32, np.float32)
    assert (ids.tolist(), log_probs.tolist(), ended) == ([5, 8, 3], [-1.5, -0.25, -2.0], True)
    assert _answer(output([5], [-1.5], "length"))[2] is False


def test_the_first_weights_start_it_and_later_ones_go_into_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A stand-in for vLLM that notes how it is called."""
    (tmp_path / "config.json").write_text(
        json.dumps({"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4})
    )
    calls: list[Any] = []

    class LLM:
        def __init__(self, **options: Any) -> None:
            calls.append(("start", options))

        def collective_rpc(self, name: str, args: Any) -> None:
            calls.append((name, args))

        def generate(self, prompts: Any, parameters: Any, **options: Any) -> Any:
            calls.append(("generate", prompts, parameters))
            return [SimpleNamespace(outputs=[output([3], [-1.0], "stop")]) for _ in prompts]

    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=LLM, SamplingParams=lambda **options: options))
    for name in [name for name in os.environ if name.startswith(("VLLM_", "TORCH_COMPILE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(os, "environ", {**os.environ})
    engine = VllmEngine(OPTIONS)
    assert calls == []
    engine.load(str(tmp_path))
    engine.load("/two")
    answers = engine.sample([(2**62, np.array([5, 6], np.int32)), (4, np.array([7], np.int32))])
    assert [(ids.tolist(), ended) for ids, _, ended in answers] == [([3], True), ([3], True)]
    (_, started), taken, (_, prompts, parameters) = calls
    assert started["model"] == str(tmp_path) and started["dtype"] == "float32" and started["max_model_len"] == 96
    assert started["enforce_eager"] and not started["enable_prefix_caching"]
    assert taken == ("take_weights", ("/two",))
    assert prompts == [{"prompt_token_ids": [5, 6]}, {"prompt_token_ids": [7]}]
    assert [one["seed"] for one in parameters] == [2**62, 4]
    assert parameters[0]["temperature"] == 0.7 and parameters[0]["stop_token_ids"] == [3, 7]
    assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert os.environ["TORCH_COMPILE_DISABLE"] == "1"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("tied", [False, True])
def test_log_probs_of_a_running_engine_are_those_of_its_newest_weights(
    tied: bool, tmp_path: Path, rows: list[dict[str, str]]
) -> None:
    """By the real vLLM, in a Python that has it, against transformers in float64."""
    python = vllm_python()
    folders = [
        save_tiny_model(tmp_path / str(seed), rows, kind="bpe", vocab_size=500, seed=seed, tied=tied,
                        hidden_size=128, num_attention_heads=2, num_key_value_heads=1, head_dim=64)
        for seed in (1, 2)
    ]  # fmt: skip
    order = [folders[0], folders[1], folders[0]]
    prompts = [(2**62 + seed, list(range(4 + seed, 4 + 9 * seed))) for seed in range(1, 5)]
    asked = {"options": OPTIONS.__dict__, "folders": list(map(str, order)), "prompts": prompts}
    done = subprocess.run(
        [python, "-c", PROBE], input=json.dumps(asked), capture_output=True, text=True, timeout=800,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    for folder, answers in zip(order, found, strict=True):
        lm = AutoModelForCausalLM.from_pretrained(folder).double()
        for (_, prompt), (ids, log_probs, ended) in zip(prompts, answers, strict=True):
            whole = torch.tensor([prompt + ids])
            with torch.no_grad():
                of_all = lm(whole).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            right = of_all.gather(1, whole[0, len(prompt) :, None])[:, 0]
            np.testing.assert_allclose(log_probs, right.numpy(), atol=1e-4)
            assert ended == (ids[-1] in OPTIONS.ends) and not set(ids[:-1]) & set(OPTIONS.ends)
            assert ended or len(ids) == OPTIONS.max_new_tokens
    # The seeds decide: the same weights again have the same answers, others have others.
    assert [ids for ids, _, _ in found[0]] == [ids for ids, _, _ in found[2]]
    assert [ids for ids, _, _ in found[0]] != [ids for ids, _, _ in found[1]]
