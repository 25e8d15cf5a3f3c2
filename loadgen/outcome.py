"""What a run comes to: the exit status of whoever carried it out, or looks at it later."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from loadgen.errors import EXIT_INTERRUPTED, EXIT_INVALID, EXIT_OK
from loadgen.record import enters, is_required

if TYPE_CHECKING:
    from loadgen.run import Run


def exit_status(run: Run) -> int:
    """0 good, 2 where the run was cut short or a point of it has no trial to be used, 130 where it was interrupted.

    A finding that the broker's own word contradicts, or that failed, is such a point, too.

    A trial that is invalid is struck out and said so; the point stands on its other repeats. A curve's overload is no
    failure: that its trials are invalid is what they show. Nor is it one that a broker does not carry a demand that was
    decided about (`loadgen decide`), nor that no capacity was found for it.
    """
    if run.header.get("reason") == "interrupted":
        return EXIT_INTERRUPTED
    has_demand = bool((run.header.get("plan") or {}).get("demand"))
    is_needed = is_required
    if has_demand:
        from loadgen.demand import is_answered_by  # noqa: PLC0415 - scenarios take long to import

        is_needed = is_answered_by
    usable: dict[str, bool] = {}
    for record in run.records:
        if not is_needed(record):
            continue
        point = json.dumps([record[name] for name in ("scenario", "broker", "driver", "point")])
        is_usable = record["status"] == "complete" if has_demand else enters(record)
        usable[point] = usable.get(point, False) or is_usable
    found = all(finding["agrees"] is not False for finding in run.header["findings"])
    return EXIT_OK if run.status == "complete" and all(usable.values()) and found else EXIT_INVALID
