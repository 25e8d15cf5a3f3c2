"""A headless Chromium, driven through its own pipe: pages opened, clicked, read, photographed; for tests of pages."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, Self

from loadgen.errors import EXIT_UNAVAILABLE

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
WAIT_S = 120.0


def find() -> str | None:
    """Where the browser is, if there is one."""
    return next((path for name in PROGRAMS if (path := shutil.which(name))), None)


def need() -> None:
    """End the program with one line where there is none: `make test` asks before the first test, not after many."""
    if find() is None:
        names = ", ".join(PROGRAMS)
        sys.stderr.write(f"make test needs a browser, none of {names} is on PATH: apt-get install chromium\n")
        raise SystemExit(EXIT_UNAVAILABLE)


def program() -> str:
    """The browser; `make test` has seen to it that there is one."""
    found = find()
    assert found is not None, f"no browser: expected one of {', '.join(PROGRAMS)} (apt-get install chromium)"
    return found


class Browser:
    """One page of a browser of its own."""

    def __init__(self, folder: Path, width: int = 1400, height: int = 900) -> None:
        ours, theirs = os.pipe()
        told, telling = os.pipe()
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"]
        flags += [f"--user-data-dir={folder}", f"--window-size={width},{height}", "--no-first-run"]

        # The browser reads from descriptor 3 and writes to 4.
        script = 'exec "$0" "$@" 3<&"$IN" 4>&"$OUT"'
        environment = {**os.environ, "IN": str(ours), "OUT": str(telling)}
        self._process = subprocess.Popen(
            ["/bin/bash", "-c", script, program(), *flags, "about:blank"],
            pass_fds=[ours, telling],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(ours)
        os.close(telling)
        self._write, self._read = theirs, told
        self._buffer = b""
        self._number = 0
        self.events: list[dict[str, Any]] = []
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the DevTools protocol; its result."""
        self._number += 1
        command: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            command["sessionId"] = self._session
        os.write(self._write, json.dumps(command).encode() + b"\0")
        while True:
            message = self._message()
            if message.get("id") == self._number:
                assert "error" not in message, message["error"]
                result: dict[str, Any] = message["result"]
                return result
            self.events.append(message)

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            read = os.read(self._read, 1 << 16)
            assert read, "the browser has ended"
            self._buffer += read
        text, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        return message

    def open(self, url: str) -> None:
        """Go to a page."""
        self.call("Page.navigate", url=url)

    def listen(self) -> None:
        """Keep in `events` what the page logs, throws and asks the network for from now on."""
        for domain in ("Runtime", "Log", "Network", "Page"):
            self.call(f"{domain}.enable")

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        result = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, script: str) -> Any:
        """Wait until an expression is true in the page, and return its value."""
        end = time.monotonic() + WAIT_S
        while time.monotonic() < end:
            if value := self.run(script):
                return value
            time.sleep(0.1)
        raise AssertionError(f"never true: {script}\n{self.text()}")

    def text(self) -> str:
        """What a person reads on the page."""
        return str(self.run("document.body ? document.body.innerText : ''"))

    def click(self, text: str, selector: str = "button, a, [role=tab]") -> None:
        """Click what shows this text."""
        is_it = f"(e) => e.innerText.trim().toLowerCase() === {json.dumps(text.lower())}"
        found = f"[...document.querySelectorAll({json.dumps(selector)})].find({is_it})"
        self.wait(f"!!({found})")
        self.run(f"({found}).click()")

    def fill(self, name: str, value: str) -> None:
        """Type into the field of this name, as React hears it."""
        field = f"document.querySelector('[name={name}]')"
        self.wait(f"!!{field}")
        setter = "Object.getOwnPropertyDescriptor(Object.getPrototypeOf(e), 'value').set"
        events = "for (const kind of ['input', 'change']) e.dispatchEvent(new Event(kind, {bubbles: true}));"
        self.run(f"(() => {{ const e = {field}; {setter}.call(e, {json.dumps(value)}); {events} }})()")

    def photograph(self, path: Path) -> None:
        """Keep what the page looks like."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait(60)
        os.close(self._write)
        os.close(self._read)
