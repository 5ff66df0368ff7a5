#!/usr/bin/env bash
# What a chat template shows of a whole conversation need not begin with the prompt that it makes of the same
# conversation without its answer: trained on the one, a model is asked with the other.
#
# Guess: it begins so for all but templates that write or drop reasoning; a plain system message, question and answer
# without reasoning are safe.
#
# Seen with transformers 5.23.0 and the templates that trl 1.16.0 and axolotl 0.19.0 ship (each different text once, with
# their default variables): 16 of 101. DeepSeek's and Nemotron's do so though no answer reasons, and Gemma 4's, in one of
# two packages. Mistral's and Pixtral's put the system message before the *last* user's turn, and only where that is the
# last message: with an answer behind it the system message is nowhere.
set -euo pipefail
EXPECTED="106 templates, 5 refuse a system message or its form, 16 of 101 differ:"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q transformers==5.23.0 jinja2==3.1.6
"$folder/env/bin/pip" install -q --no-deps --target "$folder/templates" trl==1.16.0 axolotl==0.19.0
found=$("$folder/env/bin/python" - "$folder/templates" <<'PYTHON'
import sys
from pathlib import Path

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

root = Path(sys.argv[1])
texts = {}
for package in ("trl/chat_templates", "axolotl/utils/chat_templates/templates"):
    for file in sorted((root / package).glob("*.jinja")):
        texts.setdefault(file.read_text(encoding="utf-8"), f"{package.split('/')[0]}/{file.stem}")
tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), bos_token="<s>", eos_token="</s>")
asked = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Which way?"}]
shown = refused = 0
differ = []
for text, name in texts.items():
    tokenizer.chat_template = text
    try:
        whole = tokenizer.apply_chat_template([*asked, {"role": "assistant", "content": "Left."}], tokenize=False)
        prompt = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    except Exception:
        refused += 1
        continue
    shown += 1
    if not whole.startswith(prompt):
        differ.append(name)
print(f"{len(texts)} templates, {refused} refuse a system message or its form, {len(differ)} of {shown} differ:")
print(" ".join(sorted(differ)))
PYTHON
)
echo "$found"
[ "$(echo "$found" | head -1)" = "$EXPECTED" ] || { echo "expected: $EXPECTED" >&2; exit 1; }
