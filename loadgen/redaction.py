"""Keeps secrets out of what is written down: one rule of what is a secret, for who blanks and for who refuses.

A broker's configuration is blanked where it is read; a record that holds a secret all the same is refused, not cleaned
in silence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from loadgen.errors import ScenarioError

BLANK = "[redacted]"
# A secret word anywhere in a key, unless the key's last word tells of something about the secret: brokers name what
# is none in the same words (`password.encoder.iterations`, `delegation.token.expiry.time.ms`).
_SECRET_KEY = re.compile(
    r"passw(or)?d|passphrase|passcode|pass$|secret|token|cookie|credential|jaas"
    r"|(secret|master|private|api|access|keystore)[._-]?key",
    re.IGNORECASE,
)
_ABOUT_A_SECRET = re.compile(
    r"(interval|timeout|lifetime|expiry|enabled?|iterations|algorithm|algo|length|class|url|uri|path|file|location)$"
    r"|[._-](count|size|type|max|min|ms|s|seconds|bytes|names?)$",
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


def is_secret(key: str) -> bool:
    """Whether a configuration key's name says that its value is a secret."""
    return bool(_SECRET_KEY.search(key)) and not _ABOUT_A_SECRET.search(key)


def redacted(value: Any, key: str = "") -> Any:
    """A copy of nested data in which secrets are blanked, so that `refuse_secrets` takes it; empty ones stay."""
    if isinstance(value, Mapping):
        return {name: redacted(item, str(name)) for name, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [redacted(item, key) for item in value]
    if value and is_secret(key):
        return BLANK
    return _without_passwords(value) if isinstance(value, str) else value


def _without_passwords(text: str) -> str:
    while found := _passwords(text):  # one by one, since one may lie within another
        text = text[: found[0].start("value")] + BLANK + text[found[0].end("value") :]
    return text


def _passwords(text: str) -> list[re.Match[str]]:
    """Where a password stands in a text, masked ones aside."""
    found = (*_URL_PASSWORD.finditer(text), *_SET_PASSWORD.finditer(text))
    return [match for match in found if not _MASK.fullmatch(match["value"])]


def refuse_secrets(value: Any, where: str, key: str = "") -> None:
    """Raise ScenarioError where a secret stands anywhere in `value`; a masked or absent one may stand.

    The error names the place and never repeats what stands there.
    """
    if isinstance(value, Mapping):
        for name, item in value.items():
            refuse_secrets(item, f"{where}.{name}", str(name))
    elif isinstance(value, (list, tuple, set, frozenset)):
        for index, item in enumerate(value):
            refuse_secrets(item, f"{where}[{index}]", key)
    elif isinstance(value, str) and value:
        if is_secret(key) and not _MASK.fullmatch(value):
            raise ScenarioError(f"{where}: looks like a secret, and results hold none; mask it as [hidden]")
        if _passwords(value):
            raise ScenarioError(f"{where}: holds a password, and results hold none; mask it as [hidden]")
