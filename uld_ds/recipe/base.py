"""The base of all sections of a recipe, which refuses unknown keys, and the types that several sections use."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

DType = Literal["fp32", "bf16"]
TeacherDType = Literal["fp32", "bf16", "auto"]
Beta = Annotated[float, Field(ge=0, lt=1)]


class Strict(BaseModel):
    """Unknown keys and implicit conversions (``"3"`` for 3) are errors; a recipe never changes once loaded."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )
