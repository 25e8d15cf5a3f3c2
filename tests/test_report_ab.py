"""The report of A against B: what differs, each effect with its corrected interval, and what would show one."""

from __future__ import annotations

import json
import re
from html import unescape
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import synthetic

from loadgen import verdict
from loadgen.analysis.ab import ALPHA, compare_variants, multiplicity
from loadgen.checks import accounting
from loadgen.cli import main
from loadgen.report import write_report
from loadgen.report.content import gather
from loadgen.runs import Run, RunWriter, load
from loadgen.stats.confidence import paired_ratio
from loadgen.stats.power import repeats_needed, spread_bound

if TYPE_CHECKING:
    from pathlib import Path

REPEATS = 6
EFFECT = 1.2


def ab_run(root: Path, ratios: dict[str, float], spread: float = 0.01, effect: float | None = EFFECT) -> Run:
    """A closed loop of each broker as A and as B, whose rate is so many times A's; prefetch and linger differ."""
    rng = np.random.default_rng(3)
    plan = {"is_ab": True, "effect_ratio": effect, "brokers": list(ratios)}
    writer = RunWriter(root, "ab-some", {**synthetic.HEADER, "plan": plan})
    knobs = {"rabbitmq": "prefetch", "kafka": "linger_ms"}
    for repeat in range(1, REPEATS + 1):
        for pair, (broker, ratio) in enumerate(ratios.items(), 1):
            for variant, factor, knob in (("A", 1.0, 10), ("B", ratio, 100)):
                rate = 1_000.0 * factor * rng.lognormal(0, spread)
                record = synthetic.trial(broker, "some", repeat=repeat, goodput_msgs_per_s=rate)
                record |= {"point": {"variant": variant, "pair": pair}, "settings": {knobs[broker]: knob, "same": 1}}
                record |= {"id": f"some/{broker}/variant={variant}-pair={pair}/{repeat}"}
                writer.add_trial(record)
    return load(writer.finish("complete"))


class Reported:
    """A run, its page as text, and its Markdown, written by the command."""

    def __init__(self, run: Run, capsys: pytest.CaptureFixture[str] | None = None) -> None:
        self.run = run
        if capsys is None:
            write_report(run)
        else:
            assert main(["report", run.id, "--results", str(run.path.parent)]) == 0
        self.printed = capsys.readouterr().out if capsys else ""
        self.page = (run.path / "report.html").read_text(encoding="utf-8")
        self.markdown = (run.path / "report.md").read_text(encoding="utf-8")

    def in_both(self, said: str) -> bool:
        """Whether page and Markdown both say it."""
        shown = re.sub(r"<[^>]+>", " ", unescape(self.page))
        return said in re.sub(r"\s+", " ", shown) and said in self.markdown


