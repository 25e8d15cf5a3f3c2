"""Keeps secrets out of what is written down: a record that holds one is refused, not cleaned in silence."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from loadgen.errors import ScenarioError

# By the end of a key, since brokers name what is no secret in the same words: `password.encoder.iterations`,
# `delegation.token.expiry.time.ms`. `sasl.jaas.config` carries a password in its text.
_SECRET_KEY = re.compile(
    r"(passw(or)?d|passphrase|pass|secret|token|cookie|credentials?"
    r"|(secret|master|private|api)[._-]?key"
    r"|jaas[._]config)$",
    re.IGNORECASE,
)
_URL_PASSWORD = re.compile(r"://[^/\s:@]*:(?P<value>[^/\s@]+)@")
_SET_PASSWORD = re.compile(
    r"(password|passwd|passphrase|secret)[\"']?\s*[=:]\s*[\"']?(?P<value>[^\s\"',}]+)", re.IGNORECASE
)
_MASK = re.compile(r"\*+|[<\[(]?(hidden|redacted|masked|removed|none|null|unset)[>\])]?", re.IGNORECASE)
# Up to the last @ before a blank or the next URL, since a password may hold any character. A URL that was taken for
# a path has lost one of its slashes.
_USERINFO = re.compile(r"([a-z+]{4,}:/{1,2})(?:(?!,[a-z+]{4,}:/)\S)*@")


def without_userinfo(text: str) -> str:
    """The text with user and password taken out of every URL in it."""
    return _USERINFO.sub(r"\1", text)


def refuse_secrets(value: Any, where: str) -> None:
    """Raise ScenarioError where a secret stands anywhere in `value`; a masked or absent one may stand.

    The error names the place and never repeats what stands there.
    """
    if isinstance(value, Mapping):
        for key, item in value.items():
            if isinstance(item, str) and item and _SECRET_KEY.search(str(key)) and not _MASK.fullmatch(item):
                raise ScenarioError(f"{where}.{key}: looks like a secret, and results hold none; mask it as [hidden]")
            refuse_secrets(item, f"{where}.{key}")
    elif isinstance(value, (list, tuple, set, frozenset)):
        for index, item in enumerate(value):
            refuse_secrets(item, f"{where}[{index}]")
    elif isinstance(value, str):
        for match in (*_URL_PASSWORD.finditer(value), *_SET_PASSWORD.finditer(value)):
            if not _MASK.fullmatch(match["value"]):
                raise ScenarioError(f"{where}: holds a password, and results hold none; mask it as [hidden]")
