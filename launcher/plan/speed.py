"""Traffic and time of one optimizer step, from rates that the user may correct.

A matrix of N elements costs 2 N operations per token forward and 4 N backward. A gather of sharded weights brings to
each rank what it lacks, ``(R-1)/R`` of them; into each node come ``(M-1)/M`` of them per gather, over all of its links
(ring algorithms pass a node's border once).
"""

from __future__ import annotations

from dataclasses import dataclass

from launcher.plan.memory import Role


@dataclass(frozen=True)
class Hardware:
    """The hardware that a plan is for."""

    kind: str
    """Kind of device: ``gpu`` or ``cpu``."""
    memory: int
    """Bytes of each device."""
    per_node: int
    tflops: float
    """Peak of a device, dense, in the models' precision."""
    efficiency: float
    """Share of the peak that matrix products reach."""
    inter_gbps: float
    """Gigabits per second into a node from others."""
    intra_gbps: float
    """Gigabits per second into a device from others of its node."""

    def nodes(self, ranks: int) -> int:
        """Count the nodes that so many ranks take."""
        return -(-ranks // self.per_node)

    def seconds(self, operations: float) -> float:
        """Compute the seconds that so many operations take on one device."""
        return operations / (self.tflops * 1e12 * self.efficiency)

    def wire_seconds(self, per_device: float, per_node: float) -> float:
        """Compute the seconds of so many bytes into each device and into each node: the slower of the two."""
        return max(per_device * 8 / (self.intra_gbps * 1e9), per_node * 8 / (self.inter_gbps * 1e9))


@dataclass(frozen=True)
class Traffic:
    """Bytes that an optimizer step moves."""

    per_device: float
    """Bytes into each device."""
    per_node: float
    """Bytes into each node, from others."""

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.per_device + other.per_device, self.per_node + other.per_node)


def moved(role: Role, hardware: Hardware, passes: float) -> Traffic:
    """Compute the traffic of whole weights (or gradients) that are gathered or reduced so many times."""
    nodes = hardware.nodes(role.ranks)
    size = role.weights * passes
    return Traffic(size * (role.ranks - 1) / role.ranks, size * (nodes - 1) / nodes)


def teacher_traffic(role: Role, hardware: Hardware, forwards: int) -> Traffic:
    """Compute the teacher's traffic: a gather per forward of the window, none where every rank has the whole of it."""
    return moved(role, hardware, forwards if role.stage == 3 else 0)


def student_traffic(role: Role, hardware: Hardware, micro_batches: int) -> Traffic:
    """Compute the student's traffic.

    Gathers forward and backward (stage 3) and a reduction of gradients per micro-batch; stages 1 and 2 gather once.
    Where the backward pass finds the weights that the forward has gathered, they are gathered once.
    """
    if role.ranks == 1:
        return Traffic(0.0, 0.0)
    # Only what learns has gradients.
    reduction = role.shape.learning / role.shape.parameters
    if role.stage == 3:
        kept = role.gathered(backward=True) >= role.weights
        return moved(role, hardware, micro_batches * ((1 if kept else 2) + reduction))
    # Stages 0 and 1 reduce at the end of the step; an all-reduce is a reduction and a gather.
    return moved(role, hardware, ((micro_batches if role.stage == 2 else 1) + 1) * reduction)


def forward_operations(role: Role, tokens: float, rows: float) -> float:
    """Count the operations of a forward over so many tokens, with logits at so many rows."""
    shape = role.shape
    return 2 * (shape.body_parameters * tokens + shape.vocab * shape.hidden * rows)
