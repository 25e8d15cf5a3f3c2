"""The reference of knobs, from the classes that check them: what each may be, is where nobody chose, and who has it."""

from __future__ import annotations

import inspect
from enum import Enum
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import AfterValidator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from tables import code, codes, page, table

from loadgen import faults
from loadgen.driver import Capabilities
from loadgen.drivers import load_driver
from loadgen.knobs import CLASS_DEMANDS, DEFAULTS, PRESETS, resolve
from loadgen.load import RATE_KINDS, rate_form
from loadgen.part import Part, Unit
from loadgen.scenario import FromFile, Kafka, LogNormal, Message, RabbitMQ, Rate, Scenario, Uniform
from loadgen.stream_knobs import DEFAULTS as STREAM_DEFAULTS
from loadgen.stream_knobs import DEMANDS as STREAM_DEMANDS
from loadgen.stream_knobs import DRIVERS as STREAM_DRIVERS
from loadgen.stream_knobs import PLAIN_KNOBS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from loadgen.endpoint import BrokerName

UNBOUNDED = 2**31 - 1  # a bound from here on says no more than that there is none
UNITS = {
    "msgs_per_s": "messages/s", "_bytes_per_s": "bytes/s", "_bytes": "bytes", "_msgs": "messages", "_ms": "ms",
    "_s": "s", "_every": "messages",
}  # fmt: skip
BROKERS: dict[BrokerName, type[Part]] = {"rabbitmq": RabbitMQ, "kafka": Kafka}
# Knobs that mean nothing without another one, or in patterns without a role in the middle.
OF_ANOTHER = {"transaction_ms": "transaction_msgs", "transaction_abort_every": "transaction_msgs"}
OF_THE_MIDDLE = {"reply_to", "processing_guarantee", "commit_interval_ms"}


def knob_page() -> str:
    """Every knob of a scenario and of both brokers."""
    return page(
        "Knobs",
        "Made from the classes that check them. A scenario file names knobs as arguments; `--set KEY=VALUE` changes "
        "one on the command line, a broker's as `kafka.linger_ms=5`, and commas make a sweep: a point for each value. "
        "*Default* is what a knob is where nobody chose it: what the durability class demands wins over the preset, "
        "and that over the broker's own default; *unset* leaves it to the broker. A number without a unit is a count.",
        "## Scenario",
        _doc(Scenario),
        knob_table(Scenario),
        *(f"## {part.__name__}\n\n{_doc(part)}\n\n{knob_table(part)}" for part in (Message, Uniform, LogNormal)),
        f"## {FromFile.__name__}\n\n{_doc(FromFile)}\n\n{knob_table(FromFile)}",
        f"## Rate\n\n{_doc(Rate)}\n\n{_rate_table()}\n\n{knob_table(Rate)}",
        f"## RabbitMQ\n\n{_doc(RabbitMQ)}\n\n{_broker_table('rabbitmq')}",
        f"## Kafka\n\n{_doc(Kafka)}\n\n{_broker_table('kafka')}",
        "## Presets",
        "What `preset` sets of each broker where neither knob nor class does.",
        _preset_table(),
        "## Faults",
        "What `faults=[At(…), …]` is made of.",
        *(f"### {part.__name__}\n\n{_doc(part)}\n\n{knob_table(part)}" for part in fault_parts()),
    )


def fault_parts() -> list[type[Part]]:
    """`At`, and every kind of fault."""
    nodes = [faults.Kill, faults.Restart, faults.Pause, faults.Full]
    return [faults.At, *nodes, *get_args(faults.NetworkFault), faults.Crash]


def fields(part: type[Part]) -> Iterator[tuple[str, FieldInfo]]:
    """The knobs of a part; what only tells kinds of faults apart is none."""
    for name, field in part.model_fields.items():
        if name != "kind" or part is Rate:
            yield name, field


def described(name: str, field: FieldInfo) -> str:
    """What a knob means: its docstring in the code; an empty one is an error."""
    if not field.description:
        raise ValueError(f"{name}: has no docstring; say under the field what it means")
    return " ".join(field.description.split())


