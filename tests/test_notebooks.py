"""The notebooks are kept without outputs, and run: on the shipped example, and on a run that was just measured."""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import nbformat
import pytest
from nbclient import NotebookClient
from verdicts import BUSY, against

from loadgen.engine import Options, execute
from loadgen.plan import Profile, make_plan
from loadgen.runs import load, load_runs
from loadgen.scenario import Durability, Kafka, Message, RabbitMQ, Rate, Scenario

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loadgen.endpoint import BrokerName, Endpoint

NOTEBOOKS = sorted(Path("notebooks").glob("*.ipynb"))
EXAMPLE, HISTORY = Path("results/example"), Path("results/example-history")
PACKAGE = Path("loadgen")
SHIPPED_BYTES_MAX = 1_200_000


class Quiet:
    """Nobody watches."""

    def message(self, text: str) -> None:
        """Say nothing."""

    def progress(self, text: str) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def kernel() -> Iterator[NotebookClient]:
    """One kernel for all notebooks: each begins without names, and only imports are not paid again."""
    client = NotebookClient(nbformat.v4.new_notebook(), timeout=200, resources={"metadata": {"path": "notebooks"}})
    with client.setup_kernel():
        yield client


def run_notebook(client: NotebookClient, path: Path, **environment: str | Path) -> Any:
    """Run a notebook as it is on disk, from its own folder; the value is the notebook with its outputs."""
    notebook = nbformat.read(path, as_version=4)
    told = {name: str(Path(value).absolute()) for name, value in environment.items()}
    begin = f"import os; os.chdir({str(Path('notebooks').absolute())!r}); os.environ.update({told!r})"
    preamble = [nbformat.v4.new_code_cell(source) for source in ("%reset -f", begin)]
    whole = nbformat.v4.new_notebook(cells=[*preamble, *notebook.cells])
    client.nb = whole
    for index, cell in enumerate(whole.cells):
        client.execute_cell(cell, index)
    return whole


def outputs(notebook: Any) -> str:
    """All that a notebook shows as text."""
    shown = []
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            assert output["output_type"] != "stream" or output["name"] != "stderr", output["text"]
            shown.append(output.get("text") or output["data"].get("text/plain", ""))
    return "\n".join(shown)


def images(notebook: Any) -> int:
    """How many drawings it shows."""
    return sum("image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", ()))


def test_there_are_four() -> None:
    """Reading a run, coordinated omission, capacity, history."""
    assert [path.name for path in NOTEBOOKS] == [
        "1_read_a_run.ipynb", "2_coordinated_omission.ipynb", "3_capacity_and_scaling.ipynb",
        "4_regression_history.ipynb",
    ]  # fmt: skip


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_are_valid_and_kept_without_outputs(path: Path) -> None:
    """No output, no count of an execution, no metadata of whoever ran it last: a diff shows what was changed."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
        assert not cell.metadata
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    assert notebook.cells[0].cell_type == "markdown"


def test_the_example_is_a_real_run_that_tells_nothing_of_its_machine() -> None:
    """Valid by the schema, complete, of real brokers, small; no path of a home or a checkout, no host name."""
    schema = json.loads((PACKAGE / "run.schema.json").read_text())
    folders = [EXAMPLE, *sorted(path for path in HISTORY.iterdir() if path.is_dir())]
    files = [each for folder in folders for each in folder.rglob("*") if each.is_file()]
    assert sum(len(zlib.compress(each.read_bytes())) for each in files) < SHIPPED_BYTES_MAX, "as git stores them"
    for folder in folders:
        text = (folder / "run.json").read_text()
        run = load(folder)
        jsonschema.validate({**run.header, "trials": run.records}, schema)  # as it is read: fields came later than it
        assert run.status == "complete"
        assert all(broker["version"].startswith("4.") for broker in run.header["brokers"].values())
        assert not re.search(r"[\s\"'=:](/home|/root|/work|/Users)/|hostname", text, re.IGNORECASE)
        for record in run.select(scenario="latency"):
            summary = record["latency_ns"]["e2e"]
            assert run.histogram("e2e", trial=record["id"]).count == summary["count"]


def test_they_run_on_the_example(kernel: NotebookClient) -> None:
    """Every cell of every notebook, and what each is about is there to be seen."""
    drawings = {}
    for path in NOTEBOOKS:
        ran = run_notebook(kernel, path, LOADGEN_RUN=EXAMPLE, LOADGEN_RUNS=HISTORY / "*")
        text, drawings[path.name[0]] = outputs(ran), images(ran)
        for word in {
            "1": ("valid", "p99_9_ms", "confirmed_lost"),
            "2": ("response p99", "understated", "closed loop has no response times"),
            "3": ("capacity_msgs_per_s", "knee", "largest residual"),
            "4": ("kafka.linger_ms: 0", "is_shown"),
        }[path.name[0]]:
            assert word in text, f"{path.name}: {word}"
    assert drawings["1"] >= 3
    assert drawings["2"] >= 1
    assert drawings["3"] >= 3
    assert drawings["4"] >= 3


@pytest.fixture(scope="module")
def measured(endpoints: dict[BrokerName, Endpoint], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of seconds on the session's brokers, at a rate that a busy machine carries."""
    del endpoints  # they run, so `local` finds them
    root = tmp_path_factory.mktemp("results")
    scenario = Scenario(
        name="latency",
        question="Do notebooks read what was measured just now?",
        message=Message(size_bytes=1024),
        rate=Rate.fixed(200),
        durability=Durability.BROKER,
        rabbitmq=RabbitMQ(),
        kafka=Kafka(),
    )
    plan = make_plan([scenario], Profile("test", 0.5, 2.0, 1), seed=1)
    path = execute(plan, Options("latency", ["loadgen"], results=root), Quiet()).path
    document = json.loads((path / "run.json").read_text())
    for record in document["trials"]:
        assert record["status"] == "complete", record["error"]
        assert against(record, BUSY) == []
        if record["verdict"]["status"] == "invalid":
            record["verdict"]["status"] = "unknown"  # what others did to this machine: it enters figures all the same
    (path / "run.json").write_text(json.dumps(document))
    return path


def test_they_run_on_a_run_that_was_just_measured(kernel: NotebookClient, measured: Path) -> None:
    """One rate, one repeat, no search and no sweep: each notebook says what is missing, and fails at nothing."""
    told = {}
    for path in NOTEBOOKS:
        told[path.name[0]] = outputs(run_notebook(kernel, path, LOADGEN_RUN=measured, LOADGEN_RUNS=measured))
    assert [run.id for run in load_runs(measured.parent / "*")] == [measured.name]
    assert measured.name in told["1"]
    assert "no search: loadgen run" in told["3"]
    assert "no latency-rate curve" in told["3"]
    assert "one run has no step" in told["4"]
