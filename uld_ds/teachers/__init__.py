"""Where the teacher's spectra come from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from uld_ds.teachers.tokens import TeacherTokens
