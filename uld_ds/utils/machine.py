"""The machine that this process runs on: processor, cores and memory that it may use."""

from __future__ import annotations

import os
import platform
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Machine:
    """The processor, cores and memory of a machine, and what of them this process may use."""

    cpu: str
    """The processor's name, or the architecture's where the system does not say it."""
    cpu_bf16: bool
    """Whether the processor has instructions for bfloat16; without them bf16 is emulated, slowly."""
    cores: int
    """Cores of the machine."""
    usable_cores: float
    """Cores left by CPU affinity and the container's quota, which may be a fraction."""
    memory_bytes: int | None
    """Memory of the machine; None where the system does not say."""
    memory_limit_bytes: int | None
    """Memory limit of the container; None where there is none."""


def this_machine(proc: Path = _PROC, cgroup: Path = _CGROUP) -> Machine:
    """Read the system's files about this machine, without starting anything.

    Args:
        proc: where the kernel's ``/proc`` is.
        cgroup: where this process's control group is (version 2, as containers have it).
    """
    cpuinfo = _read(proc / "cpuinfo")
    name = re.search(r"^(?:model name|Model|cpu model)\s*:\s*(.+)$", cpuinfo, flags=re.M)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", cpuinfo, flags=re.M)
    instructions = set(flags[1].split()) if flags else set()
    memory = re.search(r"^MemTotal:\s*(\d+) kB$", _read(proc / "meminfo"), flags=re.M)
    limit = _read(cgroup / "memory.max").strip()
    return Machine(
        cpu=name[1].strip() if name else platform.machine(),
        cpu_bf16=not instructions.isdisjoint({"avx512_bf16", "amx_bf16", "bf16"}),
        cores=os.cpu_count() or 1,
        usable_cores=_usable_cores(_read(cgroup / "cpu.max")),
        memory_bytes=int(memory[1]) * 1024 if memory else None,
        memory_limit_bytes=int(limit) if limit.isdigit() else None,
    )


def _usable_cores(quota: str) -> float:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # "MICROSECONDS PERIOD", or "max PERIOD".
    given = re.fullmatch(r"(\d+) (\d+)\s*", quota)
    return min(cores, int(given[1]) / int(given[2])) if given else cores


def _read(file: Path) -> str:
    with suppress(OSError):
        return file.read_text(encoding="utf-8", errors="replace")
    return ""
