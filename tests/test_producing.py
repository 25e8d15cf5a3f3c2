"""When a producer sleeps, and until when."""

from __future__ import annotations

from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from loadgen.agent import POLL_S, SECOND_NS
from loadgen.pacer import Fixed, Poisson
from loadgen.producing import EARLY_NS, EARLY_SHARE, ProducerAgent


@given(
    rate=st.floats(0.1, 100_000),
    sent=st.integers(0, 5_000),
    is_random=st.booleans(),
    now_share=st.floats(0, 1),
)
def test_a_sleep_ends_a_little_before_a_message_is_due(
    *, rate: float, sent: int, is_random: bool, now_share: float
) -> None:
    """By 0.3 ms or a tenth of the gap before it, whichever is less; never after it is due."""
    pacer = Poisson(rate, 1) if is_random else Fixed(rate)
    after_ns, before_ns = pacer.next_due_ns(sent), pacer.next_due_ns(sent - 1) if sent else 0
    now_ns = before_ns + round(now_share * (after_ns - before_ns))
    agent = SimpleNamespace(
        open_loop=True,
        grouping=None,
        pacer=pacer,
        sent=sent,
        base=0,
        clock=SimpleNamespace(start_ns=0, window_end_ns=1 << 62),
    )
    wait_s = ProducerAgent._wait_s(agent, sent, now_ns)  # type: ignore[arg-type]
    early_ns = min(EARLY_NS, EARLY_SHARE * (after_ns - before_ns))
    wanted_s = max(0.0, (after_ns - now_ns - early_ns) / SECOND_NS)
    assert abs(wait_s - min(POLL_S, wanted_s)) <= 2e-9
