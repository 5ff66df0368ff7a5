#!/usr/bin/env bash
# TRL's cross-tokenizer distillation, as it is by default, never looks at what a model predicts for the first token of
# an answer, and does look at what it predicts for the end although that is told to be skipped.
#
# Guess: logits are shifted as in every causal loss. By default the end of an answer is left out on both sides
# (uld_skip_student_eos, uld_skip_teacher_eos), so of an answer of four tokens and its end the four rows that predict
# the four tokens are compared; where two tokens of one side are one of the other, what is multiplied in is the
# probability that the model gave the second token.
#
# Seen with trl 1.16.0 (GOLDTrainer's ULDLoss; it is handed the models' logits whole): under the default
# uld_token_merge_strategy "observed" rows are taken where the answer's tokens stand, not where they are predicted. The
# first token is not learned, the end is learned although skipped, and told not to skip it, what follows the end is, too.
# Where two tokens are merged, the factor is the probability of the second token in the row *behind* it: where both
# models give every token of the answer 90 %, the merged row's mass is 1 % and not 90 %. "bayesian" has the rows that one
# expects, also where nothing is merged.
set -euo pipefail
EXPECTED='observed, skipping ends: 2 3 4 end; merged mass 0.01
observed, ends compared: 2 3 4 end behind; merged mass 0.01
bayesian, skipping ends: 1 2 3 4; merged mass 0.90
bayesian, ends compared: 1 2 3 4 end; merged mass 0.90'
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
pip="$folder/env/bin/pip"
"$pip" install -q 'torch==2.13.0+cpu' 2>/dev/null || "$pip" install -q torch==2.13.0
"$pip" install -q transformers==5.23.0 trl==1.16.0
found=$(cd "$folder" && "$folder/env/bin/python" - 2>/dev/null <<'PYTHON'
import torch
from trl.experimental.gold import GOLDConfig
from trl.experimental.gold.gold_trainer import ULDLoss

torch.manual_seed(0)
vocabulary, prompt, end = 11, 3, 1
ids = torch.tensor([[2, 3, 4, 5, 6, 7, 8, end]])  # a prompt of three tokens, an answer of four, its end
labels = ids.clone()
labels[:, :prompt] = -100
offsets = torch.tensor([[[0, 0]] * prompt + [[0, 1], [1, 2], [2, 3], [3, 4], [4, 4]]])
predicted = ["", "", "1", "2", "3", "4", "end", "behind"]  # by each row of the logits
for strategy in ("observed", "bayesian"):
    for skips in (True, False):
        loss = ULDLoss(GOLDConfig(
            output_dir=".", report_to=[], use_cpu=True, bf16=False, uld_token_merge_strategy=strategy,
            uld_skip_student_eos=skips, uld_skip_teacher_eos=skips,
        ))
        student = torch.randn(1, 8, vocabulary, requires_grad=True)
        loss(student, torch.randn(1, 8, vocabulary), labels, labels, ids, ids, offsets, offsets).backward()
        rows = [name for name, row in zip(predicted, student.grad[0]) if bool(row.any())]
        # A model that gives every token 90 %, and another tokenizer whose second token is tokens 2 and 3 of this one.
        begin = prompt - (strategy == "bayesian")  # as ULDLoss slices its logits
        probabilities = torch.full((8, vocabulary), 0.1 / (vocabulary - 1))
        probabilities[torch.arange(7), ids[0, 1:]] = 0.9
        merged = loss._merge_probabilities_with_alignment_groups(
            probabilities[begin : begin + 4], [[0], [1, 2], [3]], ids[0, prompt : prompt + 4].tolist()
        )
        title = f"{strategy}, {'skipping ends' if skips else 'ends compared'}"
        print(f"{title}: {' '.join(rows)}; merged mass {float(merged[1].sum()):.2f}")
PYTHON
)
echo "$found"
[ "$found" = "$EXPECTED" ] || { echo "expected: $EXPECTED" >&2; exit 1; }
