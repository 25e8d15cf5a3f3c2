"""What the parts of a scenario have in common: frozen, validated, sweepable, and one line for each mistake."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from loadgen.errors import ScenarioError

if TYPE_CHECKING:
    from collections.abc import Iterable

_Item = TypeVar("_Item")


def _different(values: list[_Item]) -> list[_Item]:
    """A sweep's values, which must be worth a point each."""
    for place, value in enumerate(values):
        if value in values[:place]:
            raise ValueError(f"{value!r} stands in the sweep twice; expected each value once")
    return values


@dataclass(frozen=True, slots=True)
class Unit:
    """What a knob's number counts, where its name (the broker's own) does not end with it: part of its type."""

    name: str


Sweep = Annotated[list[_Item], Field(min_length=1), AfterValidator(_different)]

Whole = Annotated[int, Field(ge=1, le=2**31 - 1)]
WholeMsgs = Annotated[Whole, Unit("messages")]
WholeBytes = Annotated[Whole, Unit("bytes")]
Counted = Annotated[int, Field(ge=0, le=2**31 - 1)]
Millis = Annotated[float, Field(ge=0, le=3_600_000)]
Flag = Annotated[bool, Field(strict=True)]
SegmentBytes = Annotated[int, Field(ge=1 << 20, le=2**31 - 1)]
Codec = Literal["none", "gzip", "snappy", "lz4", "zstd"]


class Part(BaseModel):
    """A frozen, validated piece of a scenario whose mistakes are one line each."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, arbitrary_types_allowed=True)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ScenarioError(_describe(type(self), error)) from None


def values_of(knob: _Item | list[_Item]) -> list[_Item]:
    """The values of a knob that may be a sweep: of one value, that alone."""
    return knob if isinstance(knob, list) else [knob]


def suggested(given: str, known: Iterable[str]) -> str:
    """What to write in place of a word that is not known: the nearest ones, or all of them where none is near."""
    names = list(known)
    near = get_close_matches(given, names, n=2)
    return f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names)}"


def _describe(part: type[BaseModel], error: ValidationError) -> str:
    """All mistakes in one line, each naming its knob, what was given and what was expected."""
    by_knob: dict[str, tuple[bool, str]] = {}
    for each in error.errors(include_url=False):
        location, given = each["loc"], each["input"]
        knob = str(location[0]) if location else ""
        # A sweepable knob is a union (one value or a list), and pydantic tells the mistakes of every member:
        # keep the one about the shape that was given.
        in_list = any("list" in str(step) for step in location[1:])
        shape_fits = each["type"] != "list_type" and (in_list or not isinstance(given, list))
        if knob in by_knob and (by_knob[knob][0] or not shape_fits):
            continue
        message = each["msg"].removeprefix("Value error, ")
        if each["type"] == "extra_forbidden":
            text = f"{knob}: no such knob; {suggested(knob, part.model_fields)}"
        elif not location:
            text = message
        else:
            text = f"{knob} = {given!r}: {message[0].lower()}{message[1:]}"
        by_knob[knob] = (shape_fits, text)
    return f"{part.__name__}: " + "; ".join(text for _, text in by_knob.values())
