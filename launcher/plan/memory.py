"""Bytes per rank: what a recipe holds all the time, and what comes on top at its highest moment.

Counted, not measured: every line is a formula below, and ``benchmarks/plan.py`` compares their sum with what ranks
really took. Activations follow what transformers' decoder layers keep for the backward pass (their norms compute in
fp32, attention is PyTorch's fused one, which keeps no scores); compare Korthikanti et al., arXiv 2205.05198.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from launcher.plan.shapes import Shape
from uld_ds.models.quantization import BYTES_PER_WEIGHT
from uld_ds.recipe import DType
from uld_ds.spectrum.histogram import LevelGrid
from uld_ds.spectrum.spectrum import DEFAULT_NUM_HEAD

Place = Literal["device", "host", "disk"]
BYTES: dict[DType, int] = {"fp32": 4, "bf16": 2}
# A worker before it has any model: Python with its libraries, or a CUDA context with NCCL's buffers.
BASE = {"cpu": 750 * 10**6, "gpu": 1_500 * 10**6}
HOST_BASE = 2_500 * 10**6
"""Bytes of host memory of a process beside a GPU: libraries with CUDA's kernels."""
# Elements of logits at a time (``uld_ds.models.row_model``), and of the scratch that counts their levels
# (``uld_ds.spectrum``).
_HEAD_ELEMENTS = {"cpu": 1 << 23, "gpu": 1 << 27}
_SPECTRUM_ELEMENTS = {"cpu": 1 << 20, "gpu": 1 << 25}
_SPECTRUM_SCRATCH = 28
# An id (int64) and a log-probability.
_TOP_TOKEN_BYTES = 8 + 4
_SPECTRUM_BYTES = 4 * (DEFAULT_NUM_HEAD + 2 * LevelGrid.below_head(DEFAULT_NUM_HEAD).num_bins + 1)
_SUB_GROUP = 1_000_000_000


@dataclass(frozen=True)
class Line:
    """An item that takes memory on one rank."""

    role: str
    """``worker``, ``student``, ``teacher``; of several teachers, ``teacher NAME``."""
    what: str
    bytes: int
    place: Place = "device"
    moment: Literal["always", "loading", "sampling", "teacher", "student", "step"] = "always"
    """Moment at which it is there; of the moments, one is at a time."""


