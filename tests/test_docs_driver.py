"""The driver of docs/howto/add-a-broker-driver.md keeps the contract that every driver keeps."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import test_driver_contract as contract
from test_driver_contract import (  # noqa: F401 - the contract, run here on the fixture below
    test_a_driver_says_what_it_is,
    test_closing_never_raises,
    test_every_message_is_settled_exactly_once,
    test_messages_come_once_intact_and_in_order,
    test_polling_without_a_timeout_never_waits,
    test_receiving_from_nothing_times_out_empty,
    test_room_ends_and_comes_back,
    test_settling_empties_the_queue,
    test_several_consumers_share_the_messages,
    test_several_producers_keep_their_own_order,
    test_the_control_plane_tells_the_truth,
    test_the_gauge_tells_depth_consumers_and_what_was_stored,
    test_what_was_not_settled_comes_to_the_next_consumer,
    test_what_was_sent_before_is_received_by_a_later_consumer,
    test_what_was_settled_stays_settled_after_close,
    test_without_confirms_everything_still_comes,
)

from loadgen.drivers.memory import memory_endpoint

if TYPE_CHECKING:
    from collections.abc import Iterator

EXAMPLES = Path(__file__).parents[1] / "docs/examples"


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[contract.Bench]:
    """The example's driver, found under its name, with its queues in a folder of the test."""
    monkeypatch.syspath_prepend(EXAMPLES)
    import sqlite_driver  # noqa: PLC0415 - where the path has just been told

    monkeypatch.setitem(contract.BROKER_OF, "sqlite", "rabbitmq")
    monkeypatch.setattr(contract, "load_driver", {"sqlite": sqlite_driver.DRIVER}.__getitem__)
    with contextlib.closing(contract.Bench("sqlite", replace(memory_endpoint(), data_dir=tmp_path))) as made:
        yield made


def test_every_test_of_the_contract_that_takes_any_driver_is_run_here() -> None:
    """A new clause of the contract is one for the example, too."""
    here = {name for name in globals() if name.startswith("test_")}
    whole = {
        name for name, each in vars(contract).items() if name.startswith("test_") and "bench" in each.__annotations__
    }
    assert whole <= here
