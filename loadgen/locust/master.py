"""The Locust master's half: one trial at a time, who takes part in it, when it begins and how it ends.

All that takes time happens in the keeper (`loadgen.locust.keeper`) or on the workers; here are greenlets that pass
messages on. The trials of a test are its phases: the points of the scenario on the brokers that were chosen, one after
another, each for its part of the run time; they never contend.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from typing import TYPE_CHECKING, Any

import gevent
from gevent.event import Event
from gevent.lock import RLock
from locust.runners import STATE_SPAWNING
from locust.stats import CSV_STATS_INTERVAL_SEC

from loadgen.errors import LoadgenError, ScenarioError
from loadgen.locust.files import ScenarioUser
from loadgen.locust.floor import Floor, Phase
from loadgen.locust.helper import Helper
from loadgen.locust.options import Chosen
from loadgen.locust.seats import Seats, Split, next_role, split

if TYPE_CHECKING:
    from collections.abc import Callable

    from locust.env import Environment

    from loadgen.locust.dispatch import Dispatcher

PHASE_LEAST_S = 2.0  # shorter phases would be all warm-up; points that find no room are left out
PHASE_S = 30.0  # of a test without a run time

logger = logging.getLogger(__name__)


class Master:
    """The side that decides, in the process that commands the workers (or runs alone)."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        assert environment.runner is not None
        self.runner = environment.runner
        self.state: dict[str, dict[str, Any]] = {}
        self.verdicts: list[dict[str, Any]] = []
        self.history: list[dict[str, Any]] = []
        self.path: str | None = None
        self.planned = Split(0, 0)
        self._phases: list[dict[str, Any]] = []
        self._about: dict[str, Any] | None = None
        self._pending: int | None = None
        self._chosen: Chosen | None = None
        self._lock = RLock()
        self._timer: gevent.Greenlet | None = None
        self.dispatcher: Dispatcher | None = None
        self._test_over = Event()
        self._test_over.set()
        self.keeper = Helper("keeper", self._hear, self._lost)
        self.floor = Floor(self.runner, self.keeper)

    # The test as Locust tells it.

    def prepare(self) -> None:
        """Before the test: have the brokers up, so that the run time is all load."""
        self.keeper.wait_up()
        chosen = Chosen.of(self.environment)
        self._ask("prepare", brokers=chosen.brokers, names=chosen.names)

    def begin(self) -> None:
        """A test begins: plan its phases, begin the first."""
        self.runner.update_state(STATE_SPAWNING)  # the web UI watches no test that is only ready
        with self._lock:
            chosen = self._chosen = Chosen.of(self.environment)
            self.keeper.wait_up()
            length_s = chosen.run_time_s
            answer = self._ask(
                "open",
                scenarios=[each.model_dump(mode="json", exclude_none=True) for each in chosen.scenarios],
                wanted=[list(pair) for pair in chosen.wanted],
                brokers=chosen.brokers,
                results=chosen.results,
                command=["locust", *sys.argv[1:]],
                length_s=length_s,
            )
            self.path, self.verdicts, self.history, self.state = answer["path"], [], [], {}
            self._phases = self._timed(answer["trials"], length_s)
            self._test_over.clear()
            self._begin_phase(0)

    def _timed(self, trials: list[dict[str, Any]], length_s: float | None) -> list[dict[str, Any]]:
        """The phases: those that there is time for, with how long each lasts."""
        most = len(trials) if length_s is None else max(1, int(length_s / PHASE_LEAST_S))
        for left_out in trials[most:]:
            logger.warning("no time for %s: choose with --broker or --set, or give a longer --run-time", left_out["id"])
        kept = trials[:most]
        each_s = PHASE_S if length_s is None else length_s / len(kept)
        for each in kept:
            each["length_s"] = each_s if len(kept) > 1 else length_s
            if each["searches"]:
                logger.info("%s: driven as fast as it goes; `loadgen run` searches its capacity", each["id"])
        return kept

    def end(self, *, interrupted: bool = False) -> None:
        """The test is being stopped: end its trial in order, and judge it."""
        if self._test_over.is_set():
            return
        with self._lock:
            if self._timer is not None:
                self._timer.kill(block=False)
            if self._test_over.is_set():  # somebody else has just ended it
                return
            self._test_over.set()
            for step in (self._end_phase, self._close):
                try:
                    step(interrupted=interrupted)
                except LoadgenError as error:
                    logger.error("loadgen: %s", error)  # noqa: TRY400 - a line for people
                    self.environment.process_exit_code = error.exit_status

    def quit(self) -> None:
        """Locust is going: close the run, and end the brokers that were started for it."""
        try:
            # A test whose time was over has ended before.
            self.end(interrupted=self._chosen is not None and self._chosen.run_time_s is not None)
            options = self.environment.parsed_options
            if options is not None and options.csv_prefix:
                # Locust writes its files once a second and not when it goes: they would lack what came last.
                gevent.sleep(1.2 * CSV_STATS_INTERVAL_SEC)
        finally:
            self.keeper.close()

    def _close(self, *, interrupted: bool) -> None:
        assert self._chosen is not None
        answer = self._ask("close", partial="interrupted" if interrupted else None, thresholds=self._chosen.thresholds)
        for line in answer["missed"]:
            logger.error("threshold missed: %s", line)
        if answer["status"]:
            self.environment.process_exit_code = max(answer["status"], self.environment.process_exit_code or 0)
        if answer["path"]:
            logger.info("the run is kept in %s; `loadgen report %s` draws it", answer["path"], answer["path"])

    def fail(self, error: LoadgenError) -> None:
        """The test cannot be: say why in one line, and leave with the error's exit status."""
        logger.error("loadgen: %s", error)
        self.environment.process_exit_code = error.exit_status
        self._leave()

    def _leave(self) -> None:
        """End the test; without a web UI, end Locust."""
        options = self.environment.parsed_options
        gevent.spawn(self.runner.quit if options is None or options.headless else self.runner.stop)

    def spawned(self) -> None:
        """All users that were asked for are there."""
        self.floor.spawned = True
        with self._lock:
            if self._pending is not None and not self._test_over.is_set():
                self._guarded(self._begin_phase, self._pending)
        self.floor.look()

    def _guarded(self, step: Callable[..., None], *arguments: Any) -> None:
        try:
            step(*arguments)
        except LoadgenError as error:
            self.fail(error)

    # Phases.

    def plan(self, users: int) -> None:
        """So many users there are to be: how many of each role.

        Kafka's partitions are shared out once for a trial; so where the number of its consumers changes, the trial
        ends before they come or go, and another one begins with those that are there then.
        """
        self.floor.spawned = False
        phase = self.floor.phase
        if phase is None or phase.stopped:
            return
        self.planned = self._split(phase.about, users)
        phase.reached = False
        if phase.about["broker"] == "kafka" and self.planned.consumers != phase.seats.planned.consumers:
            # Apart from this greenlet, which Locust ends where the number is changed again meanwhile.
            gevent.spawn(self._suspend, phase).join()
        else:
            phase.seats.planned = self.planned

    def _suspend(self, phase: Phase) -> None:
        with self._lock:
            if self.floor.phase is phase:
                self._guarded(self._end_phase)
                self._pending = phase.number

    def _split(self, about: dict[str, Any], users: int) -> Split:
        roles = {each.role for each in self.classes() if (each.scenario_name, each.broker) == _pair(about)}
        return split(users, about["producers"], about["consumers"], about["subscribers"], roles)

    def classes(self) -> list[type[ScenarioUser]]:
        """The scenario's user classes that were picked and have a task left."""
        return [each for each in self.runner.user_classes if issubclass(each, ScenarioUser) and each.tasks]

    def next_class(self, counts: dict[str, int]) -> str | None:
        """The class of the next user, where so many of each class are there already; None without a trial."""
        if self._about is None:
            return None
        mine = {each.role: each for each in self.classes() if (each.scenario_name, each.broker) == _pair(self._about)}
        there = {role: counts.get(each.__name__, 0) for role, each in mine.items()}
        role = next_role(there.get("producer", 0), there.get("consumer", 0), self.planned)
        chosen = mine.get(role) or next(iter(mine.values()), None)
        return None if chosen is None else chosen.__name__

    def wanted_of(self, name: str) -> int:
        """How many users of a class of the scenario there are to be now."""
        found = next((each for each in self.classes() if each.__name__ == name), None)
        if found is None or self._about is None or (found.scenario_name, found.broker) != _pair(self._about):
            return 0
        return self.planned.producers if found.role == "producer" else self.planned.consumers

    def _begin_phase(self, number: int) -> None:
        about = self._about = self._phases[number % len(self._phases)]
        self._pending = None
        users = max(1, self.runner.target_user_count)
        self.planned = self._split(about, users)
        self.floor.demand_clocks()
        if not about["confirms"] and not about["is_open_loop"] and self.floor.workers > 1:
            raise ScenarioError(
                f"{about['id']}: without confirms a closed loop is bounded by what consumers have received, which "
                "several workers cannot know of each other; use one worker, a rate, or a class with confirms"
            )
        answer = self._ask(
            "begin",
            number=number % len(self._phases),
            producers=max(1, self.planned.producers),
            consumers=self.planned.consumers,
            subscribers=self.planned.subscribers,
            pids=list({*self.floor.pids, os.getpid()}),
        )
        message = {"scenario": about["scenario"], "broker": about["broker"], "common": answer["common"]}
        logger.info("%s: begins", answer["id"])
        self.floor.begin(Phase(number, {**about, "id": answer["id"]}, Seats(self.planned), message))
        length_s = about["length_s"] or PHASE_S
        if len(self._phases) > 1:
            self._timer = gevent.spawn_later(length_s, self._next_phase, self.floor.begun)

    def _next_phase(self, begun: int) -> None:
        """The phase's time is over: the next one's users take the place of this one's."""
        last = self._chosen is not None and self._chosen.run_time_s is not None
        with self._lock:
            phase = self.floor.phase
            if phase is None or self.floor.begun != begun or (last and phase.number + 1 == len(self._phases)):
                return
            try:
                self._end_phase()
                before, after = phase.about, self._phases[(phase.number + 1) % len(self._phases)]
                self._begin_phase(phase.number + 1)
                if _pair(before) != _pair(after):
                    self._swap(_pair(before), _pair(after))
                else:
                    self.floor.look()
            except LoadgenError as error:
                self.fail(error)

    def _swap(self, before: tuple[str, str], after: tuple[str, str]) -> None:
        """Let Locust put as many users of the next phase's classes in the place of those that there are."""
        by_role = {each.role: each.__name__ for each in self.classes() if (each.scenario_name, each.broker) == after}
        names = {
            each.__name__: by_role.get(each.role, each.__name__)
            for each in self.classes()
            if (each.scenario_name, each.broker) == before
        }
        if self.dispatcher is not None:
            self.dispatcher.swap(names)
            gevent.spawn(self.runner.start, self.runner.target_user_count, 100)

    def _end_phase(self, *, interrupted: bool = False) -> None:
        """Stop the producers, wait until all has arrived, gather what everybody says, and have it judged."""
        phase = self.floor.phase
        if phase is None:
            return
        stopped_ns = time.monotonic_ns()
        drained, drain_s = self.floor.end(phase)
        answer = self._ask(
            "finish",
            **self.floor.clocks(phase),
            stopped_ns=stopped_ns,
            drained=drained,
            drain_s=drain_s,
            told=phase.seats.told,
            length_s=phase.about["length_s"],
            interrupted=interrupted,
        )
        self.floor.over()
        self.verdicts.append(answer)
        logger.info("%s", answer["line"])

    # What the keeper says.

    def _hear(self, kind: str, message: dict[str, Any]) -> None:
        if kind == "state":
            before, phase = self.state.get(message["broker"]), self.floor.phase
            if before is not None and before["trial"] == message["trial"] and (phase is None or phase.stopped):
                before["totals"] = message["totals"]  # of an ended trial the last second under load is shown
                return
            self.state[message["broker"]] = message
            self.history.append({**message, "at_s": time.time()})
            del self.history[:-600]
        elif kind == "says":
            logger.info("%s", message["text"])
        elif kind == "failed":
            logger.error("%s", message["error"])
            self.keeper.send("trouble", error=message["error"], trace="")
            if message["error"].startswith("disk:"):
                self._leave()

    def _lost(self) -> None:
        logger.error("the keeper of the run has ended; what was measured until then is in %s", self.path)
        self.environment.process_exit_code = 70

    def _ask(self, kind: str, **data: Any) -> dict[str, Any]:
        """Ask the keeper; raises LoadgenError for what it could not do."""
        answer = self.keeper.call(kind, **data)
        if "error" in answer:
            error = LoadgenError(answer["error"])
            error.exit_status = answer["status"]
            raise error
        return answer


def _pair(about: dict[str, Any]) -> tuple[str, str]:
    return about["scenario"], about["broker"]
