"""Freed host memory that goes back to the system, through glibc; with another C library nothing happens."""

from __future__ import annotations

import ctypes
from contextlib import suppress

_M_MMAP_THRESHOLD = -3
# Blocks of a few megabytes and more are single tensors; there are dozens of them in a step, not thousands.
_LARGE_BYTES = 4 << 20


def hand_back_large_blocks() -> None:
    """Have large blocks of memory returned to the system as soon as they are freed.

    By default glibc raises the size from which it does so up to 32 MB, and keeps what is smaller in heaps that
    fragment: forwards of a 135M teacher held 3.1 GB where 1.3 GB were in use.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)


def return_free_memory() -> None:
    """Hand all free memory back to the system, also what lies below something still in use."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
