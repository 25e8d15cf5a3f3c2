"""The report's page as a person meets it, in a real browser: all is shown, nothing asked for, the pointer answered."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import synthetic
from browser import Browser

from loadgen.report import write_report
from loadgen.runs import load

if TYPE_CHECKING:
    from collections.abc import Iterator

EXAMPLE = Path(__file__).parents[1] / "results" / "example"
SIZE_BYTES_MAX = 5_000_000
OPEN_ALL = "for (const each of document.querySelectorAll('details')) each.open = true;"
SHOWN = """[...document.querySelectorAll('figure svg')].filter((e) => {
  const box = e.getBoundingClientRect();
  return box.width > 200 && box.height > 80 && e.querySelectorAll('path, use').length > 5;
}).length"""
LOST = """[...document.querySelectorAll('a[href]')].map((e) => e.getAttribute('href'))
  .filter((to) => !to.startsWith('#') || !document.getElementById(to.slice(1)))"""
POINT = """(() => {
  for (const figure of document.querySelectorAll('figure')) {
    const data = figure.querySelector('script'), svg = figure.querySelector('svg');
    if (!data || !svg.getBoundingClientRect().width) continue;
    svg.scrollIntoView({ block: 'center' });
    const marks = JSON.parse(data.textContent), mark = marks[marks.length >> 1];
    const at = new DOMPoint(mark[0], mark[1]).matrixTransform(svg.getScreenCTM());
    svg.dispatchEvent(new PointerEvent('pointermove', { clientX: at.x, clientY: at.y }));
    const tip = document.querySelector('.tip');
    const texts = marks.filter((e) => Math.hypot(e[0] - mark[0], e[1] - mark[1]) < 0.2).map((e) => e[2]);
    if (tip.hidden || !texts.includes(tip.textContent)) return `${tip.textContent} instead of ${texts}`;
    svg.dispatchEvent(new PointerEvent('pointerleave'));
    if (!tip.hidden) return 'the value stays';
  }
  return '';
})()"""
INK = """(broker) => [...document.querySelectorAll(`figure svg [style*="var(--${broker})"]`)]
  .filter((e) => e.getBoundingClientRect().width).length"""


def unfold(window: Browser, page: Path) -> None:
    """Open a page of ours, with all that it has folded away."""
    window.open(page.as_uri())
    window.wait("document.readyState === 'complete' && !!document.querySelector('.tip')")
    window.run(OPEN_ALL)


@pytest.fixture(scope="module", params=["compared", "curve", "example"])
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of invented trials, one of curves with slow seconds, and one of a real run."""
    root = tmp_path_factory.mktemp("page")
    if request.param == "compared":
        run = synthetic.compare_run(root)
    elif request.param == "curve":
        run = synthetic.curve_run(root)
    else:
        run = load(Path(shutil.copytree(EXAMPLE, root / "example")))
    return write_report(run)["html"]


