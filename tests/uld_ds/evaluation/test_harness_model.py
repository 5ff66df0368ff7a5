"""What lm-evaluation-harness scores with tokenizers of every habit, against float64 by hand; where it is installed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import processors
from transformers import T5ForConditionalGeneration

from tests.helpers import tokenizers_zoo as zoo
from tests.helpers.special_tokens import HABITS, TEXTS, Habit, log_likelihood, save_model
from tests.helpers.tiny import save_tiny_t5
from uld_ds.errors import UserError
from uld_ds.evaluation.harness import suite_scores
from uld_ds.models.pretrained import Pretrained

pytest.importorskip("lm_eval")

CPU = torch.device("cpu")

SUITE = """
task: prose
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: bits_per_byte}}, {{metric: byte_perplexity}}]
metadata: {{version: 1.0}}
"""


@pytest.fixture(scope="module", params=HABITS)
def habit(request: pytest.FixtureRequest) -> Habit:
    return HABITS[request.param]


@pytest.fixture(scope="module")
def folder(habit: Habit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), habit)


def harness_model(folder: Path) -> Any:
    from uld_ds.evaluation.harness_model import OneStartModel

    tokenizer = Pretrained(str(folder)).tokenizer()
    return OneStartModel(tokenizer, "MODEL", pretrained=str(folder), dtype=torch.float32, device="cpu", batch_size=2)


def asked(kind: str, *arguments: Any) -> Any:
    from lm_eval.api.instance import Instance

    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)  # type: ignore[arg-type]


@pytest.mark.slow  # the harness looks through all its suites each time
def test_a_perplexity_suite_scores_the_bytes_of_texts_and_nothing_else(
    habit: Habit, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    (tmp_path / "prose.yaml").write_text(SUITE.format(rows=tmp_path / "rows.jsonl"))
    suites = [str(tmp_path / "prose.yaml")]
    found = suite_scores(Pretrained(str(folder)), "fp32", suites, device=CPU, batch_size=2)["prose"]["metrics"]
    nats = -sum(log_likelihood(folder, [habit.before], text) for text in TEXTS)
    size = sum(len(text.encode()) for text in TEXTS)
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    assert found["byte_perplexity"] == pytest.approx(math.exp(nats / size), rel=1e-5)


def test_rolling_a_text_that_begins_with_the_start_token(habit: Habit, folder: Path) -> None:
    model = harness_model(folder)
    plain, begun = TEXTS[0], habit.before + TEXTS[0]
    found = model.loglikelihood_rolling([asked("loglikelihood_rolling", text) for text in (plain, begun)])
    assert found == pytest.approx([log_likelihood(folder, [habit.before], plain)] * 2, rel=1e-5)


def test_a_continuation_follows_one_start_and_its_context(habit: Habit, folder: Path) -> None:
    model = harness_model(folder)
    contexts = {"Return the": habit.leading, "": [habit.before], "<s>Return the": ["<s>"]}
    requests = [asked("loglikelihood", context, " sum of two numbers.") for context in contexts]
    found = [value for value, _ in model.loglikelihood(requests)]
    tokenizer = model.tokenizer
    expected = [
        log_likelihood(folder, [*leading, *tokenizer.tokenize(context.removeprefix("<s>"))], " sum of two numbers.")
        for context, leading in contexts.items()
    ]
    if habit.leading == ["[CLS]"]:  # "<s>" is no start of such a tokenizer: it stands behind its own
        context = ["[CLS]", "<s>", *tokenizer.tokenize("Return the")]
        expected[2] = log_likelihood(folder, context, " sum of two numbers.")
    assert found == pytest.approx(expected, rel=1e-5)


def test_what_is_to_be_continued_has_no_end(habit: Habit, folder: Path) -> None:
    model = harness_model(folder)
    ids, mask = model.tok_batch_encode(["Return the sum", "Return"])
    long, short = (
        model.tokenizer.convert_tokens_to_ids(model.tokenizer.tokenize(t)) for t in ("Return the sum", "Return")
    )
    leading = model.tokenizer.convert_tokens_to_ids(habit.leading)
    padding = [model.tokenizer.pad_token_id] * (len(long) - len(short))
    assert ids.tolist() == [leading + long, padding + leading + short]
    assert mask.sum(1).tolist() == [len(leading + long), len(leading + short)]
    cut, _ = model.tok_batch_encode(["Return the sum"], left_truncate_len=2)
    assert cut.tolist() == [(leading + long)[-2:]]


def test_an_encoder_reads_the_end_and_a_decoder_is_not_scored_on_it(tmp_path: Path) -> None:
    folder = save_tiny_t5(tmp_path, zoo.unigram_t5(), seed=3)
    tokenizer = Pretrained(str(folder)).tokenizer()
    end = (tokenizer.eos_token, tokenizer.eos_token_id)
    ending = processors.TemplateProcessing(single=f"$A {end[0]}", special_tokens=[end])
    tokenizer.backend_tokenizer.post_processor = ending
    tokenizer.save_pretrained(folder)
    reference = T5ForConditionalGeneration.from_pretrained(folder, dtype=torch.float64)

    def by_hand(encoder: list[int], answer: list[int]) -> float:
        with torch.no_grad():
            logits = reference(input_ids=torch.tensor([encoder]), labels=torch.tensor([answer])).logits
        return float(logits[0].log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum())

    model = harness_model(folder)
    answer = tokenizer("two numbers", add_special_tokens=False)["input_ids"]
    context = [*tokenizer("Return the", add_special_tokens=False)["input_ids"], end[1]]
    (found,) = model.loglikelihood_rolling([asked("loglikelihood_rolling", "two numbers")])
    assert found == pytest.approx(by_hand([end[1]], answer), rel=1e-5)
    ((found, _),) = model.loglikelihood([asked("loglikelihood", "Return the", "two numbers")])
    assert found == pytest.approx(by_hand(context, answer), rel=1e-5)
    assert model.tok_batch_encode(["Return the"])[0].tolist() == [context]


def test_a_tokenizer_without_anything_to_begin_with(tmp_path: Path) -> None:
    folder = save_model(tmp_path, Habit("$A", {}, "", []))
    with pytest.raises(UserError, match=r"^MODEL: its tokenizer has neither BOS nor EOS, .*; give .* a bos_token, or"):
        harness_model(folder)
