"""The manifest of a spectrum store: whose outputs it holds, about which data, in which files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from uld_ds.errors import UserError
from uld_ds.spectrum.codec_bytes import CODEC_VERSION, REBUILT_VERSION, TRUNCATED_VERSION
from uld_ds.spectrum.precision import Precision

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
PARTIAL_MANIFEST = "manifest.partial.json"

_LATER = ("template_arguments", "special_tokens", "top_codec", "served")

_REBUILD = "build a store for this recipe elsewhere, or"
_FIXES = {
    "data_digest": f"{_REBUILD} train on the data it was built from",
    "top_ids": f"{_REBUILD} set store.top_ids to the store's",
    "codec.version": "build the store again with this release, or read it with the release that wrote it",
    "codec": f"{_REBUILD} set the recipe's precision to the store's",
}


class _Strict(BaseModel):
    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class CodecFacts(_Strict):
    """The codec's version and precision: how a store's spectra became bytes."""

    version: int
    precision: dict[str, int | float]
    """Fields of ``uld_ds.spectrum.Precision``."""

    @classmethod
    def of(cls, precision: Precision | None = None, *, truncated: bool = False, rebuilt: bool = False) -> Self:
        """Describe this release's codec.

        Args:
            precision: Its precision.
            truncated: Whether spectra have an unknown mass.
            rebuilt: Whether they are rebuilt from top-k tokens, which are all that is known.
        """
        version = REBUILT_VERSION if rebuilt else TRUNCATED_VERSION if truncated else CODEC_VERSION
        return cls(version=version, precision=dataclasses.asdict(precision or Precision()))

    def to_precision(self) -> Precision:
        """Return the precision for the encoder."""
        fields: dict[str, Any] = self.precision
        return Precision(**fields)


class ServedFacts(_Strict):
    """The inference engine that answered for a teacher."""

    engine: str
    """Name of the engine, such as ``vllm``."""
    version: str
    """Version that the engine says it is."""
    model: str
    """What the engine calls the model."""
    top: int
    """Number of the likeliest tokens whose log-probabilities it was asked for; it told no others."""
    precision: str | None = None
    """What the weights are held in, as far as known, such as ``bfloat16``."""
    vocab_size: int
    """Tokens of the teacher's vocabulary, over which its distributions are."""


class StoreIdentity(_Strict):
    """All that decides what a store's spectra are; two stores of one identity hold the same."""

    teacher: str
    """The teacher model, as the recipe names it."""
    revision: str | None = None
    """Commit, tag, or digest of the weights."""
    tokenizer_digest: str
    """sha256 over the teacher's tokenizer, its chat template included."""
    prompt_template: str
    """``chat`` or the template's text."""
    system_prompt: str | None = None
    template_arguments: dict[str, Any] = Field(default_factory=dict)
    """Variables of the chat template."""
    special_tokens: Literal["control", "text"] = "control"
    """What special tokens became that were typed into messages."""
    max_length: int
    """Most tokens of an example; a longer one was cut."""
    temperature: float
    """Temperature: the number that the teacher's logits were divided by."""
    codec: CodecFacts
    data_digest: str
    """sha256 over all examples in order."""
    top_ids: int = 0
    """Number of top-k tokens kept of each distribution, by their ids (fewer where the teacher has fewer tokens)."""
    top_codec: int = 1
    """Version of the bytes of top-k tokens. Says nothing of what they are: every version is read, also side by side."""
    served: ServedFacts | None = None
    """The engine that answered, where it was not this program itself."""

    @property
    def rebuilt_vocab_size(self) -> int | None:
        """Tokens of the vocabulary, where spectra are rebuilt from the top-k tokens; None where they are stored."""
        return self.served.vocab_size if self.served and self.codec.version == REBUILT_VERSION else None

    def differences(self, other: StoreIdentity) -> dict[str, tuple[Any, Any]]:
        """Map each field that differs (dotted if nested) to its value here and its value in ``other``."""
        ours, theirs = (dict(_leaves(_identity_of(side).model_dump(exclude={"top_codec"}))) for side in (self, other))
        names = [*ours, *(name for name in theirs if name not in ours)]
        return {name: (ours.get(name), theirs.get(name)) for name in names if ours.get(name) != theirs.get(name)}

    def check_same(self, there: StoreIdentity, *, key: str, place: str, fix: str | None = None) -> None:
        """Check that the identity ``there``, of a store at ``place``, is this one.

        Raises:
            UserError: they differ; at ``key``, names the first such field, both values and the fix.
        """
        for name, (expected, found) in self.differences(there).items():
            problem = f"{place} has {name} {_short(found)}, but here it is {_short(expected)}"
            default = _FIXES.get(name) or _FIXES.get(name.split(".")[0]) or f"{_REBUILD} use what it was built with"
            raise UserError(key, problem, fix or default)


