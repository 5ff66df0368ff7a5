"""Sources of teacher outputs: a model beside the student or behind a server, a cache of it, or a store on disk."""

from uld_ds.teachers.source import NonFiniteTeacherError, TeacherSource

__all__ = ["NonFiniteTeacherError", "TeacherSource"]
