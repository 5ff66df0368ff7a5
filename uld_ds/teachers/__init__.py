"""Sources of teacher outputs: a sharded model beside the student, a cache of its outputs, or a store on disk."""

from uld_ds.teachers.source import NonFiniteTeacherError, TeacherSource

__all__ = ["NonFiniteTeacherError", "TeacherSource"]