def values_of(field: FieldInfo) -> tuple[str, str | None, bool]:
    """What a knob may be, in words; the unit that its type tells; whether a list of values is a sweep."""
    return _walk(field.annotation, list(field.metadata))


def unit_of(name: str, unit: str | None) -> str:
    """The unit that the type tells, else the one at the end of the name; nothing for a count."""
    return unit or next((unit for suffix, unit in UNITS.items() if name.endswith(suffix)), "")


def drivers_of(broker: BrokerName, knob: str) -> list[str]:
    """The drivers that can do what a knob asks for, by what the knob's own rules and the drivers' capabilities say."""
    (kinds, *_) = (each for each in _members(BROKERS[broker].model_fields["driver"].annotation))
    names: Sequence[str] = get_args(kinds)
    if knob == "driver":
        return list(names)
    return [name for name in names if _knows(broker, name, knob)]


def _knows(broker: BrokerName, driver: str, knob: str) -> bool:
    if broker == "rabbitmq" and driver in STREAM_DRIVERS:
        known = {*STREAM_DEFAULTS, *STREAM_DEMANDS["broker"]}
        return knob in known and not (driver == "rstream" and knob in PLAIN_KNOBS)
    queues = {*DEFAULTS[broker], *(name for demands in CLASS_DEMANDS.values() for name in demands[broker])}
    if knob not in queues:
        return False
    can = _capabilities(driver)
    if knob in OF_THE_MIDDLE:
        return can.has_middle_roles
    # A driver knows a knob if it can do anything but what every driver does where nobody chose.
    asked = OF_ANOTHER.get(knob, knob)
    tried = [each for each in _examples(BROKERS[broker].model_fields[asked]) if Capabilities().lacking({asked: each})]
    return not tried or any(can.lacking({asked: each}) is None for each in tried)


@cache
def _capabilities(driver: str) -> Capabilities:
    return load_driver(driver).capabilities


def _examples(field: FieldInfo) -> list[Any]:
    """Values that a knob may have, at least one of them not the usual one."""
    found: list[Any] = []
    for each in _members(field.annotation):
        inner = get_args(each)[0] if get_origin(each) is Annotated else each
        if get_origin(inner) is Literal:
            found += get_args(inner)
        elif inner is bool:
            found.append(True)
        elif inner in {int, float}:
            found.append(2)
    return found


def _members(annotation: Any) -> list[Any]:
    return list(get_args(annotation)) if get_origin(annotation) in {Union, UnionType} else [annotation]


def _walk(annotation: Any, metadata: list[Any]) -> tuple[str, str | None, bool]:
    texts: list[str] = []
    unit, swept = None, []
    for each in _members(annotation):
        inner, own = each, list(metadata)
        while get_origin(inner) is Annotated:
            inner, *more = get_args(inner)
            own += more
        unit = next((more.name for more in own if isinstance(more, Unit)), unit)
        if get_origin(inner) is list and any(isinstance(more, AfterValidator) for more in own):
            swept.append(get_args(inner)[0])
        elif get_origin(inner) in {Union, UnionType}:
            text, deeper, _ = _walk(inner, own)
            texts, unit = [*texts, text], unit or deeper
        elif inner is not NoneType:
            texts.append(_in_words(inner, own))
    if swept and not texts:
        text, unit, _ = _walk(swept[0], metadata)
        texts = [f"a list of: {text}"]
    return " or ".join(dict.fromkeys(texts)), unit, bool(swept)


def _in_words(kind: Any, metadata: list[Any]) -> str:
    bounds = _bounds(metadata)
    if get_origin(kind) is Literal:
        return codes(get_args(kind))
    if get_origin(kind) is list:
        return f"a list of {code(get_args(kind)[0].__name__)}"
    if issubclass(kind, Enum):
        return codes(each.value for each in kind)
    if issubclass(kind, Part):
        return code(f"{kind.__name__}(…)")
    if kind is str and "pattern" in bounds:
        return f"text {code(bounds['pattern'])}"
    plain = {bool: "`true`, `false`", int: "whole number", float: "number", str: "text", Path: "file"}
    return plain[kind] + _range(bounds) + _length(bounds)


