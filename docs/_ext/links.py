"""Links that lead out of `docs/`: a page links to the code as GitHub shows it, and the site to what it has of that.

Code that the reference is made from becomes the reference's page. Any other file of the project is kept with the site
as a download, which MyST does by itself.
"""

from __future__ import annotations

import posixpath
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

PAGES = {
    "README.md": "reference/overview.md",
    "loadgen/rabbitmq_part.py": "reference/knobs.md",
    "loadgen/kafka_part.py": "reference/knobs.md",
    "loadgen/scenario.py": "reference/knobs.md",
    "loadgen/exposition.py": "reference/metrics.md",
    "loadgen/gate/metrics.py": "reference/metrics.md",
    "loadgen/run.schema.json": "reference/results-schema.md",
    "loadgen/arguments.py": "reference/cli.md",
}
"""By file, seen from the project's root: the page of `docs/` that says what is in it."""
_LINK = re.compile(r"(?<=\]\()(?P<path>\.\.?/[^)#\s]+)")


def on_site(text: str, docname: str) -> str:
    """The page's Markdown, in which links to such code lead to the reference."""
    folder = posixpath.join("docs", posixpath.dirname(docname))

    def turned(found: re.Match[str]) -> str:
        page = PAGES.get(posixpath.normpath(posixpath.join(folder, found["path"])))
        return found["path"] if page is None else posixpath.relpath(posixpath.join("docs", page), folder)

    return _LINK.sub(turned, text)


def _turn(_: Sphinx, docname: str, source: list[str]) -> None:
    source[0] = on_site(source[0], docname)


def setup(app: Sphinx) -> dict[str, bool]:
    """Turn them before a page is parsed."""
    app.connect("source-read", _turn)
    return {"parallel_read_safe": True}
