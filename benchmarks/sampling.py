"""Sampling answers of one's own, against transformers' ``generate(do_sample=True)`` on the same batch.

    python benchmarks/sampling.py            # SmolLM2-135M's shape and a small one: some six minutes on two cores
    python benchmarks/sampling.py --quick    # the small one alone, two repeats
    python benchmarks/sampling.py --device cuda --precision bf16 --batch 64

Random weights, prompts of different lengths with padding on the left, no ends: both generate all tokens. What ours adds
to a token is the draw by a generator of the prompt's own and the record of its log-probability; what it leaves out is
transformers' softmax and ``multinomial``. Both take turns, so that a busy machine slows both. Aim: 0.9 of its tokens
per second; the exit status is 1 where that is missed.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from measuring import Cell, add_output_options, now, ratio, write_results

AIM = 0.9
SHAPES: dict[str, dict[str, int]] = {
    "135M": {
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "vocab_size": 49_152,
    },
    "10M": {
        "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 8, "num_attention_heads": 4,
        "num_key_value_heads": 4, "vocab_size": 8_000,
    },
}  # fmt: skip


def measure(shape: str, options: argparse.Namespace) -> tuple[Cell, Cell]:
    """Seconds of plain and of our sampling of the same batch, in turn."""
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig

    from uld_ds.generation.sampling import Asked, Sampler, Sampling
    from uld_ds.models.architectures import DTYPES

    config = LlamaConfig(**SHAPES[shape], tie_word_embeddings=True, bos_token_id=None, eos_token_id=None)
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(config, dtype=DTYPES[options.precision]).eval().to(options.device)
    draw = np.random.default_rng(0)
    lengths = draw.integers(options.prompt // 2, options.prompt + 1, options.batch)
    asked = [
        Asked(str(n), draw.integers(1, config.vocab_size, length).astype(np.int32)) for n, length in enumerate(lengths)
    ]
    sampler = Sampler(lm, ends=[], padding=0, device=torch.device(options.device))
    ids, mask = sampler._left_padded([one.prompt for one in asked])
    plain_options = GenerationConfig(max_new_tokens=options.new, do_sample=True, top_k=0, pad_token_id=0)

    def plain() -> None:
        said = lm.generate(input_ids=ids, attention_mask=mask, generation_config=plain_options)
        assert said.shape[1] == ids.shape[1] + options.new

    def ours() -> None:
        answers = sampler.sample(asked, Sampling(options.new))
        assert all(len(answer.ids) == options.new for answer in answers)

    tokens = options.batch * options.new
    cells = Cell("transformers", tokens, 0), Cell("ours", tokens, 0)
    for repeat in range(options.repeats + 1):
        for cell, run in zip(cells, (plain, ours), strict=True):
            begin = now(options.device)
            run()
            if repeat:  # the first one also finds out what the model bears
                cell.seconds.append(now(options.device) - begin)
    return cells


def table(found: dict[str, tuple[Cell, Cell]], options: argparse.Namespace) -> str:
    """Markdown."""
    head = (
        "| student | vocabulary | prompts | new tokens | `generate`, tokens/s | ours, tokens/s | ours / `generate` |\n"
        "|---|---|---|---|---|---|---|\n"
    )
    asked = f"{options.batch} of up to {options.prompt} tokens"
    rows = [
        f"| {shape} | {SHAPES[shape]['vocab_size']:,} | {asked} | {options.new} "
        f"| {plain.tokens / plain.median:,.0f} | {ours.tokens / ours.median:,.0f} | {ratio(plain, ours)} |"
        for shape, (plain, ours) in found.items()
    ]
    return head + "\n".join(rows)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), help="this one alone")
    parser.add_argument("--batch", type=int, default=16, help="prompts (default: 16)")
    parser.add_argument("--prompt", type=int, default=96, help="tokens of the longest prompt (default: 96)")
    parser.add_argument("--new", type=int, default=64, help="tokens of each answer (default: 64)")
    parser.add_argument("--repeats", type=int, help="after one that warms up (default: 5)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    add_output_options(parser, quick="the small student alone, two repeats")
    options = parser.parse_args()
    options.repeats = options.repeats or (2 if options.quick else 5)
    shapes = [options.shape] if options.shape else ["10M"] if options.quick else list(SHAPES)
    found = {shape: measure(shape, options) for shape in shapes}
    results: dict[str, Any] = {shape: [asdict(cell) for cell in cells] for shape, cells in found.items()}
    notes = [f"{options.precision} on {options.device}", "Median of repeats; ratios of medians (quickest to slowest)"]
    write_results("sampling", table(found, options), results, options, notes=notes)
    return int(any(plain.median / ours.median < AIM for plain, ours in found.values()))


if __name__ == "__main__":
    raise SystemExit(main())