def test_the_command_reports_a_against_b(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`loadgen report` on such a run shows what differs, each effect in words, its pairs, and a chart of each point."""
    found = Reported(ab_run(tmp_path, {"rabbitmq": 1.3, "kafka": 1.0}), capsys)
    assert "<h1>A against B, measured</h1>" in found.page
    assert found.markdown.startswith("# A against B: ")
    for broker, knob in (("rabbitmq", "prefetch"), ("kafka", "linger_ms")):
        row = rf'<th scope="row">{broker}\.{knob}</th><td>10</td><td>100</td>'
        assert re.search(row, found.page)
        assert f"What differs: {broker}.{knob} 10 in A, 100 in B." in found.markdown
    assert "same" not in found.page[found.page.index("what differs") : found.page.index("claim by claim")]
    rabbitmq, kafka = compare_variants(found.run, EFFECT)
    answer = rabbitmq.effects[0].ratio
    assert answer.ratio is not None
    assert found.in_both(f"B is {answer.ratio - 1:.1%} higher")
    assert found.in_both("no difference shown, and one of 20% would have been")
    assert f"<td>{REPEATS}<small>" in found.page
    assert {path.name for path in (found.run.path / "charts").glob("ab-*")} == {
        "ab-1.png", "ab-1.svg", "ab-2.png", "ab-2.svg",
    }  # fmt: skip
    assert found.page.count("B over A, pair by pair</h3>") == 2
    svg = (found.run.path / "charts" / "ab-1.svg").read_text(encoding="utf-8")
    assert svg.count("<use ") >= REPEATS * len([effect for effect in rabbitmq.effects if effect.ratios])
    assert found.printed.count("B/A") == len([each for one in (rabbitmq, kafka) for each in one.effects])


def test_repeats_that_would_show_the_effect_asked_about_are_told(tmp_path: Path) -> None:
    """The number is of the run's own `--effect`, at what the spread is below and the corrected level."""
    found = Reported(ab_run(tmp_path, {"rabbitmq": 1.0, "kafka": 1.0}, spread=0.3))
    for compared in compare_variants(found.run, EFFECT):
        effect = compared.effects[0]
        assert effect.spread_log is not None
        bound = spread_bound(effect.spread_log, effect.ratio.pairs - 1)
        assert effect.repeats_needed == repeats_needed(EFFECT, bound, 0.9, ALPHA / 2)
        assert found.in_both(f"20% would need {effect.repeats_needed} repeats")
        assert f"<td>{effect.repeats_needed}<small>" in found.page
    assert found.in_both("repeats to show 20%")
    earlier = ab_run(tmp_path, {"kafka": 1.0}, effect=None)  # a run of before the effect was kept
    assert "repeats to show 10%" in Reported(earlier).markdown


def test_intervals_are_simultaneous_within_their_family(tmp_path: Path) -> None:
    """Two answers are at 97.5 %, the effects beside them at 1 − 0.05 / their number, and the report says so."""
    found = Reported(ab_run(tmp_path, {"rabbitmq": 1.1, "kafka": 1.1}))
    compared = compare_variants(found.run, EFFECT)
    effects = [effect for each in compared for effect in each.effects if effect.ratio.low is not None]
    answers = [effect for effect in effects if effect.is_answer]
    others = len(effects) - len(answers)
    assert (len(answers), {each.measure for each in answers}) == (2, {"rate"})
    for effect in effects:
        level = 1 - 0.05 / (2 if effect.is_answer else others)
        assert effect.ratio.confidence == pytest.approx(level)
        pairs = zip(effect.b.values, effect.a.values, strict=True)
        assert effect.ratio == paired_ratio(pairs, effect.ratio.confidence)
    said = multiplicity(compared)
    assert "the 2 answers, the first of each point, at 97.5%" in said
    assert f"the {others} others at" in said
    assert found.in_both(said)


def test_what_only_one_uncorrected_interval_would_show_is_not_shown(tmp_path: Path) -> None:
    """A ratio whose own 95 % interval excludes 1 by a little is no difference among several."""
    marginal = [1.02, 1.06, 1.01, 1.05, 1.0, 1.03]
    writer = RunWriter(tmp_path, "ab-some", synthetic.HEADER)
    for repeat, ratio in enumerate(marginal, 1):
        for pair in range(1, 9):
            for variant, factor in (("A", 1.0), ("B", ratio if pair == 1 else 1 + 0.01 * (-1) ** repeat)):
                record = synthetic.trial("kafka", "some", repeat=repeat, goodput_msgs_per_s=1e5 * factor)
                record |= {"point": {"variant": variant, "pair": pair, "kafka.linger_ms": pair}}
                writer.add_trial(record | {"id": f"some/{pair}{variant}/{repeat}"})
    run = load(writer.finish("complete"))
    effect = compare_variants(run, EFFECT)[0].effects[0]
    alone = paired_ratio((ratio, 1.0) for ratio in marginal)
    assert (alone.direction, effect.ratio.direction) == ("higher", "no difference shown")
    assert effect.family == 8
    blocks = gather(run).variants
    assert blocks is not None
    assert blocks.blocks[0].own_label == "linger_ms 1"


def test_a_run_without_pairs_to_use_says_so_and_draws_nothing(tmp_path: Path) -> None:
    """Struck trials are counted, and neither a ratio nor a chart is made of nothing."""
    writer = RunWriter(tmp_path, "ab-some", synthetic.HEADER)
    for variant in ("A", "B"):
        record: dict[str, Any] = synthetic.trial("kafka", "some", goodput_msgs_per_s=1e5)
        verdict = {"status": "invalid", "bound_by": "unknown", "reasons": ["loss: 3 <lost>"]}
        point = {"variant": variant, "pair": 1}
        writer.add_trial(record | {"id": f"some/{variant}/1", "point": point, "verdict": verdict})
    found = Reported(load(writer.finish("complete")))
    assert found.in_both("no pair of usable repeats")
    assert "2 trials struck out" in found.page
    assert "What differs: nothing: A and B are the same configuration" in found.markdown
    assert not list((found.run.path / "charts").glob("ab-*"))
    assert "none has an interval" in found.markdown


def test_every_other_run_has_no_such_block(tmp_path: Path) -> None:
    """A comparison of brokers is no A/B run."""
    run = synthetic.compare_run(tmp_path, repeats=1)
    assert gather(run).variants is None
    assert "A against B" not in Reported(run).page


def test_the_command_line_keeps_the_effect_asked_about(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--effect` is in the run, so that its report can be made again; the page is written when the run ends."""
    # What others do to this machine is looked at in other tests.
    monkeypatch.setattr(verdict, "CHECKERS", (accounting.check_traffic, accounting.check_loss))
    path = tmp_path / "s.py"
    path.write_text(
        "from loadgen import Kafka, Rate, Scenario\n"
        'scenario = Scenario(name="ab", question="Which?", rate=Rate.fixed(500), kafka=Kafka(), warmup_s=0.1,'
        " duration_s=0.5)\n"
    )
    arguments = ["--brokers", "memory", "--repeats", "2", "--results", str(tmp_path / "results"), "--json"]
    with synthetic.undrawn():
        main(["ab", str(path), "--set", "kafka.linger_ms=7", "--effect", "25", *arguments])
    run = load(json.loads(capsys.readouterr().out)["path"])
    assert run.header["plan"]["effect_ratio"] == 1.25
    page = (run.path / "report.html").read_text(encoding="utf-8")
    assert "repeats to show 25%" in page
    assert re.search(r'<th scope="row">kafka\.linger_ms</th><td>[^<]+</td><td>7</td>', page)
