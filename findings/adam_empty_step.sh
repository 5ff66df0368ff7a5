#!/usr/bin/env bash
# DeepSpeed in bf16 without ZeRO: Adam has taken a step before the first batch.
#
# Guess: an optimizer that DeepSpeed wraps begins where it would begin unwrapped; bf16 at stages 0 and 1, and fp32, make
# the same first update, which in Adam is the learning rate times the gradient's sign.
#
# Seen with deepspeed 0.19.8 and torch 2.13.0 on a CPU, one weight of 1, gradient 1, learning rate 0.1, AdamW: in bf16 at
# stage 0, initialize() steps with gradients of zero so that the moments are there. The step counts: the first real
# update is 0.74 of what it should be (its moments are corrected as those of a second step), the next ones are off, too,
# and weight decay is applied once too often. Only the fp32 copy has decayed; the weights that the model computes with
# follow with the first update.
set -euo pipefail
EXPECTED='fp32, stage 0, decay 0.0: 1.0000 at first, then 0.9000 0.8000
bf16, stage 1, decay 0.0: 1.0000 at first, then 0.9000 0.8000
bf16, stage 0, decay 0.0: 1.0000 at first, then 0.9256 0.8397
bf16, stage 1, decay 0.5: 1.0000 at first, then 0.8500 0.7075
bf16, stage 0, decay 0.5: 0.9500 at first, then 0.8281 0.7008'
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
pip="$folder/env/bin/pip"
"$pip" install -q 'torch==2.13.0+cpu' 2>/dev/null || "$pip" install -q torch==2.13.0
DS_BUILD_OPS=0 "$pip" install -q deepspeed==0.19.8
found=$(cd "$folder" && DS_ACCELERATOR=cpu "$folder/env/bin/python" - 2>/dev/null <<'PYTHON' | grep 'at first'
import os

import deepspeed
import deepspeed.ops
import torch

os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
# Its shared-memory communication would be compiled, for minutes.
deepspeed.ops.__dict__["__compatible_ops__"] = dict.fromkeys(deepspeed.ops.__compatible_ops__, False)
deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)


def updates(precision, stage, decay):
    """Return the first weight of fp32 after initialize, and after each of two steps with a gradient of 1."""
    model = torch.nn.Linear(4, 1, bias=False)
    torch.nn.init.ones_(model.weight)
    engine, optimizer, *_ = deepspeed.initialize(
        model=model, model_parameters=model.parameters(),
        config={
            "train_batch_size": 1, "zero_optimization": {"stage": stage}, "bf16": {"enabled": precision == "bf16"},
            "zero_allow_untested_optimizer": True,
            "optimizer": {"type": "AdamW", "params": {"lr": 0.1, "weight_decay": decay, "torch_adam": True}},
        },
    )
    held = optimizer.param_groups[0]["params"][0]
    masters = getattr(optimizer, "fp32_groups", None) or getattr(optimizer, "single_partition_of_fp32_groups", None)
    while isinstance(masters, list):
        masters = masters[0]
    held = held if masters is None else masters
    yield float(held.flatten()[0])
    for _ in range(2):
        engine.backward(engine(torch.ones(1, 4, dtype=model.weight.dtype)).sum())
        engine.step()
        yield float(held.flatten()[0])


for precision, stage, decay in (("fp32", 0, 0.0), ("bf16", 1, 0.0), ("bf16", 0, 0.0), ("bf16", 1, 0.5), ("bf16", 0, 0.5)):
    first, *after = (f"{value:.4f}" for value in updates(precision, stage, decay))
    print(f"{precision}, stage {stage}, decay {decay}: {first} at first, then {' '.join(after)}", flush=True)
PYTHON
)
echo "$found"
[ "$found" = "$EXPECTED" ] || { echo "expected: $EXPECTED" >&2; exit 1; }
