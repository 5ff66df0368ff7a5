"""Models with an encoder: what they read, their logits, their gradients against transformers' own loss in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from deepspeed.utils import safe_get_full_grad
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
)

from tests.helpers import tokenizers_zoo as zoo
from tests.helpers.engines import build, prepared_job
from tests.helpers.ranks import run_on_ranks
from tests.helpers.tiny import save_tiny_t5
from uld_ds.batches import SideBatch
from uld_ds.checkpointing.export import export_student
from uld_ds.data.examples import Example, ExampleReader
from uld_ds.data.sides import TextSide
from uld_ds.data.teacher_batching import TeacherBatcher
from uld_ds.data.teacher_rows import TEACHER_FEATURES, TeacherEncoding
from uld_ds.errors import UserError
from uld_ds.evaluation.evaluate import bits_per_byte_of
from uld_ds.generation.decoding import Decoding, Model
from uld_ds.models.pretrained import Pretrained
from uld_ds.models.row_model import RowModel, choose_head_path
from uld_ds.models.student import make_student
from uld_ds.recipe import (
    DataSettings,
    FilesSource,
    ModelSettings,
    StudentSettings,
    TrainedTokenizerSettings,
)
from uld_ds.runs.job import Job
from uld_ds.utils.distributed import Ranks

CPU = torch.device("cpu")
BPE = TrainedTokenizerSettings(train="bpe", vocab_size=300)
TEMPLATE = "summarize: {prompt}"


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A T5 as it was, with one matrix for embeddings and output head, and one with two."""
    return {
        name: save_tiny_t5(tmp_path_factory.mktemp("t5"), zoo.unigram_t5(), seed=5, tied=name == "tied")
        for name in ("tied", "untied")
    }


def side_of(folder: Path, **settings: Any) -> TextSide:
    chosen = ModelSettings(model="x", **{"prompt_template": TEMPLATE} | settings)
    return TextSide.of_model(Pretrained(str(folder), key="student.model"), chosen, "student")


def test_the_encoder_reads_the_prompt_and_the_decoder_the_answer(t5: dict[str, Path]) -> None:
    side = side_of(t5["tied"])
    tokenizer = side.tokenizer
    example = Example.of("What does join do?", "It joins paths.")
    (encoded,) = side.encode([side.render(example)])
    read = tokenizer("summarize: What does join do?")["input_ids"]
    labels = [*tokenizer("It joins paths.")["input_ids"], tokenizer.eos_token_id]
    assert encoded.encoder_ids.tolist() == read == side.prompt_ids(example)
    model = AutoModelForSeq2SeqLM.from_pretrained(t5["tied"])
    assert encoded.ids[:-1].tolist() == model._shift_right(torch.tensor([labels]))[0].tolist()
    assert encoded.ids[1:].tolist() == labels
    (turn,) = encoded.turns
    assert (turn.parts[0].first, turn.parts[0].stop, turn.end) == (1, len(labels), len(labels) + 1)
    assert (turn.parts[0].spans[0, 0], turn.parts[0].spans[-1, 1]) == (0, len(b"It joins paths."))


def test_of_a_conversation_the_last_answer_is_learned(t5: dict[str, Path]) -> None:
    side = side_of(t5["tied"])
    said = [("user", "One?"), ("assistant", "First."), ("user", "Two?"), ("assistant", "Second.")]
    talk = Example(tuple({"role": role, "content": text} for role, text in said), (1, 3))
    assert not side.shows_all_answers
    rendered = side.render(talk)
    assert rendered.shown() == ["Second."]
    assert rendered.context == "summarize: One?First.\n\nsummarize: Two?"


def test_a_model_must_say_what_its_decoder_begins_with(tmp_path: Path) -> None:
    folder = save_tiny_t5(tmp_path, zoo.unigram_t5(), seed=1)
    for name in ("generation_config.json", "config.json"):
        file = folder / name
        file.write_text(file.read_text().replace("decoder_start_token_id", "nothing"))
    with pytest.raises(UserError, match=r"^student.model: .*does not say what its decoder begins with; give it"):
        side_of(folder)


T5: dict[str, Any] = {"model_type": "t5", "d_model": 16, "d_kv": 8, "d_ff": 16, "num_heads": 2, "num_layers": 2}


def test_a_new_student_begins_with_its_padding_and_can_generate(tmp_path: Path) -> None:
    settings = StudentSettings(from_config=T5 | {"num_decoder_layers": 1}, tokenizer=BPE)
    folder = make_student(settings, lambda: ["some words to learn from"], 0, tmp_path / "student")
    side = side_of(folder)
    (encoded,) = side.encode([side.render(EXAMPLES[0])])
    assert encoded.ids[0] == side.tokenizer.pad_token_id
    (answer,) = Model(Pretrained(str(folder)), "fp32", CPU).answer([[5, 6]], Decoding(max_new_tokens=3), ["a"])
    assert answer.tokens <= 3
    deeper = StudentSettings(from_config=T5 | {"num_decoder_layers": 3}, tokenizer=BPE)
    with pytest.raises(UserError, match=r"^student.from_config.num_decoder_layers: 3 is more than num_layers 2; "):
        make_student(deeper, lambda: ["some words"], 0, tmp_path / "deeper")


