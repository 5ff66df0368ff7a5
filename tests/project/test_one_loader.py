"""Tokenizers are loaded in one place, which compares what transformers makes with what the files say."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
LOADS = re.compile(r"\b(?:Auto|PreTrained|Llama|GPT2)Tokenizer(?:Fast)?\b\s*(?:\.from_pretrained)?\(|AutoTokenizer")
# served_student.py travels with every registered student and imports nothing of this package; what it loads was saved
# by what the others have loaded, in a folder without a config.json that would have it rebuilt. older_readers.py looks
# at what other programs make of a folder, and cuts no text with it.
MAY = {
    "uld_ds/models/older_readers.py",
    "uld_ds/registry/served_student.py",
    "uld_ds/tokenization/faithful.py",
    "uld_ds/tokenization/gguf.py",
    "uld_ds/tokenization/loading.py",
    "uld_ds/tokenization/sentencepiece_files.py",
    "uld_ds/tokenization/training.py",
}


def test_no_other_module_loads_one() -> None:
    files = [file for package in ("uld_ds", "launcher") for file in (ROOT / package).rglob("*.py")]
    assert len(files) > 100
    found = {str(file.relative_to(ROOT)) for file in files if LOADS.search(file.read_text(encoding="utf-8"))}
    assert found - MAY == set()
    assert "uld_ds/tokenization/faithful.py" in found
