"""A program for an environment with transformers 4: reads saved models and tokenizers, and prints what it finds.

Usage: python older_reader.py FOLDER, with a folder per model in it, each with ``ids.pt`` or ``texts.json``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers


def logits_of(folder: Path) -> Any:
    ids = torch.load(folder / "ids.pt")
    kind = transformers.AutoConfig.from_pretrained(folder)
    auto = transformers.AutoModelForSeq2SeqLM if kind.is_encoder_decoder else transformers.AutoModelForCausalLM
    model, info = auto.from_pretrained(folder, output_loading_info=True, torch_dtype=torch.float32)
    assert not info["missing_keys"] and not info["mismatched_keys"], info
    more = {"decoder_input_ids": ids} if kind.is_encoder_decoder else {}
    with torch.no_grad():
        return model.eval()(input_ids=ids, use_cache=False, **more).logits


def main(place: Path) -> None:
    transformers.logging.set_verbosity_error()
    found: dict[str, Any] = {"version": transformers.__version__, "tokens": {}}
    for folder in sorted(item for item in place.iterdir() if item.is_dir()):
        if (folder / "ids.pt").is_file():
            torch.save(logits_of(folder), folder / "older.pt")
        if (folder / "texts.json").is_file():
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
            texts = json.loads((folder / "texts.json").read_text())
            found["tokens"][folder.name] = [tokenizer(text)["input_ids"] for text in texts]
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
