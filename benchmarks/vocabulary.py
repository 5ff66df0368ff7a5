"""How long it takes to relate two vocabularies by their bytes, once per pair of tokenizers, and to read that back.

    python benchmarks/vocabulary.py             # 150,000 x 250,000 tokens
    python benchmarks/vocabulary.py --quick     # 50,000 x 100,000

The student's vocabulary are tokens of Mistral's Tekken; the teacher's are others of the same, and pairs of them written
as one token, so that nearly all are related. Both are byte-level BPE without merges: nothing is cut here.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from measuring import add_output_options, spread, write_results
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.helpers.tokenizers_zoo import package_dir  # noqa: E402
from uld_ds.alignment.vocabulary_mapping import NONE, relations_of  # noqa: E402

ROUNDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_output_options(parser, quick="50,000 x 100,000 tokens")
    options = parser.parse_args()
    num_student, num_teacher = (50_000, 100_000) if options.quick else (150_000, 250_000)
    file = package_dir("mistral_common", "mistral-common") / "data" / "tekken_240911.json"
    pieces = [base64.b64decode(entry["token_bytes"]) for entry in json.loads(file.read_text())["vocab"]]
    pairs = [first + second for first, second in zip(pieces[1000:], pieces[:0:-1], strict=False)]
    student = tokenizer_of(pieces, num_student)
    teacher = tokenizer_of(pieces[::-1][: num_teacher // 2] + pairs, num_teacher)
    times: dict[str, list[float]] = {"computed": [], "read back": []}
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as cache:
            os.environ["ULD_DS_CACHE"] = cache
            for what in times:
                begin = time.perf_counter()
                relations = relations_of(student, teacher)
                times[what].append(time.perf_counter() - begin)
    found = {name: int((getattr(relations, name) != NONE).sum()) for name in ("identity", "projection")}
    table = "| | seconds, median (range) |\n|---|---|\n"
    table += "\n".join(f"| {what} | {spread(taken)} |" for what, taken in times.items())
    notes = [
        f"Student {len(student):,} tokens, teacher {len(teacher):,}: {found['identity']:,} have a twin, "
        f"{found['projection']:,} begin with a token of the student",
        f"{ROUNDS} rounds",
    ]
    write_results("vocabulary", table, {"seconds": times, "related": found}, options, notes=notes)


def tokenizer_of(pieces: list[bytes], size: int) -> PreTrainedTokenizerFast:
    """All bytes, and then ``pieces``, up to ``size`` tokens."""
    symbols = bytes_to_unicode()
    distinct = list(dict.fromkeys([bytes([byte]) for byte in range(256)] + pieces))[:size]
    vocab = {"".join(symbols[byte] for byte in piece): index for index, piece in enumerate(distinct)}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


if __name__ == "__main__":
    main()