@pytest.fixture(scope="module")
def window(page: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all that is asked of a page: to start one takes longer than to ask."""
    del page
    with Browser(tmp_path_factory.mktemp("browser")) as found:
        found.listen()
        yield found


@pytest.fixture
def browser(window: Browser, page: Path) -> Browser:
    """The page, opened anew, with all that it has folded away."""
    window.call("Emulation.clearDeviceMetricsOverride")
    window.call("Emulation.setEmulatedMedia", media="", features=[])
    window.open("about:blank")
    window.wait("location.href === 'about:blank'")
    window.events.clear()
    unfold(window, page)
    return window


def of(browser: Browser, *methods: str) -> list[dict[str, Any]]:
    """What the browser told of these kinds."""
    return [event["params"] for event in browser.events if event["method"] in methods]


def test_nothing_is_logged_thrown_or_asked_of_the_network(browser: Browser, page: Path) -> None:
    """The file is all there is, and it is small."""
    browser.run("new Promise((done) => setTimeout(done, 200))")
    assert of(browser, "Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded") == []
    asked = {event["request"]["url"] for event in of(browser, "Network.requestWillBeSent")}
    assert asked == {page.as_uri()}
    assert page.stat().st_size < SIZE_BYTES_MAX


def test_every_chart_is_visible_and_every_link_leads_somewhere(browser: Browser) -> None:
    """Each figure has a drawing with something in it, and each link an end in the page."""
    number = browser.run("document.querySelectorAll('figure').length")
    assert number >= 3
    assert browser.run(SHOWN) == number
    assert browser.run(LOST) == []
    first = "document.querySelector('main a[href^=\"#trial-\"]').getAttribute('href')"
    browser.run(f"for (const each of document.querySelectorAll('details')) each.open = false; location.hash = {first}")
    browser.wait("document.querySelector(location.hash).getBoundingClientRect().height > 0")


def test_a_decision_with_its_faults_is_such_a_page_too(tmp_path: Path) -> None:
    """Nothing logged, thrown or fetched; its drawings of faults are visible, its links lead somewhere."""
    asked = {"msgs_per_s": 20_000.0, "size_bytes": 1024, "p99_ms": 10.0, "survive": "node", "subscribers": 1}
    losses: dict[str, int | None] = {"rabbitmq": 0, "kafka": 0}
    edges = {"rabbitmq": [33e3, 34e3], "kafka": [33e3, 35e3]}
    run = synthetic.decide_run(tmp_path, asked, {"rabbitmq": [3.0, 3.1], "kafka": [3.0, 3.2]}, edges, losses=losses)
    page = write_report(run)["html"]
    with Browser(tmp_path / "browser") as browser:
        browser.listen()
        unfold(browser, page)
        test_nothing_is_logged_thrown_or_asked_of_the_network(browser, page)
        assert browser.run("document.querySelector('main').innerText").count("both carry 20,000 msg/s") >= 1
        assert browser.run(SHOWN) == browser.run("document.querySelectorAll('figure').length") > 0
        assert browser.run("document.querySelectorAll('figure svg').length") > 0
        assert browser.run(LOST) == []


def test_values_are_told_where_the_pointer_is(browser: Browser) -> None:
    """In every chart that has them, a value's own words stand beside the pointer, and go with it."""
    assert browser.run("document.querySelectorAll('figure script').length") >= 2
    assert browser.run(POINT) == ""


def test_either_broker_can_be_left_out_of_a_chart(browser: Browser) -> None:
    """A button takes one broker's lines away and brings them back; the other's stay."""
    before = {broker: browser.run(f"({INK})('{broker}')") for broker in ("rabbitmq", "kafka")}
    assert all(before.values())
    press = "[...document.querySelectorAll('.series button')].filter((e) => e.innerText === 'Kafka')"
    browser.run(f"{press}.forEach((e) => e.click())")
    assert browser.run(f"({INK})('rabbitmq')") == before["rabbitmq"]
    assert browser.run(f"({INK})('kafka')") < before["kafka"]
    assert browser.run(f"{press}.every((e) => e.getAttribute('aria-pressed') === 'false')")
    browser.run(f"{press}.forEach((e) => e.click())")
    assert browser.run(f"({INK})('kafka')") == before["kafka"]


def test_who_cannot_see_the_charts_hears_what_they_say(browser: Browser) -> None:
    """For a screen reader each chart is one image with words, and each table has heads."""
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    images = [node for node in nodes if node.get("role", {}).get("value") in {"image", "img"} and not node["ignored"]]
    assert len(images) == browser.run("document.querySelectorAll('figure').length")
    assert all(len(node["name"]["value"]) > 40 for node in images)
    assert browser.run("[...document.querySelectorAll('table')].every((e) => e.querySelector('thead th'))")
    assert browser.run("document.documentElement.lang") == "en"


@pytest.mark.parametrize("width", [390, 1400])
def test_it_fits_a_phone_and_a_desk_in_light_and_dark(browser: Browser, width: int) -> None:
    """Nothing is wider than the window, but what can be scrolled by itself; both colour schemes have their own ink."""
    browser.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
    assert browser.run("document.documentElement.scrollWidth") <= width
    inks = set()
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.call("Emulation.setEmulatedMedia", features=features)
        inks.add(browser.run("getComputedStyle(document.body).color"))
    assert len(inks) == 2


def test_it_prints_without_what_only_a_screen_can_do(browser: Browser) -> None:
    """Buttons are not printed, and the page becomes pages."""
    browser.call("Emulation.setEmulatedMedia", media="print")
    shown = "[...document.querySelectorAll('.series')].filter((e) => getComputedStyle(e).display !== 'none').length"
    assert browser.run(shown) == 0
    pdf = browser.call("Page.printToPDF", printBackground=True)["data"]
    assert pdf.startswith("JVBERi")  # %PDF
