"""What a side brings with it into every process that prepares rows."""

from __future__ import annotations

import subprocess
import sys


def test_preparing_rows_does_not_import_what_makes_models() -> None:
    """It took seconds in each process, and its 1,600 modules slowed the garbage collector for good."""
    code = "import sys, uld_ds.data.sides; print(*sorted({name.split('.')[0] for name in sys.modules}), *sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    assert "uld_ds.models.parts" in found
    assert not {"scipy", "sympy", "accelerate", "transformers.modeling_utils", "torch._dynamo.eval_frame"} & set(found)
