"""Secrets: one rule for who blanks them and for who refuses them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.errors import ScenarioError
from loadgen.redaction import BLANK, is_secret, redacted, refuse_secrets

SECRET_KEYS = [
    "password", "default_pass", "sasl.password", "ssl.keystore.password", "ssl.key.passphrase", "private_key",
    "api_key", "master-key", "access_key", "ssl.keystore.key", "token", "cookie", "erlang_cookie", "client_secret",
    "credentials", "sasl.jaas.config", "credentials_obfuscation_fallback_secret", "token_1",
]  # fmt: skip
HARMLESS_KEYS = [
    "user", "delegation.token.expiry.time.ms", "delegation.token.max.lifetime.ms", "password.encoder.iterations",
    "password.encoder.cipher.algorithm", "password.encoder.key.length", "credentials_obfuscation_algo", "keys",
    "sasl.oauthbearer.token.endpoint.url", "secret_name", "ssl.keystore.location", "keyspace", "compression_type",
]  # fmt: skip
KEYS = st.sampled_from([*SECRET_KEYS, *HARMLESS_KEYS]) | st.text(max_size=5)
TEXTS = st.text(max_size=8) | st.lists(
    st.sampled_from(["password=", "secret: ", "amqp://", "u:", "x", "@h", " ", '"', "[redacted]", "/"]), max_size=9
).map("".join)
NESTED: st.SearchStrategy[Any] = st.recursive(
    TEXTS | st.integers() | st.none() | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=10,
)


@given(NESTED)
def test_what_was_blanked_is_never_refused(value: Any) -> None:
    """Whatever goes through `redacted` passes `refuse_secrets`, and a second time changes nothing."""
    told = redacted(value)
    refuse_secrets(told, "header")
    assert redacted(told) == told


@pytest.mark.parametrize("key", SECRET_KEYS)
def test_a_secret_key_is_blanked_and_refused_alike(key: str) -> None:
    """A value under a secret's name goes, in lists too, and is refused where it stands all the same."""
    for value in ("hunter2", ["hunter2"]):
        assert "hunter2" not in str(redacted({key: value}))
        with pytest.raises(ScenarioError, match="looks like a secret") as caught:
            refuse_secrets({key: value}, "header")
        assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("key", HARMLESS_KEYS)
def test_what_only_sounds_secret_stays(key: str) -> None:
    """Keys that tell something about a secret keep their values and are refused nowhere."""
    assert not is_secret(key)
    assert redacted({key: "x"}) == {key: "x"}
    refuse_secrets({key: "x"}, "header")


def test_blanks_stand_where_the_secrets_were() -> None:
    """At any depth, in texts too; empty values and everything else stay as they are."""
    told = redacted(
        {"a": [{"default_pass": "x", "user": "u"}], "cookie": "", "command": "up --brokers amqp://me:pw@host", "n": 5}
    )
    assert told == {
        "a": [{"default_pass": BLANK, "user": "u"}],
        "cookie": "",
        "command": f"up --brokers amqp://me:{BLANK}@host",
        "n": 5,
    }
