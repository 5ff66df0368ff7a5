"""What padding costs, and what skewed lengths cost without it: forward and backward of a student, in turns.

    python benchmarks/packing.py                # four ways, two mixes of lengths: some minutes of one core
    python benchmarks/packing.py --quick        # few tokens, to see that it runs

A small Llama with random weights, cross-entropy on all tokens, one process's one thread. Lengths are all alike, or
drawn from a log-normal distribution, cut at 16 and 2,048 tokens. Ways:

    padded                 micro-batches of so many examples, sorted by length, padded to their longest
    block-diagonal mask    budgets of tokens, laid end to end, with the mask that transformers makes of their positions
    end to end             budgets of tokens, each example's attention by itself: what uld-ds does
    one by one             an example a forward

Seconds are those of the process, which another one's do not count into; the order of the ways turns with each repeat.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from measuring import add_output_options, spread, write_results
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from uld_ds.batches import SideBatch
from uld_ds.data.step_plan import Budget, plan_step, work
from uld_ds.models.packing import PACKED, PackedRow
from uld_ds.models.row_model import RowModel, log_probs_of

VOCAB, HIDDEN, BUDGET = 4096, 192, 4096
LEAST, MOST = 16, 2048
NONE = torch.empty(0, dtype=torch.long)
Batch = list[int]


def main() -> int:
    options = parse()
    torch.set_num_threads(1)
    tokens = 4_000 if options.quick else 40_000
    results: dict[str, Any] = {}
    lines = ["| lengths | way | tokens a second | padding | largest forward, positions |", "|---|---|---|---|---|"]
    for name, lengths in {"alike": alike(tokens), "log-normal": skewed(tokens)}.items():
        found = measure(lengths, options.repeats)
        results[name] = {"lengths": lengths, **found}
        for way, of_way in found.items():
            rate = spread([sum(lengths) / seconds for seconds in of_way["seconds"]], ",.0f")
            lines.append(f"| {name} | {way} | {rate} | {of_way['padding']:.0%} | {of_way['largest']:,} |")
    rates = {name: sum(own["lengths"]) / min(own["end to end"]["seconds"]) for name, own in results.items()}
    share = rates["log-normal"] / rates["alike"]
    summed = [f"Log-normal lengths, end to end: {share:.2f} of the tokens a second of lengths alike (aim: 0.9)"]
    facts = f"{len(results['log-normal']['lengths'])} examples of {LEAST} to {MOST} tokens, a budget of {BUDGET}"
    write_results("packing", "\n".join([*lines, "", *summed]), results, options, notes=[facts])
    return 0


def alike(tokens: int) -> list[int]:
    """Examples of the mean length of the others."""
    drawn = skewed(tokens)
    return [round(sum(drawn) / len(drawn))] * len(drawn)


def skewed(tokens: int) -> list[int]:
    """Lengths of a log-normal distribution, the same every time."""
    draw = np.random.default_rng(0)
    found: list[int] = []
    while sum(found) < tokens:
        found.append(int(np.clip(draw.lognormal(5.3, 1.0), LEAST, MOST)))
    return found


def measure(lengths: Sequence[int], repeats: int) -> dict[str, dict[str, Any]]:
    """Seconds of every way over all examples, its padding and its largest forward."""
    torch.manual_seed(0)
    config = LlamaConfig(
        **{"vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": 512, "num_hidden_layers": 4},
        **{"num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": MOST},
        tie_word_embeddings=True,
    )
    model = RowModel(LlamaForCausalLM(config))
    ids = [torch.randint(VOCAB, (length,)) for length in lengths]
    by_examples, by_tokens = padded_batches(lengths), packed_batches(lengths)
    ways: dict[str, tuple[list[Batch], Callable[[RowModel, SideBatch], Tensor]]] = {
        "padded": (by_examples, padded),
        "block-diagonal mask": (by_tokens, masked),
        "end to end": (by_tokens, packed),
        "one by one": ([[place] for place in range(len(lengths))], packed),
    }
    found: dict[str, dict[str, Any]] = {way: {"seconds": [], "padding": 0.0, "largest": 0} for way in ways}
    for repeat in range(repeats):
        order = list(ways)[repeat % len(ways) :] + list(ways)[: repeat % len(ways)]
        for way in order:
            batches, forward = ways[way]
            begin = time.process_time()
            sizes = [step(model, forward, [ids[place] for place in batch], way) for batch in batches]
            found[way]["seconds"].append(time.process_time() - begin)
            found[way]["padding"] = 1 - sum(lengths) / sum(sizes)
            found[way]["largest"] = max(sizes)
    return found


def padded_batches(lengths: Sequence[int]) -> list[Batch]:
    """As many examples in each as fill a budget on average, of similar length."""
    size = max(1, BUDGET * len(lengths) // sum(lengths))
    order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    return [order[start : start + size] for start in range(0, len(order), size)]


def packed_batches(lengths: Sequence[int]) -> list[Batch]:
    """By the plan of a step on one rank."""
    sizes = np.array(lengths)
    seconds = work(sizes.astype(float), 6.0 * HIDDEN)
    return [batch.tolist() for batch in plan_step(np.arange(len(sizes)), sizes, seconds, Budget(BUDGET), 1)[0]]


def step(model: RowModel, forward: Callable[[RowModel, SideBatch], Tensor], ids: list[Tensor], way: str) -> int:
    """Forward and backward of a micro-batch; the positions that were computed."""
    lengths = tuple(map(len, ids))
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    whole = torch.zeros_like(mask)
    for row, own in zip(whole, ids, strict=True):
        row[: len(own)] = own
    rows = mask.flatten().nonzero()[:, 0]
    batch = SideBatch(whole, mask, rows, whole.flatten()[rows], NONE, NONE, lengths=lengths)
    forward(model, batch).backward()
    model.zero_grad()
    return mask.numel() if way == "padded" else sum(lengths)


def padded(model: RowModel, batch: SideBatch) -> Tensor:
    """With padding and its mask."""
    model.packs = False
    model.inner.set_attn_implementation("sdpa")
    return -model(batch, batch.answer_rows, log_probs_of(batch.answer_ids)).sum()


def packed(model: RowModel, batch: SideBatch) -> Tensor:
    """As uld-ds does."""
    model.packs = True
    model.inner.set_attn_implementation(PACKED)
    return -model(batch, batch.answer_rows, log_probs_of(batch.answer_ids)).sum()


def masked(model: RowModel, batch: SideBatch) -> Tensor:
    """As transformers does where positions restart and nothing else is said."""
    model.inner.set_attn_implementation("sdpa")
    arguments = PackedRow.of(batch, flash=False).arguments
    row = {name: arguments[name] for name in ("input_ids", "position_ids", "use_cache")}
    hidden = model.inner.model(**row).last_hidden_state[0]
    logits = model.inner.lm_head(hidden)
    return torch.nn.functional.cross_entropy(logits, batch.answer_ids, reduction="sum")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, help="turns of each way; default: 3")
    add_output_options(parser, quick="few tokens, one turn: says nothing")
    options = parser.parse_args(arguments)
    options.repeats = options.repeats or (1 if options.quick else 3)
    return options


if __name__ == "__main__":
    raise SystemExit(main())
