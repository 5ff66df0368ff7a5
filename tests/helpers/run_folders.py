"""Folders of runs as a run leaves them, written without one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from tests.helpers import tokenizers_zoo as zoo
from uld_ds.reporting.alignment_view import view_alignment
from uld_ds.runs.progress import ProgressWriter

SECONDS = {"data": 0.5, "teacher": 4.0, "reduce": 0.25, "student": 1.0, "loss": 1.0, "backward": 2.0, "step": 0.25}


def metrics(loss: float, seconds: float = 10.0) -> dict[str, float]:
    parts = {"train/loss": loss, "train/ce": loss - 0.1, "train/uld": 0.2, "train/bits_per_byte": 2.5}
    phases = {f"seconds/{phase}": value for phase, value in SECONDS.items()}
    throughput = {"tokens_per_second": 300.0, "student_padding": 0.46, "seconds/total": seconds}
    return {**parts, **throughput, **phases}


def running_run(tmp_path: Path) -> Path:
    """Three steps of ten, a checkpoint after the second."""
    folder = tmp_path / "runs" / "first"
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text("run: {name: first}\n")
    writer = ProgressWriter(folder / "progress.jsonl")
    writer.stage("loading the teacher")
    writer.start(0, 10, workers=2)
    writer.evaluation(0, "before", 4.0)
    for step in (1, 2, 3):
        writer.step(step, 10, metrics(3.0 - step / 10))
        if step == 2:
            writer.checkpoint(2, 1.5)
            (folder / "checkpoint_000000002").mkdir()
    return folder


RESULT: dict[str, Any] = {
    "run_id": "abc",
    "model_name": "small",
    "model_version": "3",
    "bits_per_byte": {"before": 4.0, "after": 3.0, "teacher": 2.0},
    "alignment_rate": 0.75,
}


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def distribution(p: float) -> dict[str, Any]:
    return {"points": [[1, p], [2, (1 - p) / 2], [4, 1e-4]], "right": p, "likeliest": [["<b>", p], [" x\n", 7e-4]]}


def finished_run(tmp_path: Path) -> Path:
    """A finished run with everything in its folder."""
    folder = tmp_path / "first"
    (folder / "report").mkdir(parents=True)
    recipe = {"run": {"name": "first"}, "teacher": {"model": "org/large"}, "student": {"model": "org/<small>"}}
    recipe |= {
        "registry": {"model_name": None},
        "data": {"train": {"source": "files", "path": ["/a/b/c/rows.jsonl", "more.jsonl"]}},
    }
    recipe |= {"objective": {"ce": 1.0, "uld": 0.3, "hybrid": 0.0}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    writer = ProgressWriter(folder / "progress.jsonl")
    writer.start(0, 3, workers=1)
    writer.evaluation(0, "teacher", 2.0)
    writer.evaluation(0, "before", 4.0)
    for step in (1, 2, 3):
        writer.step(step, 3, metrics(3.0 - step / 10))
    writer.evaluation(3, "after", 3.0)
    calibration = {"tokens": 50, "error": 0.125, "bins": [{"tokens": 50, "confidence": 0.5, "accuracy": 0.375}]}
    kept: dict[str, Any] = {
        **{who: {"spectra": [distribution(p)], "calibration": calibration} for who, p in MODELS.items()},
        "places": [{"prompt": "Q", "before": "the long\n\n <i>", "text": "er"}],
        "alignment": [view_alignment(zoo.characters(), zoo.plain_bytes(), "aé", teacher_name="org/large").to_json()],
        "answers": [
            {
                "prompt": "What?",
                "given": "That.",
                "before": "zz",
                "after": " ",
                "teacher": "That & more.",
                "teacher_reasoning": "So <it> is.",
            }
        ],
        "lineage": {
            "teacher": "org/large",
            "same_tokenizer": False,
            "uld_weight": 0.3,
            "hybrid_weight": 0.0,
            "data_digest": "d" * 64,
            "code_revision": f"{COMMIT}-dirty",
        },
    }
    for name, content in kept.items():
        (folder / "report" / f"{name}.json").write_text(json.dumps(content))
    (folder / "result.json").write_text(json.dumps(RESULT))
    return folder


MODELS = {"before": 0.2, "teacher": 0.6, "after": 0.4}


def make_run(
    folder: Path,
    name: str,
    *,
    bits: float = 2.5,
    f1: tuple[float, float, float] | None = None,
    tokens: int | None = 100,
    finished: bool = True,
    **recipe: Any,
) -> Path:
    place = folder / name
    place.mkdir()
    tree = {
        "teacher": {"model": "org/large"},
        "student": {"model": None, "from_config": {"model_type": "llama"}},
        "objective": {"ce": 1.0, "uld": 0.3, "alignment": "segments"},
        "data": {"eval": {"path": "held_out.jsonl"}},
    }
    (place / "recipe.yaml").write_text(yaml.safe_dump(tree | recipe))
    writer = ProgressWriter(place / "progress.jsonl")
    writer.start(0, 4, 2)
    writer.evaluation(0, "teacher", 1.2)
    writer.evaluation(0, "before", 4.0)
    for step in (1, 2):
        writer.step(step, 4, {"seconds/total": 1.0, **({} if tokens is None else {"student_tokens": tokens})})
    writer.evaluation(2, "student", 3.0)
    # Killed and gone on from the checkpoint of step 1: step 2 is done again.
    writer.start(1, 4, 2)
    for step in (2, 3, 4):
        writer.step(step, 4, {"seconds/total": 1.0, **({} if tokens is None else {"student_tokens": tokens})})
    writer.evaluation(2, "student", 3.0)
    writer.evaluation(4, "after", bits)
    if finished:
        result = {"bits_per_byte": {"before": 4.0, "after": bits, "teacher": 1.2}, "steps": 4, "wall_seconds": 61.4}
        (place / "result.json").write_text(json.dumps(result))
        writer.end("FINISHED")
    if f1 is not None:
        beside = folder / f"{name}-evaluation"
        beside.mkdir()
        facts = {
            "scores": {"f1": f1[0]},
            "intervals": {"f1": list(f1[1:])},
            "bits_per_byte": {"mean": bits + 0.01, "low": bits - 0.1, "high": bits + 0.1},
        }
        (beside / "evaluation.json").write_text(json.dumps(facts))
    return place


def own_round(number: int, every: int = 25, **facts: Any) -> dict[str, Any]:
    """The facts of a round of own answers, which ``facts`` replace."""
    seconds = {"weights": 0.5, "sampling": 6.0, "alignment": 1.0, "writing": 0.25, "waiting": 0.25}
    return {
        "round": number,
        "step": number * every,
        "answers": 100,
        "usable": 97,
        "left_out": {"empty": 2, "not UTF-8": 1},
        "ended": 0.5,
        "tokens": 40.0 - number,
        "bytes": 120.0,
        "distinct": 0.96,
        "repeated": 0.04,
        "student_nats_per_byte": 0.75,
        "seconds": seconds,
        "tokens_per_second": 650.0,
        "held_up": None,
    } | facts


def own_answer(prompt: str, answer: str, nats: tuple[float, float], *, ended: bool = True) -> dict[str, Any]:
    """One own answer as text; ``nats`` per byte of student and teacher."""
    count = len(answer.encode())
    known = {"student_nats": nats[0] * count, "teacher_nats": nats[1] * count}
    return {"prompt": prompt, "answer": answer, "ended": ended, "bytes": count} | known


def add_rounds(progress: Path, rounds: int, *, every: int = 25, judged: int | None = None) -> ProgressWriter:
    """Add rounds of own answers to a run's progress; KL(student, teacher) falls by 0.1 nats per byte a round."""
    writer = ProgressWriter(progress)
    for number in range(rounds):
        writer.round(own_round(number, every), every=every, warnings={})
        answers = [own_answer(f"What is {n} <+> {number}?", f"It is {n + number}.", (0.5, 1.0)) for n in range(3)]
        writer.rollout_answers(number, number * every + 1, answers)
        if judged is None or number < judged:
            facts = {"teacher_nats_per_byte": 1.75 - number / 10, "student_nats_per_byte": 0.75}
            kl = {"kl_per_byte": 1.0 - number / 10}
            writer.round_judged({"round": number, "step": (number + 1) * every, **facts, **kl})
    return writer
