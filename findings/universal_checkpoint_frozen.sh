#!/usr/bin/env bash
# A DeepSpeed checkpoint made universal, so that another number of ranks can load it, has lost frozen weights and
# buffers; loading it says nothing and leaves them as the new engine was made.
#
# Guess: converting to the universal format changes the division and not the contents. Strictly converted and loaded, all
# of a module comes back that the usual checkpoint of the same run brings back.
#
# Seen with deepspeed 0.19.8 and torch 2.13.0 on a CPU: a module with a layer that learns, a frozen one and a buffer,
# saved after one step, loaded into an engine whose values are others (a student whose base was read from other files, or
# drawn anew). The usual checkpoint restores all three at stages 2 and 3. Out of the universal one come the learning
# layer, its optimizer state and the step; frozen layer and buffer stay what they were. ds_to_universal is run as its
# command line runs it, with checks (strict), and load_checkpoint returns the path as after success. With low-rank
# adapters this is nearly the whole model.
set -euo pipefail
EXPECTED='stage 2, saved:     learns 0.90, frozen 1.00, buffer 1.00
stage 2, usual:     learns 0.90, frozen 1.00, buffer 1.00
stage 2, universal: learns 0.90, frozen 5.00, buffer 5.00
stage 3, saved:     learns 0.90, frozen 1.00, buffer 1.00
stage 3, usual:     learns 0.90, frozen 1.00, buffer 1.00
stage 3, universal: learns 0.90, frozen 5.00, buffer 5.00'
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
pip="$folder/env/bin/pip"
"$pip" install -q 'torch==2.13.0+cpu' 2>/dev/null || "$pip" install -q torch==2.13.0
DS_BUILD_OPS=0 "$pip" install -q deepspeed==0.19.8
found=$(cd "$folder" && DS_ACCELERATOR=cpu "$folder/env/bin/python" - 2>/dev/null <<'PYTHON' | grep 'learns'
import argparse
import os
import tempfile

import deepspeed
import deepspeed.ops
import torch
from deepspeed.checkpoint import ds_to_universal
from deepspeed.runtime.zero import GatheredParameters

os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
# Its shared-memory communication would be compiled, for minutes.
deepspeed.ops.__dict__["__compatible_ops__"] = dict.fromkeys(deepspeed.ops.__compatible_ops__, False)
deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)


class Net(torch.nn.Module):
    """A layer that learns, a frozen one and a buffer, all of one value."""

    def __init__(self, value):
        super().__init__()
        self.learns, self.frozen = (torch.nn.Linear(4, 4, bias=False) for _ in range(2))
        self.register_buffer("buffer", torch.full((4,), value))
        for weight in self.parameters():
            torch.nn.init.constant_(weight, value)
        self.frozen.requires_grad_(False)

    def forward(self, x):
        return (self.frozen(self.learns(x)) + self.buffer).sum()


def engine_of(value, stage, universal=False):
    model = Net(value)
    config = {
        "train_batch_size": 1, "zero_optimization": {"stage": stage}, "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False, "checkpoint": {"load_universal": universal},
        "optimizer": {"type": "AdamW", "params": {"lr": 0.1, "weight_decay": 0.0, "torch_adam": True}},
    }
    learning = [weight for weight in model.parameters() if weight.requires_grad]
    return deepspeed.initialize(model=model, model_parameters=learning, config=config)[0]


def show(title, engine):
    module = engine.module
    with GatheredParameters(list(module.parameters())):
        tensors = {"learns": module.learns.weight, "frozen": module.frozen.weight, "buffer": module.buffer}
        values = ", ".join(f"{name} {tensor.detach().flatten()[0]:.2f}" for name, tensor in tensors.items())
    print(f"{title:<19} {values}", flush=True)


for stage in (2, 3):
    folder = tempfile.mkdtemp(dir=".")
    engine = engine_of(1.0, stage)
    engine.backward(engine(torch.ones(1, 4)))
    engine.step()
    show(f"stage {stage}, saved:", engine)
    engine.save_checkpoint(folder, tag="usual")
    ds_to_universal.main(argparse.Namespace(
        input_folder=f"{folder}/usual", output_folder=f"{folder}/universal", num_extract_workers=1, num_merge_workers=1,
        keep_temp_folder=False, strict=True, inject_missing_state=True,
    ))
    for kind in ("usual", "universal"):
        engine = engine_of(5.0, stage, universal=kind == "universal")
        path, _ = engine.load_checkpoint(folder, tag=kind)
        assert path is not None
        show(f"stage {stage}, {kind}:", engine)
PYTHON
)
echo "$found"
[ "$found" = "$EXPECTED" ] || { echo "expected: $EXPECTED" >&2; exit 1; }
