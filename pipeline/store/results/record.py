"""What all records have in common: to plain values and back, each field checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Annotated, Any, ClassVar, Self

from pydantic import BeforeValidator, TypeAdapter, ValidationError

# JSON has no word for a number that does not exist.
Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]


@dataclass(frozen=True)
class Record:
    """Something that is kept as JSON. `STAGE` is the stage to rebuild when it cannot be read."""

    # How pydantic is to read it: no field that the class does not have.
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}
    STAGE: ClassVar[str] = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Return what `to_dict` described. Raises ValueError for missing, unknown or other fields."""
        try:
            return _reader(cls).validate_python(dict(content))
        except ValidationError as error:
            # Without values: these may be somebody's words.
            wrong = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors(include_input=False)]
        raise ValueError(
            f"a {cls.__name__.lower()} has other fields than this version of the code writes ({'; '.join(wrong)}); "
            f"rebuild with --rebuild {cls.STAGE}"
        )


@dataclass(frozen=True)
class Artifact(Record):
    """A record that is a file of its own, `FILE`, and so carries the number of its schema."""

    FILE: ClassVar[str]
    SCHEMA: ClassVar[int] = 1

    def to_json(self) -> dict[str, Any]:
        """Return the content of the file."""
        return {"schema": self.SCHEMA, **self.to_dict()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Return what a file holds. Raises ValueError for another schema or other fields.

        A file without a number is from before there were any, and is read as schema 1.
        """
        fields = dict(content)
        if (schema := fields.pop("schema", 1)) != cls.SCHEMA:
            raise ValueError(
                f"{cls.FILE} is of schema {schema}, this version of the code reads schema {cls.SCHEMA}; "
                f"rebuild with --rebuild {cls.STAGE}"
            )
        return cls.from_dict(fields)


@cache
def _reader(kind: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
