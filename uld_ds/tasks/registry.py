"""The registry of tasks by name."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from functools import cache

from uld_ds.tasks.task import Task

_TASKS: dict[str, Task] = {}


def register(task: Task) -> Task:
    """Register a task under its name, and return it."""
    assert task.name not in _TASKS, f"two tasks are called {task.name!r}"
    _TASKS[task.name] = task
    return task


def get_task(name: str) -> Task:
    """Return the task of a name.

    Raises:
        ValueError: there is none; names the nearest one.
    """
    _load_all()
    if name not in _TASKS:
        near = difflib.get_close_matches(name, _TASKS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(task_names())}"
        raise ValueError(f"no task {name!r}: {hint}")
    return _TASKS[name]


def task_names() -> list[str]:
    """List the names of all tasks, sorted."""
    _load_all()
    return sorted(_TASKS)


@cache
def _load_all() -> None:
    package = importlib.import_module("uld_ds.tasks")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"uld_ds.tasks.{module.name}")
