"""What a failed gang says in one line."""

from __future__ import annotations

import pytest

from launcher.cluster.worker_group import cause

SNIPPET = """Training failed due to worker errors:
[Rank 0 Error Snippet]:
Traceback (most recent call last):
  File "uld_ds/workers/train.py", line 63, in train_worker
    Worker(job).run()
"""


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (SNIPPET + "FloatingPointError: the loss is nan\n", "FloatingPointError: the loss is nan"),
        (
            SNIPPET
            + 'yaml.scanner.ScannerError: while scanning an alias\n  in "<text>", line 3:\n    a: ***\n       ^\n',
            'yaml.scanner.ScannerError: while scanning an alias in "<text>", line 3: a: *** ^',
        ),
        ("out of luck\n", "out of luck"),
        ("", "RuntimeError"),
    ],
)
def test_the_cause_is_the_exception_with_all_of_its_text(message: str, expected: str) -> None:
    assert cause(RuntimeError(message)) == expected
