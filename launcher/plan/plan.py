"""A recipe's plan: memory per rank, traffic and time per step, whether it fits, and which change would make it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal

from launcher.plan.memory import BASE, HOST_BASE, Line, Role, checkpoint_bytes, student_lines, teacher_lines
from launcher.plan.sampling import Round, round_of, sampling_lines
from launcher.plan.shapes import Shape
from launcher.plan.speed import Hardware, Traffic, forward_operations, student_traffic, teacher_traffic
from uld_ds.errors import UserError
from uld_ds.models.architectures import DTYPES
from uld_ds.recipe import DType, NamedTeacherSettings, Recipe, parse_recipe
from uld_ds.training.deepspeed_config import read_config, read_student_config

USABLE = 0.94
"""Share of a device's memory that allocations can fill before its fragments stop them."""
_MOST_DEVICES = 1024
_MOMENTS = ("loading", "sampling", "teacher", "student", "step")
# What a single change of a recipe may be, in the order in which it hurts least.
_CHANGES: tuple[dict[str, Any], ...] = (
    {"teacher.sharding": "zero3"},
    {"student.gradient_checkpointing": True},
    {"training.micro_batch_size": 1},
    {"training.micro_batch_tokens": "half"},
    {"teacher.max_tokens_per_forward": "half"},
    {"rollouts.batch_size": "half"},
    {"rollouts.ahead": 0},
    {"student.deepspeed": "student_zero3_{kind}.json"},
    {"teacher.source": "stored", "teacher.path": "STORE"},
    {"teacher.deepspeed": "teacher_zero3_gpu_offload.json"},
    {"student.deepspeed": "student_zero3_gpu_offload.json"},
)