@dataclass(frozen=True)
class Role:
    """A model, and how it is held."""

    shape: Shape
    precision: DType
    zero: dict[str, Any]
    """``zero_optimization`` of its DeepSpeed configuration; empty for a model that is whole everywhere."""
    ranks: int
    kind: Literal["cpu", "gpu"]

    @property
    def width(self) -> int:
        """Bytes of an element."""
        return BYTES[self.precision]

    @property
    def stage(self) -> int:
        """ZeRO stage, 0 for a model that is whole everywhere."""
        return int(self.zero.get("stage", 0))

    @property
    def weights(self) -> int:
        """Bytes of all weights, counted once over all ranks."""
        quantized = self.shape.quantized
        return (self.shape.parameters - quantized) * self.width + round(quantized * BYTES_PER_WEIGHT)

    def offload(self, what: Literal["param", "optimizer"]) -> Place:
        """Tell where parameters or optimizer states rest: device, host or disk."""
        device = (self.zero.get(f"offload_{what}") or {}).get("device", "none")
        return {"none": "device", "cpu": "host", "nvme": "disk"}[device]  # type: ignore[return-value]

    def share(self, size: int, from_stage: int) -> int:
        """Compute one rank's share of what is split over ranks from a ZeRO stage on."""
        return -(-size // self.ranks) if self.stage >= from_stage else size

    def gathered(self, *, backward: bool) -> int:
        """Compute the bytes of whole parameters that are gathered at a time, beside the shards."""
        if self.stage < 3 or (self.ranks == 1 and self.offload("param") == "device"):
            return 0
        live = max(self.shape.largest, self.shape.layer_parameters) + int(
            self.zero.get("stage3_prefetch_bucket_size", 50_000_000)
        )
        # The backward pass comes back to what the forward has gathered, where that is kept so long.
        if backward and int(self.zero.get("stage3_max_reuse_distance", 1e9)) >= self.shape.parameters:
            live = self.shape.parameters
        most = max(self.shape.largest, int(self.zero.get("stage3_max_live_parameters", 1e9)))
        return min(live, most, self.shape.parameters) * self.width


def student_lines(role: Role, *, tokens: int, rows: int, checkpointing: bool, passes: int = 1) -> Iterator[Line]:
    """List what a student that is trained takes.

    Args:
        role: the student.
        passes: how often the loss goes over the head, once for each teacher that it compares with.
        tokens: of one micro-batch, padding included.
        rows: answer tokens of it.
        checkpointing: whether layers are computed again in the backward pass.
    """
    number = role.shape.learning
    yield Line("student", "weights", role.share(role.weights, 3), role.offload("param"))
    yield Line("student", "gradients", role.share(number * role.width, 2), role.offload("optimizer"))
    yield Line("student", "optimizer states", role.share(number * states_width(role), 1), role.offload("optimizer"))
    yield Line("student", "gathered layers", role.gathered(backward=True), moment="student")
    yield Line("student", "activations", activations(role, tokens, checkpointing=checkpointing), moment="student")
    yield Line("student", "head chunk", head_bytes(role, rows, backward=True), moment="student")
    if role.shape.head_learns:
        again = (passes - 1) * role.shape.vocab * role.shape.hidden * 4
        yield Line("student", "head gradients of further teachers", again, moment="student")
    if role.shape.quantized:
        unpacked = role.shape.largest_quantized * role.width
        yield Line("student", "a matrix out of its 4 bits", unpacked, moment="student")
    yield Line("student", "communication buffers", _bucket(role), moment="student")
    # Written beside training, from a copy.
    yield Line("student", "checkpoint on its way", sum(checkpoint_bytes(role)), "host")
    fp32_gradients = 4 * min(role.share(number, 1), int(role.zero.get("sub_group_size", _SUB_GROUP)))
    yield Line("student", "fp32 gradients of the update", fp32_gradients, role.offload("optimizer"), "step")
    yield Line("student", "whole weights on the first rank", loading_bytes(role), "host", "loading")


def states_width(role: Role) -> int:
    """Compute the bytes of optimizer states per parameter.

    Two moments, and fp32 weights where the model is not its own fp32 copy: ZeRO 1 and 2 copy what a rank updates, and
    so does an optimizer on the host.
    """
    own_copy = role.stage == 0 or (role.stage == 3 and role.offload("optimizer") == "device")
    return 8 if own_copy and role.precision == "fp32" else 12


def checkpoint_bytes(role: Role) -> tuple[int, int]:
    """Compute the bytes DeepSpeed writes of a student: the first rank's share of states, and its weights.

    Under ZeRO-3 the states' fp32 weights are those that learn, and only frozen ones are written beside them, by each
    rank its share. Otherwise the first rank writes all weights in their type, and ZeRO-2 the frozen ones once more.
    """
    shape = role.shape
    # Of a model in 4 bits what learns alone.
    frozen = 0 if shape.quantized else (shape.parameters - shape.learning) * role.width
    if role.stage == 3:
        return role.share(shape.learning * 12, 3), role.share(frozen, 3)
    twice = 2 if role.stage == 2 else 1
    return role.share(shape.learning * states_width(role), 1), shape.learning * role.width + frozen * twice


def teacher_lines(
    role: Role, *, tokens: int, rows: int, window_rows: int, top_ids: int = 0, called: str = "teacher"
) -> Iterator[Line]:
    """List what a frozen teacher takes.

    Args:
        role: the teacher.
        called: what its lines call it.
        tokens: of one forward, padding included.
        rows: answer tokens of it.
        window_rows: answer tokens of a rank's window, whose spectra are held.
        top_ids: top-k tokens that are held of each.
    """
    yield Line(called, "weights", role.share(role.weights, 3), role.offload("param"))
    yield Line(called, "gathered layers", role.gathered(backward=False), moment="teacher")
    yield Line(called, "activations", forward_bytes(role, tokens), moment="teacher")
    yield Line(called, "head chunk", head_bytes(role, rows, backward=False), moment="teacher")
    yield Line(called, "spectra of a window", window_rows * _SPECTRUM_BYTES)
    yield Line(called, "top-k tokens of a window", window_rows * top_ids * _TOP_TOKEN_BYTES)
    yield Line(called, "whole weights on the first rank", loading_bytes(role), "host", "loading")


def activations(role: Role, tokens: int, *, checkpointing: bool) -> int:
    """Compute the bytes of activations that the forward keeps for the backward pass.

    Per token and layer: two norms (each its input in fp32, twice, and its output), the inputs of seven projections,
    queries, keys and values before and after rotation, and what the gated MLP multiplies.
    """
    layers = role.shape.layers
    whole = tokens * _kept_per_token(role)
    if not checkpointing:
        return layers * whole + tokens * role.shape.hidden * (8 + role.width)
    return layers * tokens * role.shape.hidden * role.width + whole


def _kept_per_token(role: Role) -> int:
    shape, width = role.shape, role.width
    norms = 2 * shape.hidden * (8 + width)
    products = width * (2 * shape.hidden + 4 * shape.intermediate + 4 * shape.queries + 6 * shape.keys)
    return norms + products


def forward_bytes(role: Role, tokens: int) -> int:
    """Compute the peak of a forward without a backward pass: one layer's MLP or attention, beside the stream."""
    shape, width = role.shape, role.width
    stream = shape.hidden * (2 * width + 8)
    mlp = width * 3 * shape.intermediate
    attention = width * (3 * shape.queries + 4 * shape.keys)
    return tokens * (stream + max(mlp, attention))


def head_bytes(role: Role, rows: int, *, backward: bool) -> int:
    """Compute the bytes of the output head's work on one chunk.

    Its logits, with their gradient in a backward pass, and the scratch that counts levels in them.
    """
    vocab = role.shape.vocab
    elements = min(rows * vocab, max(_HEAD_ELEMENTS[role.kind], vocab))
    scratch = min(rows * vocab, max(_SPECTRUM_ELEMENTS[role.kind], vocab)) * _SPECTRUM_SCRATCH
    weight_gradient = vocab * role.shape.hidden * role.width if backward and role.shape.head_learns else 0
    return elements * (role.width + (8 if backward else 0)) + scratch + weight_gradient


def _bucket(role: Role) -> int:
    if role.ranks == 1 and role.stage < 2:
        return 0
    size = int(role.zero.get("reduce_bucket_size", 5e8)) * (2 if role.zero.get("overlap_comm") else 1)
    # On a CPU, pages that nothing has been written to take no memory.
    return min(size, role.shape.learning if role.kind == "cpu" else size) * role.width


def loading_bytes(role: Role) -> int:
    """Compute the bytes that the first rank has of a model before it is spread over all.

    The weights in the files' type and in the model's own, once where these are the same.
    """
    files = role.shape.file_bytes or role.weights
    return role.weights + (0 if files == role.weights else files)
