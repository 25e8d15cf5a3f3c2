"""TLS towards a broker: one context for every client that is Python's own, and what a failed handshake means."""

from __future__ import annotations

import socket
import ssl
from typing import TYPE_CHECKING

from loadgen.endpoint import Tls
from loadgen.errors import BrokerError

if TYPE_CHECKING:
    from loadgen.endpoint import BrokerName

_UNKNOWN_AUTHORITY = {2, 18, 19, 20, 21}  # OpenSSL's numbers: the issuer is missing, or is nobody whom we trust


def client_context(tls: Tls) -> ssl.SSLContext:
    """A client's context for these settings; raises BrokerError if a file of theirs cannot be used."""
    try:
        context = ssl.create_default_context(cafile=None if tls.ca_file is None else str(tls.ca_file))
        if tls.cert_file is not None:
            context.load_cert_chain(tls.cert_file, tls.key_file)
    except OSError as error:
        files = ", ".join(str(file) for file in (tls.ca_file, tls.cert_file, tls.key_file) if file is not None)
        raise BrokerError(f"TLS files {files} cannot be used: {error.strerror or error}") from None
    if not tls.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def handshake(tls: Tls, host: str, port: int, timeout_s: float) -> None:
    """Greet whoever listens there, and leave; raises OSError (mostly an ssl.SSLError) if that fails."""
    context = client_context(tls)
    with socket.create_connection((host, port), timeout_s) as plain:
        context.wrap_socket(plain, server_hostname=host).close()


def is_spoken(host: str, port: int, timeout_s: float) -> bool:
    """Whether whoever listens there speaks TLS at all."""
    try:
        handshake(Tls(verify=False), host, port, timeout_s)
    except OSError:
        return False
    return True


def tls_error_of(error: BaseException) -> ssl.SSLError | None:
    """What TLS said that is behind a library's own error, where it is."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, ssl.SSLError):
        found = found.__cause__ or found.__context__
    return found


def failure(error: OSError, broker: BrokerName) -> str:
    """A failed handshake in words that say what to do."""
    if isinstance(error, ssl.SSLCertVerificationError):
        advice = ""
        if error.verify_code in _UNKNOWN_AUTHORITY:
            advice = f"; set LOADGEN_{broker.upper()}_CA_FILE to the file with its authority's certificate"
        return f"TLS failed: its certificate is not trusted: {error.verify_message.rstrip('.')}{advice}"
    said = error.reason if isinstance(error, ssl.SSLError) else error.strerror
    reason = str(said or type(error).__name__).lower().replace("_", " ")
    return f"TLS failed: {reason}; check the port, and whether TLS is spoken there"
