"""The terminal: what is told while a command goes on, and how it is left when somebody presses Ctrl-C."""

from __future__ import annotations

import os
import sys
import time


class Console:
    """Progress on stderr: one living line on a terminal, one line every 10 s elsewhere."""

    PLAIN_EVERY_S = 10.0

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._last_s = 0.0
        self._open = False

    def message(self, text: str) -> None:
        """A line that stays."""
        self.clear()
        print(text, file=sys.stderr, flush=True)

    def progress(self, text: str) -> None:
        """A line that the next one replaces."""
        if self._terminal:
            width = os.get_terminal_size(sys.stderr.fileno()).columns
            print(f"\r\x1b[2K{text[: width - 1]}", end="", file=sys.stderr, flush=True)
            self._open = True
        elif time.monotonic() - self._last_s >= self.PLAIN_EVERY_S:
            self._last_s = time.monotonic()
            print(text, file=sys.stderr, flush=True)

    def clear(self) -> None:
        """End the living line."""
        if self._open:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)
            self._open = False


def forget_interrupt() -> None:
    """Let the exit status be ours although Ctrl-C came while code given as text was run.

    CPython keeps in mind that such code (a dataclass or a named tuple that is just being made) ended by a
    KeyboardInterrupt, even where that is caught afterwards, and under `python -m` it then ends itself by SIGINT. Code
    given as text that ends well makes it forget that (`_Py_UnhandledKeyboardInterrupt`, Python/pythonrun.c).
    """
    exec("")  # noqa: S102  nothing else resets it
