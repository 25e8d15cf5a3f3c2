"""`loadgen report A B`: the page of several runs beside each other, as data and as a person meets it in a browser."""

from __future__ import annotations

import json
import re
import shutil
from typing import TYPE_CHECKING

import pytest
from browser import Browser
from test_report_page import EXAMPLE, SHOWN, of, unfold

from loadgen import cli
from loadgen.runs import load

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FASTER = 1_000.0  # of two repeats only such a ratio is shown


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example beside itself, a thousand times as fast where no schedule held it; the first has its report."""
    root = tmp_path_factory.mktemp("runs")
    for name in ("first", "second"):
        shutil.copytree(EXAMPLE, root / name)
        document = json.loads((root / name / "run.json").read_text())
        document["id"] = name
        for record in document["trials"] if name == "second" else ():
            if record["rate"]["kind"] == "saturate" and record["goodput_msgs_per_s"]:
                record["goodput_msgs_per_s"] *= FASTER
        (root / name / "run.json").write_text(json.dumps(document))
    assert cli.main(["report", str(root / "first")]) == 0
    assert cli.main(["report", str(root / "first"), str(root / "second")]) == 0
    return root / "second" / "comparison.html"


@pytest.fixture(scope="module")
def browser(page: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """The page, opened with all that it has folded away."""
    with Browser(tmp_path_factory.mktemp("browser")) as found:
        found.listen()
        unfold(found, page)
        yield found


def test_what_changed_is_said_first_and_in_each_line(page: Path) -> None:
    """Rates are told as better, with their ratio; latencies, which are the same, as no difference."""
    text, markdown = page.read_text(), page.with_suffix(".md").read_text()
    rows = [row for row in load(page.parent).records if row["rate"]["kind"] == "saturate"]
    assert rows, "the example has rates that were found"
    assert re.search(r"B against A, of \d+ figures: \d+ better", text)
    assert f"{FASTER:,.0f}×" in text
    assert ">better</td>" in text
    assert ">worse</td>" not in text
    assert "no difference shown" in text
    assert "better |" in markdown
    assert "## " in markdown


def test_every_figure_leads_to_the_trials_behind_it(browser: Browser, page: Path) -> None:
    """Each link is a run's report that is there, and an anchor in it; a run without a report has names alone."""
    links = browser.run("[...document.querySelectorAll('a[href]')].map((e) => e.getAttribute('href'))")
    assert len(links) > 5
    for link in links:
        name, _, anchor = link.partition("#")
        assert not anchor or f'id="{anchor}"' in (page.parent / name).read_text()
        assert (page.parent / name).is_file()
    assert not any(link.startswith("report.html") for link in links)


def test_charts_are_visible_and_nothing_is_asked_of_the_network(browser: Browser, page: Path) -> None:
    """The file is all there is; ratios and latencies are drawn; it fits a phone."""
    assert of(browser, "Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded") == []
    assert {event["request"]["url"] for event in of(browser, "Network.requestWillBeSent")} == {page.as_uri()}
    number = browser.run("document.querySelectorAll('figure').length")
    assert number >= 2
    assert browser.run(SHOWN) == number
    browser.call("Emulation.setDeviceMetricsOverride", width=390, height=900, deviceScaleFactor=1, mobile=False)
    assert browser.run("document.documentElement.scrollWidth") <= 390
