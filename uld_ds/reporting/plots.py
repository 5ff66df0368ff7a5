"""What a run looked like, as pictures of its metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from uld_ds.runs.phases import OTHER, PHASES

History = Mapping[str, Sequence[tuple[int, float]]]

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#882255", "#7f7f7f")


def plots(history: History) -> Iterator[tuple[str, Figure]]:
    """Name of a file and the figure for it; those that there are metrics for.

    Args:
        history: of every metric, its steps and values in order.
    """
    for name, draw in (("loss.png", _loss), ("bits_per_byte.png", _bits), ("phases.png", _phases)):
        figure = Figure(figsize=(8, 4.5), layout="constrained", dpi=110)
        FigureCanvasAgg(figure)  # no window, no global state
        if draw(figure, history):
            yield name, figure


def _loss(figure: Figure, history: History) -> bool:
    names = {"train/loss": "loss", "train/ce": "cross-entropy (nats per token)", "train/uld": "ULD distance"}
    names |= {"train/likelihood": "likelihood divergence", "train/classical": "classical divergence"}
    names |= {"train/hybrid": "hybrid divergence", "train/projection": "projected divergence"}
    return _lines(figure, history, names, "Training loss", "per optimizer step")


def _bits(figure: Figure, history: History) -> bool:
    names = {"train/bits_per_byte": "training batches", "eval/bits_per_byte": "held out"}
    drawn = _lines(figure, history, names, "Bits per byte of answers", "bits per byte, lower is better")
    teacher = history.get("eval/teacher_bits_per_byte")
    if drawn and teacher:
        axes = figure.axes[0]
        axes.axhline(teacher[-1][1], color=_COLOURS[2], linestyle="--", label="teacher, held out")
        axes.legend(frameon=False)
    return drawn


def _lines(figure: Figure, history: History, names: Mapping[str, str], title: str, unit: str) -> bool:
    found = {label: history[name] for name, label in names.items() if history.get(name)}
    if not found:
        return False
    axes = _axes(figure, title, unit)
    for colour, (label, points) in zip(_COLOURS, found.items(), strict=False):
        steps, values = zip(*points, strict=True)
        few = len(points) <= 30
        axes.plot(steps, values, color=colour, label=label, marker="o" if few else None, markersize=3.5)
    axes.legend(frameon=False)
    return True


def _phases(figure: Figure, history: History) -> bool:
    """Shares of each step's seconds, one above the other."""
    known = {phase: dict(history.get(f"seconds/{phase}", ())) for phase in PHASES}
    total = dict(history.get("seconds/total", ()))
    steps = sorted(step for step, seconds in total.items() if seconds > 0)
    if not steps or not any(known.values()):
        return False
    shares = [[100 * seconds.get(step, 0.0) / total[step] for step in steps] for seconds in known.values()]
    rest = [max(0.0, 100 - sum(column)) for column in zip(*shares, strict=True)]  # what OTHER says, drawn last
    axes = _axes(figure, "Where a step's time goes", "% of the step's seconds, first worker")
    labels = [*known, OTHER]
    areas = axes.stackplot(steps, *shares, rest, labels=labels, colors=_COLOURS, step="mid")
    axes.legend(areas[::-1], labels[::-1], loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    axes.set_ylim(0, 100)
    if steps[-1] > steps[0]:
        axes.set_xlim(steps[0], steps[-1])
    return True


def _axes(figure: Figure, title: str, unit: str) -> Any:
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontweight="bold")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(unit)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return axes
