"""Where Locust's events meet ours: options, the two halves, the order of users, the end."""

from __future__ import annotations

import logging
import signal
import sys
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

import gevent
from locust import events
from locust.runners import MasterRunner, WorkerRunner

from loadgen.errors import LoadgenError
from loadgen.locust.dispatch import Dispatcher
from loadgen.locust.files import ScenarioUser
from loadgen.locust.master import Master
from loadgen.locust.options import add_options
from loadgen.locust.page import add_page
from loadgen.locust.statistics import show_sub_milliseconds
from loadgen.locust.worker import Worker, workers

if TYPE_CHECKING:
    from locust.dispatch import UsersDispatcher
    from locust.env import Environment

masters: WeakKeyDictionary[Environment, Master] = WeakKeyDictionary()
"""The one of each Locust environment that commands users (or runs alone)."""
_listening: list[bool] = []

logger = logging.getLogger(__name__)


def listen() -> None:
    """Follow Locust's events from now on; once in a process."""
    if not _listening:
        _listening.append(True)
        events.init_command_line_parser.add_listener(lambda parser, **_: add_options(parser))
        events.init.add_listener(lambda environment, **_: _begin_process(environment))


def _begin_process(environment: Environment) -> None:
    # gevent's clock stood still while all was imported, and timers start from it: a slow start would eat the run time.
    gevent.get_hub().loop.update_now()
    heed_interrupts()
    show_sub_milliseconds()
    known = (environment.available_user_classes or environment.user_classes_by_name).values()
    if any(issubclass(cast("type", each), ScenarioUser) for each in known):
        attach(environment)


def heed_interrupts() -> None:
    """Have Ctrl-C end Locust whatever runs at that moment.

    Python raises KeyboardInterrupt in the greenlet that runs, and three of Locust's own (which print tables, write CSV
    files and keep the history; 2.47) take it for their own end: they go, and Locust stays.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # who ignores it goes on doing so
        hub = gevent.get_hub()
        gevent.signal_handler(signal.SIGINT, lambda: hub.handle_system_error(KeyboardInterrupt, KeyboardInterrupt()))


def attach(environment: Environment) -> None:
    """Give a Locust environment, whose runner exists, the halves that scenarios need, and our page."""
    runner = environment.runner
    assert runner is not None
    followed = environment.events
    if not isinstance(runner, WorkerRunner):
        master = masters[environment] = Master(environment)

        class Ordered(Dispatcher):
            """The order of this environment's users."""

        Ordered.master = master
        dispatcher: type[UsersDispatcher] = Ordered
        environment.dispatcher_class = dispatcher
        add_page(environment, master)
        followed.test_start.add_listener(lambda **_: _begin(master))
        followed.spawning_complete.add_listener(lambda **_: master.spawned())
        followed.test_stopping.add_listener(lambda **_: master.end())
    if not isinstance(runner, MasterRunner):
        worker = Worker(environment)
        if isinstance(runner, WorkerRunner):  # again, lest the master was not yet listening the first time
            followed.test_start.add_listener(lambda **_: worker.hello())
        followed.quitting.add_listener(lambda **_: worker.end())
    if environment in masters:
        # Locust asks the listeners to quit in reverse order: the trial is ended before the crew goes.
        followed.quitting.add_listener(lambda **_: master.quit())
        _prepare(environment, master)


def _begin(master: Master) -> None:
    try:
        master.begin()
    except LoadgenError as error:
        master.fail(error)


def _prepare(environment: Environment, master: Master) -> None:
    """Without a form to fill in first, have all up before the clock of the run time starts."""
    options: Any = environment.parsed_options
    if options is None or not (options.headless or options.autostart):
        return
    try:
        master.prepare()
        if environment in workers:
            workers[environment].crew.wait_up()
    except LoadgenError as error:
        logger.error("loadgen: %s", error)  # noqa: TRY400 - a line for people
        master.keeper.close()
        sys.exit(error.exit_status)
