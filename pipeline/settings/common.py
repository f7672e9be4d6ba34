"""What all settings have in common: strictness, kinds of numbers, and the errors of their use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

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


def distinct(value: list[Any]) -> list[Any]:
    """Return a list as it is. Raises ValueError where a value stands twice."""
    if len(set(value)) != len(value):
        raise ValueError("values must be distinct")
    return value


class UsageError(ValueError):
    """What was asked for cannot be done as it was asked; the message says why and what to do."""


class ConfigError(UsageError):
    """The configuration cannot be used; the message lists every problem with its line."""


class Settings(BaseModel):
    """Strict and immutable: unknown keys, wrong types and impossible values, infinite numbers too, are errors.

    Settings in `LATER` came when there were stores already: at its default, such a one is left out of what is kept and
    hashed, so that no earlier artifact lacks it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
    LATER: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        left_out = self._left_out()
        return {name: value for name, value in dump(self).items() if name not in left_out}

    def _left_out(self) -> set[str]:
        fields = type(self).model_fields
        return {name for name in self.LATER if getattr(self, name) == fields[name].get_default()}
