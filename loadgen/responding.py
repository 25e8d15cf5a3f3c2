"""The responder's loop: a consumer's, which replies to each request once it has worked on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from loadgen.board import Cell
from loadgen.consuming import ConsumerAgent
from loadgen.driver import Replying
from loadgen.drivers import load_driver
from loadgen.errors import TrialError

if TYPE_CHECKING:
    from loadgen.agent import BookName
    from loadgen.driver import Received, Responder, Target


class ResponderAgent(ConsumerAgent):
    """Receives requests, works on each as long as it thinks, replies, and acknowledges the request after that."""

    KIND: ClassVar[str] = "hop"
    COUNTED: ClassVar[tuple[str, Cell]] = ("handled", Cell.HANDLED)
    BOOK: ClassVar[BookName] = "handled_book"

    responder: Responder

    def connect(self, target: Target) -> Responder:
        """The driver's responder."""
        spec, driver = self.spec, load_driver(self.spec.driver)
        if not isinstance(driver, Replying):
            raise TrialError(f"driver {driver.name} cannot do request-reply")
        self.responder = driver.responder(target, spec.index, spec.count, self.payloads)
        return self.responder

    @property
    def may_nap(self) -> bool:
        """Somebody waits for each reply."""
        return False

    def processed(self, batch: Received, begin: int, end: int) -> None:
        """Reply to these requests."""
        self.responder.reply(batch, begin, end)