def _bounds(metadata: list[Any]) -> dict[str, Any]:
    """Every bound that the metadata name, such as ge, le and pattern."""
    found: dict[str, Any] = {}
    for each in metadata:
        for inner in each.metadata if isinstance(each, FieldInfo) else [each]:
            for name in ("ge", "gt", "le", "lt", "pattern", "max_length"):
                if getattr(inner, name, None) is not None:
                    found[name] = getattr(inner, name)
    return found


def _range(bounds: dict[str, Any]) -> str:
    low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le")
    if low is None:
        return "" if high is None else f", at most {_number(high)}"
    over = "over " if "gt" in bounds else ""
    if high is None or high >= UNBOUNDED:
        return f", {over or 'at least '}{_number(low)}"
    return f", {over}{_number(low)} … {_number(high)}"


def _number(value: float) -> str:
    return f"{int(value):,}" if float(value).is_integer() else f"{value:g}"


def _length(bounds: dict[str, Any]) -> str:
    return f" of at most {bounds['max_length']} characters" if "max_length" in bounds else ""


def _doc(part: type[Part]) -> str:
    return " ".join((inspect.getdoc(part) or "").split())


def knob_table(part: type[Part]) -> str:
    """A row for each knob of a part."""
    rows = []
    for name, field in fields(part):
        values, unit, is_swept = values_of(field)
        sweep = "yes" if is_swept else "no"
        rows.append((code(name), values, unit_of(name, unit), _default(field), sweep, described(name, field)))
    return table(("knob", "values", "unit", "default", "sweep", "meaning"), rows)


def _default(field: FieldInfo) -> str:
    if field.default_factory is not None:
        return "none"
    if field.default is PydanticUndefined:
        return "required"
    if isinstance(field.default, Part):
        return code(f"{type(field.default).__name__}()")
    return _value(field.default)


def _value(value: Any) -> str:
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return code(str(value).lower())
    return code(f"{value:g}" if isinstance(value, float) else str(value))


def _rate_table() -> str:
    """The ways to make a rate, by their signatures."""
    rows = []
    for name in RATE_KINDS:
        made = getattr(Rate, name)
        given = ", ".join(str(each).partition(":")[0] for each in inspect.signature(made).parameters.values())
        rows.append((code(f"Rate.{name}({given})"), code(f"rate={rate_form(name)}"), inspect.getdoc(made) or ""))
    return table(("way", "after --set", "meaning"), rows)


def _broker_table(broker: BrokerName) -> str:
    part = BROKERS[broker]
    rows = []
    for name, field in fields(part):
        values, unit, _ = values_of(field)
        default = code(field.default) if name == "driver" else _broker_default(broker, name)
        drivers = codes(drivers_of(broker, name))
        rows.append((code(name), values, unit_of(name, unit), default, drivers, described(name, field)))
    return "Every knob may be a sweep.\n\n" + table(("knob", "values", "unit", "default", "drivers", "meaning"), rows)


def _broker_default(broker: BrokerName, knob: str) -> str:
    """What a knob is where nobody chose, by durability class where those differ; of a stream's knob on a stream."""
    is_streams = broker == "rabbitmq" and "amqp" not in drivers_of(broker, knob)
    classes = STREAM_DEMANDS if is_streams else CLASS_DEMANDS
    driver = "stream" if is_streams else "amqp" if broker == "rabbitmq" else "kafka"
    found: dict[str, list[str]] = {}
    for name in classes:
        settings = resolve(broker, {"driver": driver}, name, "default")
        found.setdefault(_value(settings.get(knob)), []).append(name)
    if len(found) == 1:
        return next(iter(found))
    return "; ".join(f"{value} ({', '.join(names)})" for value, names in found.items())


def _preset_table() -> str:
    rows = []
    for preset, brokers in PRESETS.items():
        for broker, knobs in brokers.items():
            text = ", ".join(f"{code(f'{name} = {value}')}" for name, value in knobs.items())
            rows.append((code(preset), broker, text or "nothing"))
    return table(("preset", "broker", "sets"), rows)
