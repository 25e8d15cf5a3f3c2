"""Nothing secret leaves this package in a configuration: values are blanked by the names of their keys."""

from __future__ import annotations

import re
from typing import Any

SECRET_KEY = re.compile(r"pass(word|phrase|wd)?$|passcode|secret|token|cookie|jaas|credential", re.IGNORECASE)
HARMLESS_KEY = re.compile(r"interval|timeout|lifetime|enabled|max|expiry|credentials_obfuscation_algo", re.IGNORECASE)
BLANK = "[redacted]"


def redacted(value: Any, key: str = "") -> Any:
    """A copy of nested data in which the values of secret keys are blanked, empty ones left as they are."""
    if isinstance(value, dict):
        return {name: redacted(item, str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(item, key) for item in value]
    if value and is_secret(key):
        return BLANK
    return value


def is_secret(key: str) -> bool:
    """Whether a configuration key's name says that its value is a secret."""
    return bool(SECRET_KEY.search(key)) and not HARMLESS_KEY.search(key)
