"""Tasks for teacher and student, one per file: prompts, answers, decoding limits, metrics.

A new task is a new module in this package that calls ``register``; it is found by itself.
"""

from uld_ds.tasks.registry import get_task, register, task_names
from uld_ds.tasks.task import Question, Shot, Task, TextTask

__all__ = ["Question", "Shot", "Task", "TextTask", "get_task", "register", "task_names"]