def sides_of(folder: Path, examples: list[Example]) -> tuple[Any, SideBatch]:
    """A plain model and some examples in one batch, padded."""
    encode = TeacherEncoding(side_of(folder), turns="last")
    data = Dataset.from_list(encode(examples), features=TEACHER_FEATURES)  # type: ignore[arg-type]
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float64).eval()
    return model, TeacherBatcher(data, padding=0, max_tokens=4096).batch(range(len(examples)))


EXAMPLES = [
    Example.of("What does join do?", "It joins paths."),
    Example.of("Say", "A much longer answer, so that the other one is padded."),
]


@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_logits_are_the_models_own(t5: dict[str, Path], kind: str) -> None:
    model, batch = sides_of(t5[kind], EXAMPLES)
    wrapped = RowModel(model)
    choose_head_path(wrapped, wrapped, CPU, "student")
    assert wrapped.direct_head
    assert wrapped.logit_map.scale == (32**-0.5 if kind == "tied" else 1.0)
    own = wrapped(batch, batch.answer_rows, lambda hidden, head: head.logits(hidden))
    tokenizer = AutoTokenizer.from_pretrained(t5[kind])
    expected = []
    for example in EXAMPLES:
        read = tokenizer("summarize: " + example.prompt[0]["content"], return_tensors="pt")["input_ids"]
        labels = torch.tensor([[*tokenizer(example.answer)["input_ids"], tokenizer.eos_token_id]])
        expected.append(model(input_ids=read, labels=labels).logits[0])
    torch.testing.assert_close(own, torch.cat(expected), rtol=0, atol=1e-9)


def test_other_encoder_decoders(tmp_path: Path) -> None:
    """BART keeps its decoder elsewhere, and adds to its logits what a head does not have."""
    config = BartConfig(
        vocab_size=200, d_model=32, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=64, decoder_ffn_dim=64,
        encoder_attention_heads=4, decoder_attention_heads=4, max_position_embeddings=64,
    )  # fmt: skip
    model = BartForConditionalGeneration(config).eval()
    wrapped = RowModel(model)
    choose_head_path(wrapped, wrapped, CPU, "student")
    assert wrapped.direct_head and wrapped.logit_map.scale == 1.0
    ids = torch.arange(1, 5)[None]
    # A thousandth of the logits is no rounding in fp32.
    model.final_logits_bias += 2e-3 * model(input_ids=ids, decoder_input_ids=ids).logits.abs().max().detach()
    choose_head_path(wrapped, wrapped, CPU, "student")
    assert not wrapped.direct_head


def one_step(config: dict[str, Any], examples: list[int], target: str) -> dict[str, Any]:
    """A sharded step: its gradients and account of itself, logits before and after it, and the student exported."""
    job = Job.from_config(config)
    ranks = Ranks.current()
    engine, batcher = build(job)
    student = engine.student
    mine = np.asarray(examples[ranks.rank :: ranks.size])
    gradients: dict[str, Tensor] = {}
    update = student.step

    def step_and_look() -> None:
        for name, parameter in student.module.named_parameters():
            gradients[name] = safe_get_full_grad(parameter).clone()
        update()

    side = batcher.window([np.asarray(examples)])[0].student

    def logits() -> Tensor:
        student.eval()
        with torch.no_grad():
            return student(side, side.answer_rows, lambda hidden, head: head.logits(hidden).clone())

    before = logits()
    student.step = step_and_look
    result = engine.train_step(batcher.window([mine]))
    after = logits()
    export_student(student, AutoTokenizer.from_pretrained(job.student), Path(target), ranks)
    return {
        "gradients": gradients, "loss": result.loss, "tokens": result.student_tokens, "before": before, "after": after,
        "side": side, "direct": student.module.direct_head,
        "sharded": all(hasattr(parameter, "ds_tensor") for parameter in student.module.parameters()),
    }  # fmt: skip


def steps(configs: dict[str, dict[str, Any]], examples: list[int], target: str) -> dict[str, dict[str, Any]]:
    """Several configurations in one process: most of a process's life is importing."""
    return {name: one_step(config, examples, f"{target}/{name}-export") for name, config in configs.items()}


