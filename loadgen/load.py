"""Scenario files: found, imported, and changed by `--set key=value`, with one clear line for each mistake."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import json
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from loadgen.backlog import SIZES
from loadgen.errors import ScenarioError
from loadgen.knobs import CLASS_DEMANDS
from loadgen.scenario import Durability, Kafka, Message, RabbitMQ, Rate, Scenario

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

SCENARIOS_DIR = Path("scenarios")
RATE_KINDS: tuple[str, ...] = get_args(Rate.model_fields["kind"].annotation)


def scenario_files(folder: Path = SCENARIOS_DIR) -> list[Path]:
    """The scenario files of a folder, by name."""
    return sorted(path for path in folder.rglob("*.py") if not path.name.startswith("_"))


def load_scenarios(path: Path) -> list[Scenario]:
    """Every Scenario that a file defines at module level; raises ScenarioError where there is none."""
    if not path.exists():
        near = [str(each) for each in scenario_files() if each.stem == path.stem]
        hint = f"did you mean {near[0]}?" if near else "`loadgen list` shows the scenarios"
        raise ScenarioError(f"{path}: no such file; {hint}")
    if path.suffix != ".py" or path.is_dir():
        raise ScenarioError(f"{path}: expected a Python file that defines a Scenario")
    spec = importlib.util.spec_from_file_location(f"loadgen_scenario_{path.stem}", path.resolve())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ScenarioError as error:
        raise ScenarioError(f"{path}: {error}") from None
    except Exception as error:
        where = _line_in(path, error)
        raise ScenarioError(f"{path}{where}: {type(error).__name__}: {error}") from error
    found = [value for value in vars(module).values() if isinstance(value, Scenario)]
    if not found:
        raise ScenarioError(f"{path}: defines no Scenario; expected `scenario = Scenario(…)` at module level")
    return list({scenario.name: scenario for scenario in found}.values())


def fingerprint(scenario: Scenario) -> str:
    """What tells a scenario from another one of its name: eight hexadecimal digits of all it says."""
    return hashlib.sha256(scenario.model_dump_json().encode()).hexdigest()[:8]


def _line_in(path: Path, error: BaseException) -> str:
    """`:<line>` of the scenario file where the error arose, or nothing."""
    if isinstance(error, SyntaxError):
        return f":{error.lineno}"
    line, trace = "", error.__traceback__
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename) == path.resolve():
            line = f":{trace.tb_lineno}"
        trace = trace.tb_next
    return line


def parse_set(text: str) -> tuple[str, Any]:
    """`key=value` of the command line; the value is JSON where it parses as such, a comma makes a list (a sweep)."""
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise ScenarioError(f"--set {text}: expected key=value, such as rabbitmq.prefetch=100 or producers=1,2,4")
    if key.strip() == "rate" and ":" in value:  # its parts may be lists themselves
        return key.strip(), value.strip()
    return key.strip(), _literals(value)


def _literals(value: str) -> Any:
    if "," in value and not value.lstrip().startswith(("[", "{", '"')):
        return [_literal(part) for part in value.split(",")]
    return _literal(value)


def _literal(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return {"True": True, "False": False}.get(text, text)


_PARTS: dict[str, type[RabbitMQ | Kafka | Message]] = {"rabbitmq": RabbitMQ, "kafka": Kafka, "message": Message}
_OWN = (
    "producers", "consumers", "subscribers", "think_ms", "think", "think_spread", "backlog_msgs", "backlog_bytes",
    "backlog_s", "start_from", "joins_at_s", "leaves_at_s", "processors", "timeout_ms", "requests_in_flight",
    "durability", "preset", "warmup_s", "duration_s",
)  # fmt: skip


def apply_sets(scenario: Scenario, sets: Iterable[tuple[str, Any]]) -> Scenario:
    """The scenario with knobs replaced and checked again; a key is `part.knob`, or a knob that only one part has.

    A backlog has one size: one that is set takes the place of the scenario's own.
    """
    values: dict[str, Any] = {name: getattr(scenario, name) for name in type(scenario).model_fields}
    sets = list(sets)
    if any(key in SIZES for key, _ in sets):
        values |= dict.fromkeys(SIZES)
    for key, value in sets:
        part, knob = _locate(scenario, key)
        if part == "rate":
            values["rate"] = _rate(value, values["rate"])
        elif part == "":
            values[knob] = _durability(value) if knob == "durability" else value
        else:
            current = values[part]
            if current is None:
                raise ScenarioError(f"--set {key}: scenario {scenario.name} does not drive {part}")
            given = {name: getattr(current, name) for name in current.model_fields_set}
            values[part] = _PARTS[part](**{**given, knob: value})
    return Scenario(**values)


def _durability(value: Any) -> Any:
    """A class or a sweep of classes, as far as they are known."""
    unknown = [each for each in (value if isinstance(value, list) else [value]) if each not in list(Durability)]
    if unknown:
        raise ScenarioError(f"--set durability: {unknown[0]!r} is no class; expected one of {', '.join(CLASS_DEMANDS)}")
    return [Durability(each) for each in value] if isinstance(value, list) else Durability(value)


def load_variants(paths: Sequence[Path], texts: Sequence[str]) -> tuple[Scenario, Scenario]:
    """Variants A and B: of two files (every `--set` holds for both), or of one file and its `--set`s.

    With one file two sets are A's and B's, and a single one is B's, against the file as it is. A set may hold several
    pairs, separated by blanks.
    """
    if len(paths) > 2:
        raise ScenarioError(f"{len(paths)} scenario files: expected one with --set, or two")
    found = [load_scenarios(path) for path in paths]
    for path, scenarios in zip(paths, found, strict=True):
        if len(scenarios) != 1:
            raise ScenarioError(f"{path}: defines {len(scenarios)} scenarios; expected one to be a variant")
    sets = [[parse_set(pair) for pair in text.split()] for text in texts]
    if len(found) == 2:
        both = [pair for each in sets for pair in each]
        return apply_sets(found[0][0], both), apply_sets(found[1][0], both)
    if not 1 <= len(sets) <= 2:
        raise ScenarioError(f"{len(sets)} × --set: expected one (A is the file as it is) or two (A's and B's)")
    (scenario,) = found[0]
    return apply_sets(scenario, sets[0] if len(sets) == 2 else []), apply_sets(scenario, sets[-1])


def _locate(scenario: Scenario, key: str) -> tuple[str, str]:
    part, dot, knob = key.partition(".")
    if dot and part in _PARTS:
        return part, knob
    if key == "rate":
        return "rate", ""
    if key in _OWN:
        return "", key
    owners = [
        name for name, model in _PARTS.items() if key in model.model_fields and getattr(scenario, name) is not None
    ]
    if len(owners) == 1:
        return owners[0], key
    if owners:
        raise ScenarioError(f"--set {key}: say which: {' or '.join(f'{owner}.{key}' for owner in owners)}")
    raise ScenarioError(f"--set {key}: no such knob; {_near(scenario, part if dot else '', knob if dot else key)}")


def _near(scenario: Scenario, part: str, knob: str) -> str:
    """The scenario's knobs that are called nearly so, in full; else its own, and where the others are."""
    driven = {name: list(model.model_fields) for name, model in _PARTS.items() if getattr(scenario, name) is not None}
    owners = {field: [name for name in driven if field in driven[name]] for name in driven for field in driven[name]}
    near = get_close_matches(knob, [*_OWN, "rate", *owners], n=1)
    if near:
        return f"did you mean {' or '.join(f'{each}.{near[0]}' for each in owners.get(near[0], [])) or near[0]}?"
    parts = "; ".join(f"`{name}.…`" for name in get_close_matches(part, driven, n=1) or driven)
    return f"there are {', '.join(_OWN)}, rate, and those of {parts}"


def rate_form(kind: str) -> str:
    """How `--set rate=` names a way to make a rate and what that takes: `ramp:from_msgs_per_s:to_msgs_per_s`."""
    return ":".join([kind, *inspect.signature(getattr(Rate, kind)).parameters])


def _rate(value: Any, current: Rate) -> Rate:
    if not isinstance(value, str):
        return Rate.poisson(value) if current.kind == "poisson" else Rate.fixed(value)
    kind, _, rest = value.partition(":")
    if kind not in RATE_KINDS:
        forms = ", ".join(map(rate_form, RATE_KINDS))
        raise ScenarioError(f"--set rate={value}: expected messages a second, a list of them, or one of {forms}")
    try:
        made: Rate = getattr(Rate, kind)(*(_literals(each) for each in rest.split(":") if rest))
    except TypeError:
        raise ScenarioError(f"--set rate={value}: expected rate={rate_form(kind)}") from None
    return made


def scenario_file(name: str) -> Path:
    """The project's own scenario of this name; raises ScenarioError outside a checkout."""
    path = SCENARIOS_DIR / f"{name}.py"
    if not path.exists():
        raise ScenarioError(f"{path}: not found; run this from the folder that holds scenarios/")
    return path
