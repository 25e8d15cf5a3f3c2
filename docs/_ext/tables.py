"""Markdown that the reference is made of: tables whose cells hold any text, and headings."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in GitHub's Markdown; a cell is one line of text, in which `code` stays code."""
    lines = [_row(head), _row(["---"] * len(head)), *(_row([cell(each) for each in row]) for row in rows)]
    return "\n".join(lines) + "\n"


def cell(text: str) -> str:
    """The text in one line, with what would end a cell, begin emphasis or be taken for HTML escaped."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    plain = [part if part.startswith("`") else re.sub(r"([*<\[\]])", r"\\\1", part) for part in parts]
    return "".join(plain).replace("|", r"\|")


def code(text: str) -> str:
    """As code."""
    return f"`{text}`"


def codes(values: Iterable[object]) -> str:
    """Each as code, commas between them."""
    return ", ".join(code(str(value)) for value in values)


def page(title: str, *parts: str) -> str:
    """A page of these parts, a blank line between them."""
    return "\n\n".join([f"# {title}", *(part.strip("\n") for part in parts)]) + "\n"


def block(language: str, text: str) -> str:
    """A fenced block."""
    return f"```{language}\n{text.rstrip()}\n```"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
