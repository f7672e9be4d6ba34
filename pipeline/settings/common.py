"""What all settings have in common: strictness, kinds of numbers, and the errors of their use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from pipeline.models.arm_registry import NAMES

Share = Annotated[float, Field(ge=0, le=1)]
Confidence = Annotated[float, Field(gt=0.5, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what numpy and scikit-learn take
Megabytes = Annotated[float, Field(gt=0, le=1e9)]
Spacing = Annotated[float, Field(ge=1e-3, le=1e3)]
GreyValue = Annotated[float, Field(ge=-1e9, le=1e9)]  # single precision holds their differences
Side = Annotated[int, Field(ge=16, le=16384)]
Axis = Literal["horizontal", "vertical", "depth"]
if TYPE_CHECKING:
    Arm = str
else:
    Arm = Literal[NAMES]


class UsageError(ValueError):
    """What was asked for cannot be done as it was asked; the message says why and what to do."""


class ConfigError(UsageError):
    """The configuration cannot be used; the message lists every problem with its line."""


class Settings(BaseModel):
    """Strict and immutable: unknown keys, wrong types and impossible values, infinite numbers too, are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
