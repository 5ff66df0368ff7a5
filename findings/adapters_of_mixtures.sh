#!/usr/bin/env bash
# The usual list of layers for low-rank adapters means something else in every mixture of experts: here the routed experts
# and not the shared ones, there the other way round, and in some architectures no feed-forward layer at all.
#
# Guess: target_modules are names of layers. q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj and down_proj adapt all
# linear layers of these names, the feed-forward ones of dense layers and shared experts among them; whether routed
# experts, which are one tensor in transformers 5, are adapted is the same for all.
#
# Seen with peft 0.21.2, transformers 5.23.0 and torch 2.13.0, small random models, the seven names: where peft knows an
# architecture by what it was in transformers 4, it takes gate_proj, up_proj and down_proj for those of the routed experts
# and adapts these as whole tensors; linear layers of the very same names get nothing (DeepSeek-V3, GLM-4-MoE, Qwen3-Next
# and Ernie 4.5: their dense first layers and shared experts). Of Qwen2-MoE it knows no such thing: there the shared
# experts are adapted and the routed ones are not, and in Mixtral and Granite-MoE neither. Where the routed ones are taken a
# warning tells of a pattern for gate_up_proj that matched nothing; of layers that get no adapter nothing is said.
set -euo pipefail
EXPECTED='llama         dense 6 of 6
qwen2_moe     shared 6 of 6, routed 0 of 2
qwen3_moe     routed 2 of 2
olmoe         routed 2 of 2
mixtral       routed 0 of 2
granitemoe    routed 0 of 2
deepseek_v3   dense 0 of 3, shared 0 of 3, routed 1 of 1
glm4_moe      dense 0 of 3, shared 0 of 3, routed 1 of 1
ernie4_5_moe  dense 0 of 3, shared 0 of 3, routed 1 of 1
qwen3_next    shared 0 of 6, routed 2 of 2'
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
pip="$folder/env/bin/pip"
"$pip" install -q 'torch==2.13.0+cpu' 2>/dev/null || "$pip" install -q torch==2.13.0
"$pip" install -q transformers==5.23.0 accelerate==1.15.0 peft==0.21.2
found=$("$folder/env/bin/python" - 2>"$folder/errors" <<'PYTHON'
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
sizes = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
sizes |= {"num_attention_heads": 4, "num_key_value_heads": 4, "moe_intermediate_size": 16}
sizes |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
few = {"num_experts": 4, "num_experts_per_tok": 2}
groups = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
groups |= {"first_k_dense_replace": 1, "n_shared_experts": 1}
latent = {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "kv_lora_rank": 8, "q_lora_rank": 8}
full = {"layer_types": ["linear_attention", "full_attention"]}
kinds = {
    "llama": {}, "qwen2_moe": {**few, "shared_expert_intermediate_size": 16}, "qwen3_moe": {**few, "head_dim": 8},
    "olmoe": few, "mixtral": {"num_local_experts": 4}, "granitemoe": {"num_local_experts": 4},
    "deepseek_v3": {**groups, **latent}, "glm4_moe": {**groups, "head_dim": 8},
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 1},
    "qwen3_next": {**few, **full, "shared_expert_intermediate_size": 16},
}


def part_of(name, module):
    """Say which part of a feed-forward layer a module with weights is, or None."""
    if name.endswith((".experts", ".input_linear", ".output_linear")):
        return "routed" if name.endswith(".experts") or name.endswith(".input_linear") else None
    if not isinstance(module, torch.nn.Linear) or name.rpartition(".")[2] not in names[4:]:
        return None
    return "shared" if "shared" in name else "dense"


for kind, options in kinds.items():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**sizes, **options}))
    parts = {name: part for name, module in model.named_modules() if (part := part_of(name, module))}
    adapted = get_peft_model(model, LoraConfig(target_modules=names, r=2))
    learning = [name for name, weight in adapted.named_parameters() if weight.requires_grad]
    assert any("self_attn" in name for name in learning)  # attention is adapted everywhere
    told = []
    for part in ("dense", "shared", "routed"):
        own = [name for name, one in parts.items() if one == part]
        got = [name for name in own if any(f".{name}." in f".{one}" for one in learning)]
        told += [f"{part} {len(got)} of {len(own)}"] if own else []
    print(f"{kind:<13} {', '.join(told)}")
PYTHON
) || { tail -5 "$folder/errors" >&2; exit 1; }
echo "$found"
[ "$found" = "$EXPECTED" ] || { echo "expected: $EXPECTED" >&2; exit 1; }
