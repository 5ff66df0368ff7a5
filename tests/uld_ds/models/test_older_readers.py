"""Saved models and tokenizers that transformers 4 reads: both spellings, and that one's logits and tokens."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import venv
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from tests.helpers import older_reader
from tests.helpers import tokenizers_zoo as zoo
from uld_ds.models.architectures import auto_class, is_encoder_decoder
from uld_ds.models.older_readers import TRIED, adapt_config, readers_of, save_tokenizer
from uld_ds.tokenization.loading import tokenizer_digest

SIZES: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
ROPE = SIZES | {"rope_theta": 5e5}
WIDE = ROPE | {"head_dim": 8}
MIXTURE = ROPE | {"num_experts": 4, "num_experts_per_tok": 2}
NEOX = {**SIZES, "rotary_emb_base": 5e4, "rotary_pct": 0.5}
LOCAL = WIDE | {
    "rope_local_base_freq": 2e4, "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}  # fmt: skip
T5: dict[str, Any] = {"vocab_size": 96, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
# Of some architectures in several ways.
CASES: dict[str, dict[str, Any]] = {
    "bart": {"vocab_size": 96, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48,
             "decoder_ffn_dim": 48, "encoder_attention_heads": 4, "decoder_attention_heads": 4},
    "bloom": {"vocab_size": 96, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "cohere": ROPE,
    "cohere2": ROPE,
    "falcon": ROPE | {"alibi": False},
    "gemma": WIDE,
    "gemma2": WIDE,
    "gemma3_text": LOCAL,
    "gemma3_text linear": LOCAL | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    "glm4": WIDE | {"pad_token_id": 0},
    "gpt2": {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4},
    "gpt_neox": NEOX,
    "gpt_oss": WIDE | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "granite": ROPE,
    "llama": ROPE,
    "llama llama3": ROPE | {"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 32}},
    "llama yarn": ROPE | {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}},
    "llama linear": SIZES | {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "llama dynamic": SIZES | {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
    "llama4_text": WIDE | {"num_local_experts": 2, "intermediate_size_mlp": 48, "interleave_moe_layer_step": 1},
    "mistral": WIDE,
    "mixtral": ROPE | {"num_local_experts": 4},
    "mt5 untied": T5 | {"tie_word_embeddings": False},
    "nemotron": WIDE | {"partial_rotary_factor": 0.25},
    "olmo2": ROPE,
    "olmoe": MIXTURE,
    "opt": {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 48,
            "word_embed_proj_dim": 32},
    "phi": ROPE | {"partial_rotary_factor": 0.5},
    "phi3": ROPE | {"pad_token_id": 0},
    "phi3 longrope": ROPE | {
        "pad_token_id": 0, "original_max_position_embeddings": 64,
        "rope_scaling": {"type": "longrope", "short_factor": [1.5, 1.0, 1.0, 2.0], "long_factor": [2.0, 4.0, 1.0, 3.0]},
    },
    "qwen2": ROPE,
    "qwen2_moe": MIXTURE | {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
    "qwen3": WIDE,
    "qwen3_moe": MIXTURE | {"head_dim": 8, "moe_intermediate_size": 16},
    "smollm3": ROPE | {"pad_token_id": 0},
    "stablelm": ROPE | {"partial_rotary_factor": 0.5},
    "starcoder2": ROPE,
    "t5": T5,
    "t5 untied": T5 | {"tie_word_embeddings": False},
}  # fmt: skip
TEXTS = [
    "The quick brown fox jumps, 1234567 times.",
    "  two  spaces\n\nand\tlines ",
    "über naïve 東京 🙂",
    "<|end|> <s> a",
]
OLDER = "transformers==4.57.6"


def config_in(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "config.json").read_text()))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama", {"rope_theta": 5e5, "rope_scaling": None}),
        ("llama llama3", {"rope_theta": 5e5, "rope_scaling": LLAMA3 | {"original_max_position_embeddings": 32}}),
        ("phi", {"rope_theta": 5e5, "rope_scaling": None, "partial_rotary_factor": 0.5}),
        (
            "phi3 longrope",
            {
                "rope_scaling": CASES["phi3 longrope"]["rope_scaling"],
                "original_max_position_embeddings": 64,
            },
        ),
        ("gpt_neox", {"rotary_emb_base": 5e4, "rotary_pct": 0.5}),
        ("gemma3_text", {"rope_theta": 5e5, "rope_local_base_freq": 2e4, "rope_scaling": None}),
        ("qwen3_moe", {"num_experts": 4, "num_local_experts": 4, "rope_theta": 5e5}),
    ],
)
def test_both_spellings_are_written_and_the_new_one_is_read_as_before(
    name: str, expected: dict[str, Any], tmp_path: Path
) -> None:
    config = AutoConfig.for_model(name.split()[0], **deepcopy(CASES[name]))
    config.save_pretrained(tmp_path)
    before = AutoConfig.from_pretrained(tmp_path).to_dict()
    new = config_in(tmp_path)
    adapt_config(tmp_path)
    found = config_in(tmp_path)
    assert {key: found[key] for key in expected} == expected
    assert {key: found[key] for key in new} == new
    read = AutoConfig.from_pretrained(tmp_path).to_dict()
    assert read["rope_parameters"] == before["rope_parameters"]
    assert {key: read[key] for key in before} == before
    kind = name.split()[0]
    assert readers_of(tmp_path) == (
        f"Its files are written for transformers 5 and 4: `{kind}` models of this kind were read by transformers 4.57 "
        "with the same logits."
    )
    once = (tmp_path / "config.json").read_text()
    adapt_config(tmp_path)
    assert (tmp_path / "config.json").read_text() == once


def test_what_only_transformers_5_knows_is_said(tmp_path: Path) -> None:
    options = {key: value for key, value in SIZES.items() if key != "num_key_value_heads"}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
    AutoConfig.for_model("modernbert-decoder", **options, **ids, global_rope_theta=1e5).save_pretrained(tmp_path)
    adapt_config(tmp_path)
    assert readers_of(tmp_path).startswith(
        "Read it with transformers 5: transformers 4 does not know `rope_parameters`, "
    )
    AutoConfig.for_model("persimmon", **options).save_pretrained(tmp_path)
    adapt_config(tmp_path)
    assert "`persimmon` models were not tried with transformers 4: compare logits " in readers_of(tmp_path)
    AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model("mt5", **T5)).save_pretrained(tmp_path)
    adapt_config(tmp_path)
    assert readers_of(tmp_path) == (
        "Read it with transformers 5: its output head is its embeddings, and what enters the head is not scaled, which "
        "transformers 4 would do."
    )
    zoo.byt5().save_pretrained(tmp_path)
    said = " Its tokenizer is a `ByT5Tokenizer`, of which transformers 4 may make other tokens, or which it may lack."
    assert readers_of(tmp_path).endswith(said)


def test_the_card_says_where_transformers_5_makes_another_tokenizer(tmp_path: Path) -> None:
    for kind, found in (("llama", ""), ("qwen2", "Qwen2Tokenizer")):
        AutoConfig.for_model(kind, **ROPE).save_pretrained(tmp_path)
        adapt_config(tmp_path)
        tokenizer = zoo.unigram()
        save_tokenizer(tokenizer, tmp_path)
        is_same = AutoTokenizer.from_pretrained(tmp_path)("a word").input_ids == tokenizer("a word").input_ids
        assert is_same is not bool(found)
        said = readers_of(tmp_path).partition("with the same logits.")[2]
        assert said.startswith(
            " Load its tokenizer with `PreTrainedTokenizerFast.from_pretrained`: for `qwen2` models, `AutoTokenizer` "
            "of transformers 5 makes a `Qwen2Tokenizer` of it (`normalizer, pre-tokenizer, "
            if found
            else ""
        )
        assert bool(said) is bool(found)


@pytest.mark.parametrize("name", ["unigram", "llama2_style", "gpt2_nfc", "mistral", "byt5"])
def test_a_tokenizer_is_read_as_before(name: str, tmp_path: Path) -> None:
    tokenizer = getattr(zoo, name)()
    LlamaConfig(**ROPE).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    before = AutoTokenizer.from_pretrained(tmp_path)
    save_tokenizer(tokenizer, tmp_path)
    found = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert found["tokenizer_class"] == ("ByT5Tokenizer" if name == "byt5" else "PreTrainedTokenizerFast")
    assert not isinstance(found.get("extra_special_tokens"), list)
    after = AutoTokenizer.from_pretrained(tmp_path)
    assert [after(text)["input_ids"] for text in TEXTS] == [before(text)["input_ids"] for text in TEXTS]
    assert after.extra_special_tokens == before.extra_special_tokens
    if type(before) is PreTrainedTokenizerFast:
        assert tokenizer_digest(after) == tokenizer_digest(before)


def test_more_special_tokens_keep_their_role(tiny_student: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_student)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|tool|>", "<|call|>"]})
    save_tokenizer(tokenizer, tmp_path)
    found = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert found["additional_special_tokens"] == ["<|tool|>", "<|call|>"] and "extra_special_tokens" not in found
    assert AutoTokenizer.from_pretrained(tmp_path).extra_special_tokens == ["<|tool|>", "<|call|>"]


def test_what_is_tried_is_what_is_promised() -> None:
    assert {name.split()[0] for name in CASES} == TRIED


# ---- transformers 4 itself


@pytest.fixture(scope="module")
def older_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with transformers 4 and, to spare a download, this one's PyTorch."""
    folder = tmp_path_factory.mktemp("transformers-4") / "env"
    venv.create(folder, with_pip=True)
    (packages,) = (folder / "lib").glob("python*/site-packages")
    files = importlib.metadata.files("torch") or []
    here = Path(str(importlib.metadata.distribution("torch").locate_file("")))
    for top in {file.parts[0] for file in files if file.parts[0] not in ("..", "__pycache__")}:
        (packages / top).symlink_to(here / top)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", OLDER, "torch"], check=True, timeout=600)
    return python


