"""The series of a run: lines while it is written, one parquet file at its end."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SERIES_FILE, SERIES_LIVE_FILE = "series.parquet", "series.jsonl"


class Gathered:
    """An agent's rows of seconds as rows of intervals: what was counted is added up, `elapsed_s` is the last one's."""

    def __init__(self, interval_s: int) -> None:
        self._interval_s = interval_s
        self._rows: dict[str, tuple[int, dict[str, Any]]] = {}

    def add(self, agent: str, row: Mapping[str, Any]) -> dict[str, Any] | None:
        """Take a row of a second; the agent's row of an interval where that is full."""
        seconds, whole = self._rows.pop(agent, (0, {}))
        for name, value in row.items():
            whole[name] = value if name == "elapsed_s" else whole.get(name, 0) + value
        if seconds + 1 >= self._interval_s:
            return whole
        self._rows[agent] = seconds + 1, whole
        return None

    def rest(self) -> dict[str, dict[str, Any]]:
        """What is left of each agent in the end."""
        left = {agent: whole for agent, (_, whole) in self._rows.items()}
        self._rows.clear()
        return left


def live_series(folder: Path) -> Any:
    """The lines written so far as an Arrow table, without a torn last one; None where there are none."""
    path = folder / SERIES_LIVE_FILE
    if not path.exists():
        return None
    content = path.read_bytes()
    content = content[: content.rfind(b"\n") + 1]
    if not content.strip():
        return None
    import pyarrow as pa  # noqa: PLC0415 - only at a run's end
    from pyarrow import json as arrow_json  # noqa: PLC0415

    try:
        return arrow_json.read_json(pa.BufferReader(content))
    except pa.ArrowInvalid:
        # A column that changes its type must not cost the run its series: such a column becomes text.
        rows = [json.loads(line) for line in content.splitlines()]
        names = dict.fromkeys(name for row in rows for name in row)
        return pa.table({name: _column([row.get(name) for row in rows]) for name in names})


def _column(values: list[Any]) -> Any:
    """An Arrow column, of text where the values are not of one type."""
    import pyarrow as pa  # noqa: PLC0415

    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([None if value is None else str(value) for value in values])


def to_parquet(folder: Path) -> None:
    """Turn the lines into the file; an interrupted turn leaves the lines."""
    table = live_series(folder)
    if table is None:
        return
    from pyarrow import parquet  # noqa: PLC0415

    draft = folder / f".{SERIES_FILE}"
    try:
        parquet.write_table(table, draft)
        draft.replace(folder / SERIES_FILE)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
    (folder / SERIES_LIVE_FILE).unlink()
