"""The loss needs memory for one chunk of logits, however many positions there are."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from tests.helpers.segments import micro_batch_of, teacher_of
from uld_ds.batches import SegmentRows, SideBatch
from uld_ds.losses.normalization import RowWeights
from uld_ds.losses.objective import Objective
from uld_ds.models import row_model
from uld_ds.models.row_model import Head, LogitMap
from uld_ds.recipe import ObjectiveSettings
from uld_ds.spectrum.spectrum import Spectrum

HIDDEN, VOCAB, TEACHER_VOCAB = 64, 150_000, 60_000
FEW, MANY = 256, 2048
MB = 1_000_000
LINUX_COUNTERS = Path("/proc/self/clear_refs")

pytestmark = pytest.mark.skipif(not LINUX_COUNTERS.exists(), reason="reads Linux's own count of a process's memory")


class Peaks(NamedTuple):
    """Bytes beyond what was resident before."""

    teacher: int
    """Hidden states to spectra."""
    loss: int
    """Forward and backward of the objective, with the spectra at hand."""
    spectrum: int
    """What the spectra hold."""


def loss_of(
    settings: ObjectiveSettings, hidden: torch.Tensor, head: Head, ids: torch.Tensor, spectrum: Spectrum
) -> torch.Tensor:
    """The objective, with a segment at every position."""
    rows, nothing = torch.arange(len(ids)), torch.empty(0, dtype=torch.long)
    batch = SideBatch(nothing, nothing, nothing, ids, nothing, nothing)
    segments = SegmentRows(rows, nothing, nothing, nothing, nothing, nothing)
    weights = RowWeights(*[torch.full((len(ids),), 1 / len(ids))] * 2)
    loss, _ = Objective(settings)(hidden, head, micro_batch_of(batch, segments), teacher_of(spectrum), weights)
    return loss


def resident(counter: str) -> int:
    (line,) = [text for text in Path("/proc/self/status").read_text().splitlines() if text.startswith(counter)]
    return int(line.split()[1]) * 1024


class Peak:
    """The most bytes resident inside a ``with`` beyond those before it."""

    def __enter__(self) -> Peak:
        LINUX_COUNTERS.write_text("5")  # resets VmHWM to what is resident now
        self._before = resident("VmRSS:")
        return self

    def __exit__(self, *_error: object) -> None:
        self.bytes = resident("VmHWM:") - self._before


def measured(positions: int, options: dict[str, Any]) -> Peaks:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    settings = ObjectiveSettings(**options)
    teacher_head = Head(torch.randn(TEACHER_VOCAB, HIDDEN) / 4, None, LogitMap())
    head = Head((torch.randn(VOCAB, HIDDEN) / 4).requires_grad_(), None, LogitMap())
    of_teacher, of_student = torch.randn(positions, HIDDEN), torch.randn(positions, HIDDEN).requires_grad_()
    ids = torch.randint(0, VOCAB, (positions,))
    with torch.no_grad(), Peak() as teacher:
        chunks = teacher_head.chunks(of_teacher)
        spectrum = Spectrum.cat([Spectrum.from_logits(teacher_head.logits(of_teacher[chunk])) for chunk in chunks])
    with Peak() as loss:
        loss_of(settings, of_student, head, ids, spectrum).backward()
    return Peaks(teacher.bytes, loss.bytes, spectrum.num_bytes)


def in_fresh_processes(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> list[Peaks]:
    """At FEW and at MANY positions."""
    # Freed tensors go back to the system at once, so that what is counted is in use.
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=spawn, max_tasks_per_child=1) as pool:
        return list(pool.map(measured, (FEW, MANY), (options, options)))


@pytest.mark.parametrize(
    "options",
    [{}, pytest.param({"student_temperature": 2.0}, marks=pytest.mark.slow)],
    ids=["closed form", "by autograd"],
)
def test_memory_does_not_grow_with_the_positions(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    few, many = in_fresh_processes(options, monkeypatch)
    one_vector = (MANY - FEW) * HIDDEN * 4
    # Hidden states in the order of their chunks, their gradient, the same scaled, and autograd's copy of it: 1.8 MB.
    # Logits of the added positions would be 1,075 MB. 4 MB are for what an interpreter and an allocator do.
    assert many.loss - few.loss <= 4 * one_vector + 4 * MB, (few, many)
    # One chunk of logits and their gradient, and the head's gradient twice; by autograd four chunks more. 20 MB are for
    # the scratch that counts levels, and less than a chunk (34 MB), so that one too many is seen.
    chunk, head = row_model._CHUNK_ELEMENTS_CPU * 4, VOCAB * HIDDEN * 4
    assert many.loss <= (6 if options else 2) * chunk + 2 * head + 20 * MB, (few, many)
    # The teacher's part: its spectra, while a chunk of its logits is there too. At most 8.5 kB a row.
    assert many.teacher - few.teacher <= many.spectrum - few.spectrum + 4 * MB, (few, many)
    assert many.spectrum <= MANY * 8500