class ShardFacts(_Strict):
    """Facts of one shard of a store, a Parquet file."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Name of the file in the store's own folder: a manifest that leads elsewhere is none."""
    examples: int
    tokens: int
    bytes: int
    sha256: str
    top_bytes: int = 0
    """Bytes that the top-k tokens take of ``bytes``."""


class Measured(_Strict):
    """The codec's cost on a sample of this store's own distributions (``uld_ds.teachers.store.codec_quality``)."""

    mean_relative_error: float
    """Mean relative error of the ULD distance."""
    gradient_cosine: float
    """Cosine of the gradient with respect to the student's logits and the true one."""
    tokens: int
    """Size of the sample, in answer tokens."""


class PartialManifest(StoreIdentity):
    """The manifest that stands in a store while it is built."""

    format_version: Literal[1] = 1
    examples: int
    """Number of examples the whole store will have."""
    examples_per_shard: int


class StoreManifest(PartialManifest):
    """The manifest of a whole store, written last: it makes a folder of shards a store."""

    teacher_tokens: int
    shards: list[ShardFacts]
    measured: Measured | None = None

    @property
    def identity(self) -> StoreIdentity:
        """The part that decides what the spectra are."""
        return _identity_of(self)

    @property
    def bytes_per_token(self) -> float:
        """Bytes of all shards per answer token, every column included."""
        return sum(shard.bytes for shard in self.shards) / max(1, self.teacher_tokens)

    @property
    def top_bytes_per_token(self) -> float:
        """Bytes that the top-k tokens take per answer token."""
        return sum(shard.top_bytes for shard in self.shards) / max(1, self.teacher_tokens)


M = TypeVar("M", bound=PartialManifest)


def to_json(manifest: PartialManifest) -> bytes:
    """Write a manifest as JSON: deterministic, indented for humans."""
    # Fields that came later are left out where they say nothing: earlier releases read the store as before.
    fields = type(manifest).model_fields
    later = {name for name in _LATER if getattr(manifest, name) == fields[name].get_default(call_default_factory=True)}
    return (manifest.model_dump_json(indent=2, exclude=later) + "\n").encode()


def manifest_from_json(data: bytes, place: str, key: str) -> StoreManifest:
    """Parse the manifest of a whole store.

    Args:
        data: Content of the file.
        place: Where the file is, for messages.
        key: Recipe key where the user named the store.

    Raises:
        UserError: it is of another version, or no manifest at all.
    """
    return _from_json(StoreManifest, data, place, key)


def partial_from_json(data: bytes, place: str, key: str) -> PartialManifest:
    """Parse the manifest of an unfinished store, with arguments and errors of ``manifest_from_json``."""
    return _from_json(PartialManifest, data, place, key)


def _from_json(kind: type[M], data: bytes, place: str, key: str) -> M:
    try:
        version = json.loads(data).get("format_version")
    except (ValueError, AttributeError) as error:
        raise UserError(key, f"{place} is no manifest of a spectrum store", "name a store's folder") from error
    if version != FORMAT_VERSION:
        problem = f"{place} is a store of format_version {version}, but this release reads {FORMAT_VERSION}"
        raise UserError(key, problem, "build the store again with this release")
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise UserError(key, f"{place}: {field}: {first['msg']}", "build the store again") from error


def _identity_of(manifest: StoreIdentity) -> StoreIdentity:
    return StoreIdentity(**{name: getattr(manifest, name) for name in StoreIdentity.model_fields})


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:40]}...{text[-12:]}"