def written_out(job: Job, rows: list[dict[str, str]], examples: list[int]) -> tuple[Any, float, int]:
    """The student in float64 with the gradients of the loss written out, the loss, and how many tokens it reads.

    Each example by itself, unpadded, from its text: cross-entropy by transformers' labels, distances by sorting.
    """
    student = AutoModelForSeq2SeqLM.from_pretrained(job.student, dtype=torch.float64)
    teacher = AutoModelForCausalLM.from_pretrained(job.teachers["teacher"], dtype=torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(job.student)
    nats, distances = [], []
    num_tokens = num_labels = 0
    for example in examples:
        row = job.split("train").rows[example]
        read = tokenizer(TEMPLATE.replace("{prompt}", rows[example]["prompt"]))["input_ids"]
        labels = [*tokenizer(rows[example]["answer"])["input_ids"], tokenizer.eos_token_id]
        output = student(input_ids=torch.tensor([read]), labels=torch.tensor([labels]))
        nats.append(output.loss * len(labels))
        num_tokens += len(read) + 1 + len(labels)
        starts = torch.tensor(row["teacher_answers"])[torch.tensor(row["teacher_segments"])]
        with torch.no_grad():
            q = teacher(torch.tensor([row["teacher_ids"]])).logits[0][starts - 1].softmax(-1)
        p = output.logits[0].softmax(-1)[row["student_segments"]]
        width = max(p.shape[1], q.shape[1])
        ordered = [F.pad(x.sort(descending=True).values, (0, width - x.shape[1])) for x in (p, q)]
        distances.append((ordered[0] - ordered[1]).abs().sum(1))
        num_labels += len(labels)
    loss = torch.stack(nats).sum() / num_labels + 1.5 * torch.cat(distances).mean()
    loss.backward()
    return student, float(loss), num_tokens


def test_a_sharded_step_is_the_formula_on_transformers_own_model(
    t5: dict[str, Path], tiny_recipe: dict[str, Any], rows: list[dict[str, str]], tmp_path: Path
) -> None:
    tiny_recipe["training"] |= {"batch_size": 4, "micro_batch_size": 2}
    tiny_recipe["objective"] = {"ce": 1.0, "uld": 1.5}
    student = {"precision": "fp32", "max_length": 256, "prompt_template": TEMPLATE}
    jobs = {
        kind: prepared_job(tiny_recipe | {"student": {**student, "model": str(place)}}, tmp_path / kind)
        for kind, place in t5.items()
    }
    examples = [4, 9, 17, 30]
    configs = {kind: job.to_config() for kind, job in jobs.items()}
    first, second = run_on_ranks(steps, 2, configs, examples, str(tmp_path))
    for kind, job in jobs.items():
        found = first[kind]
        assert found["direct"] and found["sharded"]
        expected, loss, num_tokens = written_out(job, rows, examples)
        assert found["loss"] == pytest.approx(loss, rel=1e-4)
        assert found["tokens"] == num_tokens
        parameters = dict(expected.named_parameters())
        assert {name.removeprefix("lm.") for name in found["gradients"]} == parameters.keys()
        for name, gradient in found["gradients"].items():
            wanted = parameters[name.removeprefix("lm.")].grad
            error = (gradient.double() - wanted).norm() / wanted.norm()
            assert error < 2e-3, (kind, name, float(error))
        torch.testing.assert_close(found["before"], whole_logits(t5[kind], found["side"]), rtol=0, atol=2e-5)
        torch.testing.assert_close(
            found["after"], whole_logits(tmp_path / f"{kind}-export", found["side"]), rtol=0, atol=2e-5
        )
        assert torch.equal(found["after"], second[kind]["after"])
        assert (found["after"] - found["before"]).abs().max() > 1e-3, "the step changed nothing"


def whole_logits(folder: Path, side: SideBatch) -> Tensor:
    model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = model(
            input_ids=side.encoder_ids,
            attention_mask=side.encoder_mask,
            decoder_input_ids=side.input_ids,
            decoder_attention_mask=side.attention_mask,
        ).logits
    return logits.flatten(0, 1)[side.answer_rows]


def test_answers_do_not_depend_on_what_they_are_answered_with(t5: dict[str, Path]) -> None:
    side = side_of(t5["untied"])
    model = Model(Pretrained(str(t5["untied"])), "fp32", CPU)
    prompts = [side.prompt_ids(Example.of(text, "")) for text in ("What?", "A longer question, which pads the other.")]
    decoding = Decoding(max_new_tokens=6)
    together = model.answer(prompts, decoding, ["a", "b"])
    assert together == [model.answer([prompt], decoding, ["x"])[0] for prompt in prompts]
    plain = AutoModelForSeq2SeqLM.from_pretrained(t5["untied"])
    output = plain.generate(input_ids=torch.tensor([prompts[0]]), max_new_tokens=6, do_sample=False)
    assert together[0].text == side.tokenizer.decode(output[0], skip_special_tokens=True).strip()


def test_bits_per_byte_are_of_the_answers_tokens(t5: dict[str, Path]) -> None:
    side = side_of(t5["untied"])
    model = Model(Pretrained(str(t5["untied"])), "fp32", CPU)
    reader = ExampleReader(DataSettings(train=FilesSource(source="files", path="x")))
    texts = [{"prompt": "What does join do?", "answer": "It joins paths."}, {"prompt": "b", "answer": "No."}]
    measured = bits_per_byte_of(model, side, Dataset.from_list(texts), reader, batch_tokens=256, device=CPU)
    assert measured is not None
    nats = 0.0
    for row in texts:
        labels = torch.tensor([side.tokenizer(row["answer"])["input_ids"]])
        read = torch.tensor([side.tokenizer("summarize: " + row["prompt"])["input_ids"]])
        with torch.no_grad():
            nats += float(model.lm(input_ids=read, labels=labels).loss) * labels.shape[1]
    assert measured.mean == pytest.approx(nats / np.log(2) / (15 + 3), rel=1e-5)
