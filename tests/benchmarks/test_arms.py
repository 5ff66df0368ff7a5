"""Tables, ratios and the cost model, on made-up measurements."""

from __future__ import annotations

from typing import Any

import arms
import pytest
import scaling
import step


def arm(name: str, *seconds: float, peak: float = 1e9, failed: str | None = None) -> dict[str, Any]:
    return {"name": name, "seconds": list(seconds), "peak_bytes": peak, "gathered_bytes": 5e6, "failed": failed}


def test_what_disturbed_a_turn_disturbed_both() -> None:
    # Each turn says 4; the medians alone would be as far apart.
    middle, said = arms.compared(arm("slow", 4.0, 8.0, 40.0), arm("fast", 1.0, 2.0, 10.0))
    assert (middle, said) == (4.0, "4.0 (4.0 to 4.0)")
    middle, said = arms.compared(arm("slow", 4.0, 4.0, 4.0), arm("fast", 1.0, 1.0, 4.0))
    assert middle != middle and said == "too noisy: between 1.0 and 4.0"
    assert arms.compared(arm("slow", 4.0), arm("fast", 1.0))[1] == "not measured"


def test_an_arm_that_cannot_start_has_failed(tmp_path: Any) -> None:
    broken = arms.Arm("broken", [["false"]])
    arms.in_turns("made up", [broken], 1, tmp_path / "log")
    assert broken.to_json() == arm("broken", peak=0, failed="process ended with 1") | {"gathered_bytes": 0}


def test_steps_table() -> None:
    some = [
        arm("online", 2.0, 2.0),
        arm("trl positional", 8.0, 9.0),
        arm("trl extended", failed="process ended with 1"),
    ]
    text = step.table([{"series": "length", "tokens": 512, "vocab": 32768, "arms": some}])
    rows = [line for line in text.splitlines() if line.startswith("| 512")]
    # Two answers of 512 tokens in two seconds.
    assert rows[0] == "| 512 | 32,768 | online | 2.00 (2.00 to 2.00) | 512 | 1.00 | 4.2 (4.0 to 4.5) |"
    assert rows[1].endswith("| 120 | 1.00 |  |")
    assert rows[2] == "| 512 | 32,768 | trl extended | process ended with 1 | | | |"


def test_points_of_both_series() -> None:
    options = step.parse(["--quick", "--lengths", "128"])
    found = step.points(options.lengths, options.vocabularies)
    assert [(point.tokens, point.vocab) for point in found] == [(128, 32768), (256, 65536)]
    options = step.parse(["--lengths", "128", "--vocabularies", "4096", "65536"])
    found = step.points(options.lengths, options.vocabularies)
    assert [(point.tokens, point.vocab) for point in found] == [(128, 32768), (256, 4096), (256, 65536)]
    with pytest.raises(SystemExit):
        step.parse(["--vocabularies", "1000"])


def test_ranks_table() -> None:
    measured = {"ranks": [1, 2], "teacher_bytes": 5e6, "arms": [arm("1 rank", 2.0, 2.0), arm("2 ranks", 3.0, 3.0)]}
    one, two = scaling.measured_table(measured).splitlines()[-4:-2]
    assert one.startswith("| 1 | 2.00 (2.00 to 2.00) |") and one.endswith("| 5 | 0 |")
    assert "| 1.5 (1.5 to 1.5) |" in two and two.endswith("| 5 | 5 |")


def test_the_model_says_what_saturates_first() -> None:
    options = scaling.parse(["--inter-gbps", "400"])
    grows = list(scaling.modeled(options, altogether=None))
    assert [row.nodes for row in grows] == [2, 4, 8, 16, 32, 64] and grows[-1].batch == 8192
    assert scaling.first_to_saturate(grows).startswith("Nothing saturates up to 64 x 8; closest is ")
    # As docs/plan.md has it: 70.55 GB into each of two nodes.
    assert grows[0].teacher["wires between nodes"] == pytest.approx(70.55 * 8 / 400, rel=1e-3)
    stays = list(scaling.modeled(options, altogether=1024))
    assert stays[0].seconds > 3 * stays[2].seconds
    assert scaling.first_to_saturate(stays).startswith("First to saturate: teacher: wires between nodes")
    slow = list(scaling.modeled(scaling.parse(["--inter-gbps", "10"]), altogether=None))
    text = scaling.model_table("Slow", slow)
    assert text.endswith("First to saturate: teacher: wires between nodes, student: wires between nodes, at 2 x 8.")
