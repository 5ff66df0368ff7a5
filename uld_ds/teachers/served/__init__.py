"""A teacher behind an inference engine: what its server says about prompts, asked for over HTTP."""

from uld_ds.teachers.served.teacher import ServedTeacher

__all__ = ["ServedTeacher"]
