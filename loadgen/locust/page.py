"""Our page in Locust's web UI: both brokers side by side, live, and a tab with the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from flask import Blueprint, Response, jsonify, request

if TYPE_CHECKING:
    from locust.env import Environment

    from loadgen.locust.master import Master

PAGE = Path(__file__).with_name("page.html")
TAB = "loadgen"
COLUMNS = {
    "broker": "Broker",
    "trial": "Trial",
    "received": "Received msg/s",
    "confirmed": "Confirmed msg/s",
    "p50": "p50 (ms)",
    "p99": "p99 (ms)",
    "p999": "p99.9 (ms)",
    "lag": "Schedule lag p99 (ms)",
    "backlog": "Backlog",
    "verdict": "Verdict",
}
KINDS = ("e2e", "ack", "e2e_service", "ack_service")
"""What a latency is, the first of them that there is: response times before service times."""


def add_page(environment: Environment, master: Master) -> None:
    """Serve `/loadgen` and `/loadgen/state`, and add the tab; nothing where Locust has no web UI."""
    web_ui = environment.web_ui
    if web_ui is None or web_ui.app is None:
        return
    options = environment.parsed_options
    blueprint = Blueprint("loadgen", __name__, url_prefix=getattr(options, "web_base_path", None) or None)

    @blueprint.route("/loadgen")
    @web_ui.auth_required_if_enabled
    def page() -> Response:
        return Response(PAGE.read_text(encoding="utf-8"), mimetype="text/html")

    @blueprint.route("/loadgen/state")
    @web_ui.auth_required_if_enabled
    def state() -> Response:
        since = request.args.get("since", 0.0, type=float)
        return jsonify(told(environment, master, since))

    web_ui.app.register_blueprint(blueprint)
    web_ui.template_args |= {
        "extended_tabs": [{"title": "loadgen", "key": TAB}],
        "extended_tables": [
            {"key": TAB, "structure": [{"key": key, "title": title} for key, title in COLUMNS.items()]}
        ],
        "extended_csv_files": [{"href": "./loadgen", "title": "loadgen: both brokers, live"}],
    }

    @web_ui.app.after_request
    def extend(response: Response) -> Response:
        if request.path.endswith("/stats/requests") and response.is_json:
            report: dict[str, Any] = response.get_json()
            report["extended_stats"] = [{"key": TAB, "data": rows(master)}]
            response.set_data(jsonify(report).get_data())
        return response


def told(environment: Environment, master: Master, since_s: float) -> dict[str, Any]:
    """What the page asks for once a second; of the history only what came after `since_s` (UNIX time)."""
    return {
        "state": "" if environment.runner is None else environment.runner.state,
        "users": 0 if environment.runner is None else environment.runner.user_count,
        "now": [{**row, "scenario": master.state[row["broker"]]["scenario"]} for row in rows(master)],
        "history": [
            {"at_s": each["at_s"], **_row(each, master.verdicts)} for each in master.history if each["at_s"] > since_s
        ],
        "verdicts": master.verdicts,
        "path": master.path,
    }


def rows(master: Master) -> list[dict[str, Any]]:
    """A row for each broker, of its last second under load."""
    return [_row(each, master.verdicts) for each in master.state.values()]


def _row(state: dict[str, Any], verdicts: list[dict[str, Any]]) -> dict[str, Any]:
    latency: dict[str, float] = next((state["latency_ms"][kind] for kind in KINDS if kind in state["latency_ms"]), {})
    verdict = next((each for each in verdicts if each["id"] == state["trial"]), None)
    totals = state["totals"]
    return {
        "broker": state["broker"],
        "trial": state["trial"],
        "received": state["rates"].get("received", 0),
        "confirmed": state["rates"].get("acked", 0),
        "p50": _digits(latency.get("p50")),
        "p99": _digits(latency.get("p99")),
        "p999": _digits(latency.get("p99_9")),
        "lag": _digits(state["latency_ms"].get("schedule_lag", {}).get("p99")),
        "backlog": max(0, totals.get("sent", 0) * state["subscribers"] - totals.get("received", 0)),
        "verdict": "running" if verdict is None else f"{verdict['verdict']}, bound by {verdict['bound_by']}",
    }


def _digits(value_ms: float | None) -> float | None:
    return None if value_ms is None else float(f"{value_ms:.3g}")