def saved_model(name: str, folder: Path) -> torch.Tensor:
    torch.manual_seed(0)
    config = AutoConfig.for_model(name.split()[0], **deepcopy(CASES[name]))
    lm = auto_class(config).from_config(config, dtype=torch.float32).eval()
    if "untied" in name:
        # transformers ties new ones all the same; checkpoints that have two matrices keep them.
        lm.lm_head.weight = torch.nn.Parameter(torch.empty(96, 32))
        lm.all_tied_weights_keys.pop("lm_head.weight")
    ids = torch.arange(3, 43).reshape(2, 20)
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
        more = {"decoder_input_ids": ids} if is_encoder_decoder(config) else {}
        logits = lm(input_ids=ids, use_cache=False, **more).logits
    lm.save_pretrained(folder)
    adapt_config(folder)
    torch.save(ids, folder / "ids.pt")
    return logits


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_transformers_4_computes_the_same(older_python: Path, tmp_path: Path) -> None:
    expected = {name: saved_model(name, tmp_path / name) for name in CASES}
    tokens = {}
    for name in ("unigram", "unigram_t5", "llama2_style", "gpt2", "wordpiece", "mistral", "gemma_style", "byt5"):
        tokenizer = getattr(zoo, name)()
        folder = tmp_path / f"tokenizer {name}"
        LlamaConfig(**ROPE).save_pretrained(folder)
        save_tokenizer(tokenizer, folder)
        (folder / "texts.json").write_text(json.dumps(TEXTS))
        tokens[folder.name] = [tokenizer(text)["input_ids"] for text in TEXTS]
    found = run_older(older_python, tmp_path)
    assert found["version"] == OLDER.partition("==")[2]
    assert found["tokens"] == tokens
    errors = {
        name: float((torch.load(tmp_path / name / "older.pt") - logits).abs().max())
        for name, logits in expected.items()
    }
    # Gemma 2's capped attention is another kernel there; experts are added up in another order.
    assert {name: error for name, error in errors.items() if error > 1e-3} == {}
    # Without the older spelling, theta is 10,000 for 500,000 there.
    plain = tmp_path / "plain"
    LlamaForCausalLM.from_pretrained(tmp_path / "llama").save_pretrained(plain / "llama")
    torch.save(torch.load(tmp_path / "llama" / "ids.pt"), plain / "llama" / "ids.pt")
    run_older(older_python, plain)
    assert (torch.load(plain / "llama" / "older.pt") - expected["llama"]).abs().max() > 0.5


def run_older(python: Path, folder: Path) -> dict[str, Any]:
    environment = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    words = [python, older_reader.__file__, folder]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))