@dataclass(frozen=True)
class PlannedTeacher:
    """A teacher that runs, and how it is held."""

    settings: NamedTeacherSettings
    role: Role
    tokens: float
    """Tokens of a rank's window that it reads."""

    @property
    def called(self) -> str:
        """What lines and times call it: ``teacher``, or with its name where there are several."""
        return self.settings.key.replace("teachers.", "teacher ")

    def forwards(self, share: float = 1.0) -> int:
        """Count its forwards of a share of a window."""
        return max(1, -int(-share * self.tokens // self.settings.max_tokens_per_forward))


def _section(tree: dict[str, Any], key: str) -> tuple[Any, str]:
    """Find the section of a recipe's plain values that a key is in, and the key's name there."""
    section, _, name = key.rpartition(".")
    if not section.startswith("teachers."):
        return tree[section], name
    called = section.partition(".")[2]
    return next(own for own in tree["teachers"] if own["name"] == called), name


@dataclass(frozen=True)
class Plan:
    """The plan of one recipe on one kind of hardware."""

    recipe: Recipe
    hardware: Hardware
    student_shape: Shape
    teacher_shapes: Mapping[str, Shape]
    """Sizes of the teachers that run, by their names: a stored one takes no memory."""
    student_tokens: float
    """Mean student tokens per example."""
    teacher_tokens: float | None = None
    """Mean tokens of every teacher per example; None: each one's ``max_length``."""

    @property
    def ranks(self) -> int:
        """Number of workers."""
        return self.recipe.cluster.workers

    @property
    def kind(self) -> Literal["cpu", "gpu"]:
        """Kind of device that the plan is for."""
        return "gpu" if self.hardware.kind == "gpu" else "cpu"

    @cached_property
    def student(self) -> Role:
        """The student, and how it is held."""
        settings = self.recipe.student
        size = self.student_shape.parameters * DTYPES[settings.precision].itemsize
        config = read_student_config(settings, on_gpu=self.kind == "gpu", weight_bytes=size)
        zero = config.get("zero_optimization", {})
        return Role(self.student_shape, settings.precision, zero, self.ranks, self.kind)

    @cached_property
    def teachers(self) -> list[PlannedTeacher]:
        """The teachers that run, and how each is held."""
        return [
            PlannedTeacher(settings, self._held(settings), self._tokens_of(settings))
            for settings in self.recipe.teachers
            if settings.source == "online" and settings.name in self.teacher_shapes
        ]

    def _held(self, settings: NamedTeacherSettings) -> Role:
        config = read_config(settings.deepspeed, "teacher", on_gpu=self.kind == "gpu")
        zero = config.get("zero_optimization", {}) if settings.sharding == "zero3" else {}
        # Which of them ``auto`` is on a CPU, only a measurement there can tell: room for the larger one.
        either: DType = "bf16" if self.kind == "gpu" else "fp32"
        precision = either if settings.precision == "auto" else settings.precision
        return Role(self.teacher_shapes[settings.name], precision, zero, self.ranks, self.kind)

    def _tokens_of(self, settings: NamedTeacherSettings) -> float:
        """Compute the tokens of a rank's window that a teacher reads: of rows that are routed, an equal share."""
        share = len(self.recipe.teachers) if self.recipe.objective.combine == "route" else 1
        return self.examples_per_rank * (self.teacher_tokens or settings.max_length) / share

    @property
    def loss_passes(self) -> int:
        """How often the loss goes over the student's head: the difference of two teachers is compared with as one."""
        return 1 if self.recipe.objective.combine == "difference" else len(self.recipe.teachers)

    @property
    def examples_per_rank(self) -> float:
        """Examples of a window on each rank."""
        return self.recipe.training.batch_size / self.ranks

    @property
    def micro_batch_tokens(self) -> int:
        """Most tokens of a micro-batch of the student."""
        training, longest = self.recipe.training, self.recipe.student.max_length
        most = min(training.micro_batch_size, math.ceil(self.examples_per_rank)) * longest
        return most if training.micro_batch_tokens is None else min(most, max(training.micro_batch_tokens, longest))

    @property
    def student_forwards(self) -> int:
        """Micro-batches of a step on each rank: those that all of its examples fill at their longest."""
        if self.recipe.training.micro_batch_tokens is None:
            return self.recipe.accumulation
        return max(1, math.ceil(self.examples_per_rank * self.recipe.student.max_length / self.micro_batch_tokens))

    @property
    def teacher_forwards(self) -> int:
        """Teacher forwards of a window, of all teachers: each gathers one of them once."""
        return sum(teacher.forwards() for teacher in self.teachers)

    @property
    def round(self) -> Round | None:
        """What a round of rollouts samples; None without rollouts."""
        return round_of(self.recipe)

    @cached_property
    def lines(self) -> list[Line]:
        """All items that take memory on the rank that needs most."""
        settings, tokens = self.recipe.student, self.micro_batch_tokens
        lines = [Line("worker", "libraries and device context", BASE[self.kind])]
        if self.kind == "gpu":
            lines.append(Line("worker", "libraries", HOST_BASE, "host"))
        lines += student_lines(
            self.student,
            tokens=tokens,
            rows=tokens,
            checkpointing=settings.gradient_checkpointing,
            passes=self.loss_passes,
        )
        for teacher in self.teachers:
            longest = teacher.settings.max_length
            forward = min(max(teacher.settings.max_tokens_per_forward, longest), int(self.examples_per_rank * longest))
            rows, top_ids = max(forward, 1), self.recipe.taught.num_top_ids
            lines += teacher_lines(
                teacher.role,
                tokens=rows,
                rows=rows,
                window_rows=int(teacher.tokens),
                top_ids=top_ids,
                called=teacher.called,
            )
        if self.recipe.rollouts is not None and self.round is not None:
            answers, longest = self.round.answers, settings.max_length
            lines += sampling_lines(self.student, self.recipe.rollouts, longest=longest, answers=answers)
        return [line for line in lines if line.bytes > 0]

    def bytes_at(self, moment: str, place: str) -> int:
        """Sum the bytes on the first rank at a moment, in device or host memory; on a CPU both are the same memory."""
        places = ("device", "host") if self.kind == "cpu" else (place,)
        here = [line for line in self.lines if line.place in places]
        always = sum(line.bytes for line in here if line.moment == "always")
        if moment == "loading":
            return self._loading(here)
        by_role: dict[str, int] = {}
        for line in here:
            if line.moment == moment:
                by_role[line.role] = by_role.get(line.role, 0) + line.bytes
        # Several teachers run one after the other.
        return always + max(by_role.values(), default=0)

    def _loading(self, lines: list[Line]) -> int:
        """Compute the peak of loading.

        Teachers first, then the student; optimizer and gradients come after that.
        """
        held = sum(line.bytes for line in lines if line.role == "worker")
        peaks = [held]
        for role in (*(teacher.called for teacher in self.teachers), "student"):
            whole = sum(line.bytes for line in lines if line.role == role and line.moment == "loading")
            held += sum(line.bytes for line in lines if line.role == role and line.what == "weights")
            peaks.append(held + whole)
        return max(peaks)

    @property
    def device_peak(self) -> int:
        """Most bytes of device memory at any moment."""
        return max(self.bytes_at(moment, "device") for moment in _MOMENTS)

    @property
    def host_peak(self) -> int:
        """Most bytes of host memory at any moment, on the first rank, which loads."""
        return max(self.bytes_at(moment, "host") for moment in _MOMENTS)

    @property
    def disk(self) -> dict[str, int]:
        """Bytes on disk of checkpoints (one is complete before an older one goes, one is staged) and of the export."""
        shape, kept = self.student_shape, self.recipe.training.keep_checkpoints + 2
        checkpoint = sum(checkpoint_bytes(replace(self.student, ranks=1)))
        # An export is never in 4 bits.
        return {"checkpoints": checkpoint * kept, "export": shape.parameters * self.student.width}

    @property
    def fits(self) -> bool:
        """Whether the peak is within the usable share of a device's memory."""
        return self.device_peak <= USABLE * self.hardware.memory

    def traffic(self) -> dict[str, Traffic]:
        """Compute the traffic of an optimizer step, by role."""
        student = student_traffic(self.student, self.hardware, self.student_forwards)
        moved = {
            teacher.called: teacher_traffic(teacher.role, self.hardware, teacher.forwards())
            for teacher in self.teachers
        }
        return {**moved, "student": student}

    def seconds(self) -> dict[str, dict[str, float]]:
        """Compute the seconds of a step by role: computing, on the wire, and the longer of them (gathers run ahead)."""
        traffic = self.traffic()
        work = {"student": self._student_operations()}
        for teacher in self.teachers:
            work[teacher.called] = forward_operations(teacher.role, teacher.tokens, teacher.tokens)
        found = {}
        for role, moved in traffic.items():
            compute = self.hardware.seconds(work[role])
            wire = self.hardware.wire_seconds(moved.per_device, moved.per_node)
            found[role] = {"compute": compute, "wire": wire, "longer": max(compute, wire)}
        return found

    def cached_seconds(self) -> float:
        """Compute the longer seconds of a step in which the teacher judges own answers alone, the others being cached.

        How long the student takes to sample them is not in it.
        """
        seconds, training = self.seconds(), self.recipe.training
        share = self.recipe.own_examples / training.batch_size
        whole = seconds["student"]["longer"]
        for teacher in self.teachers:
            part = share if teacher.settings.cache else 1.0
            own, forwards = seconds[teacher.called], teacher.forwards(part) / teacher.forwards()
            if part:
                whole += max(part * own["compute"], own["wire"] * forwards)
        return whole

    def _student_operations(self) -> float:
        tokens = self.examples_per_rank * self.student_tokens
        # Backward takes twice a forward: for what goes on to the layer before, and for the weights that learn.
        learning = self.student_shape.learning / self.student_shape.parameters
        passes = (3 if self.recipe.student.gradient_checkpointing else 2) + learning
        return passes * forward_operations(self.student, tokens, tokens)

    def changed(self, changes: Mapping[str, Any]) -> Plan:
        """Plan the same with some keys of the recipe changed.

        Raises:
            UserError: a recipe cannot be like that.
        """
        tree = self.recipe.model_dump(mode="json")
        for key, value in changes.items():
            section, name = _section(tree, key)
            section[name] = value
        return replace(self, recipe=parse_recipe(tree))

    def helpful_changes(self) -> list[dict[str, Any]]:
        """List single changes that make it fit, the least painful first; none where it fits."""
        return [] if self.fits else [change for change in self._possible_changes() if self._would_fit(change)]

    def _possible_changes(self) -> Iterator[dict[str, Any]]:
        tree = self.recipe.model_dump(mode="json")
        by_tokens = tree["training"]["micro_batch_tokens"] is not None
        for change in _CHANGES:
            if by_tokens and "training.micro_batch_size" in change:
                continue
            for own in self._changes_of(change):
                # Of a section that the recipe does not have, nothing changes.
                if any(_section(tree, key)[0] is None for key in own):
                    continue
                values = {key: self._value(tree, key, value) for key, value in own.items()}
                sections = {key: _section(tree, key) for key in values}
                if any(sections[key][0][sections[key][1]] != value for key, value in values.items()):
                    yield values

    def _changes_of(self, change: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Write a change of the teacher as one of each teacher that runs."""
        if not all(key.startswith("teacher.") for key in change):
            return [dict(change)]
        sections = [teacher.settings.key for teacher in self.teachers]
        return [{f"{own}.{key.partition('.')[2]}": value for key, value in change.items()} for own in sections]

    def _value(self, tree: dict[str, Any], key: str, value: Any) -> Any:
        section, name = _section(tree, key)
        if value == "half":
            return section[name] and max(1, section[name] // 2)
        if name == "path":
            return section[name] or value
        return value.format(kind=self.kind) if isinstance(value, str) else value

    def _would_fit(self, change: dict[str, Any]) -> bool:
        try:
            return self.changed(change).fits
        except UserError:
            return False

    def devices_needed(self) -> int | None:
        """Find the smallest power of two of devices that hold it; None where more do not help."""
        number = 1
        while number <= _MOST_DEVICES:
            if self._on(number).fits:
                return number
            number *= 2
        return None

    def _on(self, number: int) -> Plan:
        # The batch per rank stays: other sizes of it are another question.
        training = self.recipe.training
        per_rank = math.ceil(training.batch_size / self.ranks)
        cluster = self.recipe.cluster.model_copy(update={"workers": number})
        training = training.model_copy(update={"batch_size": per_rank * number})
        return replace(self, recipe=self.recipe.model_copy(update={"cluster": cluster, "training": training}))

    def to_json(self) -> dict[str, Any]:
        """Convert the plan to plain data: bytes, seconds, tokens."""
        seconds, places = self.seconds(), ("device", "host")
        tokens = {
            "student": self.examples_per_rank * self.student_tokens,
            **{teacher.called: teacher.tokens for teacher in self.teachers},
        }
        return {
            "workers": self.ranks,
            "hardware": asdict(self.hardware),
            "student": asdict(self.student_shape),
            **(
                {teacher.called: asdict(teacher.role.shape) for teacher in self.teachers}
                or {"teacher": None}  # a stored one
            ),
            "lines": [asdict(line) for line in self.lines],
            "moments": {place: {moment: self.bytes_at(moment, place) for moment in _MOMENTS} for place in places},
            "device_peak_bytes": self.device_peak,
            "host_peak_bytes": self.host_peak,
            "disk_bytes": self.disk,
            "tokens_per_window": tokens,
            "teacher_forwards_per_step": self.teacher_forwards,
            "round": None if self.round is None else asdict(self.round),
            "traffic_bytes": {role: asdict(moved) for role, moved in self.traffic().items()},
            "seconds": {**seconds, "step": sum(role["longer"] for role in seconds.values())},
            "fits": self.fits,
            "devices_needed": self.devices_needed(),
            "changes_that_fit": self.helpful_changes(),
        }
