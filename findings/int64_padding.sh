#!/usr/bin/env bash
# torch pads integers with another number than it was given: the fill value goes through a float, and the largest int64,
# the usual sentinel behind sorted keys, may come out as the smallest.
#
# Guess: a fill value of an int64 tensor is an int64, as in torch.full and masked_fill; what cannot be kept is refused.
#
# Seen with torch 2.13.0 on a CPU: eleven ways to write a number into an int64 tensor keep 2**53 + 1 and 2**62 + 1. Five
# that pad (F.pad, ConstantPad1d, pad_sequence, to_padded_tensor of both layouts) lose the last digit of both, without an
# error, a warning or another type. Of 2**63 - 1, which no float holds, they make what the processor makes of a float that
# is too large: on x86 it is -2**63, and a binary search behind such a sentinel finds nothing in order any more. Ids below
# 2**53 are safe; keys of two ids in one number, hashes and sentinels are not.
set -euo pipefail
EXPECTED='16 ways, 11 keep 2**53 + 1 and 2**62 + 1; others, by how much they are off:
ConstantPad1d -1 -1
F.pad -1 -1
pad_sequence -1 -1
to_padded_tensor -1 -1
to_padded_tensor, jagged -1 -1'
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
pip="$folder/env/bin/pip"
"$pip" install -q 'torch==2.13.0+cpu' 2>/dev/null || "$pip" install -q torch==2.13.0
"$pip" install -q numpy==2.4.6
found=$("$folder/env/bin/python" - 2>/dev/null <<'PYTHON'
import torch
from torch.nn import functional

one, two = torch.tensor([1]), torch.tensor([1, 2])
place = torch.tensor([0])
ways = {
    "tensor": lambda value: torch.tensor([value]),
    "full": lambda value: torch.full((1,), value),
    "full_like": lambda value: torch.full_like(one, value),
    "new_full": lambda value: one.new_full((1,), value),
    "fill_": lambda value: one.clone().fill_(value),
    "masked_fill": lambda value: one.masked_fill(one == 1, value),
    "where": lambda value: torch.where(one == 1, value, one),
    "index_fill": lambda value: one.index_fill(0, place, value),
    "scatter": lambda value: one.scatter(0, place, value),
    "clamp": lambda value: one.clamp(min=value),
    "add": lambda value: one * 0 + value,
    "F.pad": lambda value: functional.pad(one, (0, 1), value=value)[1:],
    "ConstantPad1d": lambda value: torch.nn.ConstantPad1d((0, 1), value)(one[None])[0, 1:],
    "pad_sequence": lambda value: torch.nn.utils.rnn.pad_sequence([one, two], padding_value=value)[1:, 0],
    "to_padded_tensor": lambda value: torch.nested.nested_tensor([one, two]).to_padded_tensor(value)[0, 1:],
    "to_padded_tensor, jagged": lambda value: torch.nested.nested_tensor(
        [one, two], layout=torch.jagged
    ).to_padded_tensor(value)[0, 1:],
}
asked = [2**53 + 1, 2**62 + 1]
lines = []
for name, way in sorted(ways.items()):
    made = [way(value) for value in asked]
    assert all(tensor.dtype == torch.int64 and tensor.shape == (1,) for tensor in made)
    off = [int(tensor) - value for tensor, value in zip(made, asked)]
    if any(off):
        lines.append(f"{name} {off[0]} {off[1]}")
print(f"{len(ways)} ways, {len(ways) - len(lines)} keep 2**53 + 1 and 2**62 + 1; others, by how much they are off:")
print("\n".join(lines))
print("of 2**63 - 1, F.pad makes here", int(ways["F.pad"](2**63 - 1)))
PYTHON
)
echo "$found"
[ "$(echo "$found" | sed '$d')" = "$EXPECTED" ] || { echo "expected: $EXPECTED" >&2; exit 1; }
