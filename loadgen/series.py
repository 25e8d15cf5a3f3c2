"""The series of a run: lines while it is written, one parquet file at its end."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

SERIES_FILE, SERIES_LIVE_FILE = "series.parquet", "series.jsonl"


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
