#!/usr/bin/env bash
# Position ids that restart keep examples that share a row apart in most architectures of transformers; some take the
# same argument, say nothing, and let every example attend to those before it.
#
# Guess: in transformers 5, where one place makes all masks, every decoder that takes position_ids finds the examples of
# a row by them; state space layers, which have no mask, refuse or are documented not to.
#
# Seen with transformers 5.23.0 and torch 2.13.0, random weights, no attention mask, each with its default attention: of
# 29 architectures 19 keep three examples of a row apart, and in 10 the logits of the second and third move with the
# first. Four of these were made for position ids or for masks by them (OPT, XGLM, BioGPT, OpenAI GPT have learned or
# fixed places; they are handed out by the mask instead), Falcon is one with rotary positions, and GPT-OSS is a model of
# 2025, which does not hand its position ids to the function that makes its masks. Qwen3-Next, MiniMax, RecurrentGemma
# and Falcon-H1 have layers that carry a state; their attention layers or states run on without a word.
set -euo pipefail
EXPECTED="29 architectures, 19 keep examples apart, 10 do not:"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
pip="$folder/env/bin/pip"
"$pip" install -q 'torch==2.13.0+cpu' 2>/dev/null || "$pip" install -q torch==2.13.0
"$pip" install -q transformers==5.23.0
found=$("$folder/env/bin/python" - 2>/dev/null <<'PYTHON'
import torch
from transformers import AutoConfig, AutoModelForCausalLM

sizes = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
sizes |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
old = {"n_embd": 32, "n_head": 4, "n_layer": 2}
kinds = {
    "llama": {}, "mixtral": {"num_local_experts": 4}, "qwen3": {"head_dim": 8}, "gemma2": {"head_dim": 8},
    "phi": {}, "glm": {"head_dim": 8}, "nemotron": {}, "exaone4": {}, "helium": {"head_dim": 8}, "diffllama": {},
    "seed_oss": {"head_dim": 8}, "stablelm": {}, "persimmon": {}, "gpt_neox": {}, "gpt2": {**old, "n_positions": 64},
    "gptj": {**old, "rotary_dim": 4}, "codegen": {**old, "rotary_dim": 4, "n_positions": 64},
    "gpt_bigcode": {**old, "n_positions": 64}, "ctrl": {**old, "dff": 64},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32}, "falcon": {}, "gpt_oss": {"num_local_experts": 4, "head_dim": 8},
    "xglm": {"d_model": 32, "ffn_dim": 64, "num_layers": 2, "attention_heads": 4}, "biogpt": {},
    "openai-gpt": {**old, "n_positions": 64}, "qwen3_next": {}, "minimax": {}, "recurrent_gemma": {}, "falcon_h1": {},
}
lengths = (5, 2, 9)
ids = (7 + torch.arange(sum(lengths)) * 11) % 97
other = torch.cat([(ids[: lengths[0]] + 5) % 97, ids[lengths[0] :]])
places = torch.cat([torch.arange(length) for length in lengths])[None]
leaking = []
for kind, options in kinds.items():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**sizes, **options})).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and "router" not in name and "gate.weight" not in name:
                weight.normal_(std=0.3)  # so that attention decides the logits
        first, second = (
            model(input_ids=row[None], position_ids=places, use_cache=False).logits[0, lengths[0] :]
            for row in (ids, other)
        )
    if float((first - second).abs().max()) > 1e-3 * float(first.abs().max()):
        leaking.append(kind)
print(f"{len(kinds)} architectures, {len(kinds) - len(leaking)} keep examples apart, {len(leaking)} do not:")
print(" ".join(sorted(leaking)))
PYTHON
)
echo "$found"
LEAKING="biogpt falcon falcon_h1 gpt_oss minimax openai-gpt opt qwen3_next recurrent_gemma xglm"
[ "$found" = "$EXPECTED"$'\n'"$LEAKING" ] || { echo "expected: $EXPECTED $LEAKING" >&2; exit 1; }
