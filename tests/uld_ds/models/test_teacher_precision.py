"""Which precision a teacher is computed in where its recipe leaves that to a measurement."""

import pytest
import torch

from uld_ds.models import teacher_precision
from uld_ds.models.teacher_precision import bf16_speedup, chosen_precision, precision_here


def test_auto_is_bf16_where_every_machine_multiplies_it_faster() -> None:
    assert chosen_precision("auto", on_gpu=False, speedups=[2.1, 1.3]) == "bf16"
    assert chosen_precision("auto", on_gpu=False, speedups=[2.1, 1.29]) == "fp32"
    assert chosen_precision("auto", on_gpu=True, speedups=[]) == "bf16"


def test_what_a_recipe_says_is_not_measured() -> None:
    for wanted in ("bf16", "fp32"):
        assert chosen_precision(wanted, on_gpu=False, speedups=iter(())) == wanted


def test_a_measurement_is_positive_and_leaves_the_threads_as_they_were() -> None:
    before = torch.get_num_threads()
    assert 0 < bf16_speedup() < 100
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(("bf16_seconds", "expected"), [(0.5, "bf16"), (1.0, "fp32"), (3.0, "fp32")])
def test_precision_here_follows_the_clock(monkeypatch: pytest.MonkeyPatch, bf16_seconds: float, expected: str) -> None:
    """The products are real; their times are those of a CPU that takes so many seconds for one of bf16, one of fp32."""
    now = 0.0
    products: list[torch.dtype] = []
    linear = torch.nn.functional.linear

    def timed(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        nonlocal now
        now += bf16_seconds if rows.dtype == torch.bfloat16 else 1.0
        products.append(rows.dtype)
        return linear(rows, weight)

    monkeypatch.setattr(teacher_precision.F, "linear", timed)
    monkeypatch.setattr(teacher_precision.time, "perf_counter", lambda: now)
    assert precision_here("auto", on_gpu=False) == expected
    # The first turn warms up; where bf16 takes more than twice as long, one more is enough.
    assert products.count(torch.bfloat16) == (2 if bf16_seconds > 2 else 31)
    assert precision_here("auto", on_gpu=True) == "bf16"
