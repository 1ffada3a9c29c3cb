"""TLS between peers: contexts from the files that the options name.

TLS 1.3, or 1.2 with forward secrecy and authenticated encryption, as all peers of ours and Go's have. A context reads
its files once: make another for new ones.
"""

from __future__ import annotations

import re
import ssl
from pathlib import Path
from typing import Final, NoReturn

CERT_OPTION: Final = "--tls-cert"
KEY_OPTION: Final = "--tls-key"
CA_OPTION: Final = "--tls-ca"

_CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"  # of TLS 1.2; those of 1.3 are all as good
_CERTIFICATE: Final = re.compile(rb"-----BEGIN (?:TRUSTED |X509 )?CERTIFICATE-----")
_PRIVATE_KEY: Final = re.compile(rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY-----")


def server_context(cert: str, key: str, ca: str | None = None) -> ssl.SSLContext:
    """Return the context of a peer that is asked. With ``ca``, peers that ask need a certificate that it signed.

    ``cert`` may hold intermediate certificates behind the peer's own. Raises ``ValueError`` that names the option and
    the file for files that cannot be read or do not belong together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _prepare(context)
    _load_certificate(context, cert, key)
    if ca is not None:
        _load_authorities(context, ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(ca: str | None = None, cert: str | None = None, key: str | None = None) -> ssl.SSLContext:
    """Return the context of a peer that asks: it checks the other's certificate and the host name in it.

    ``ca``: who signs the peers' certificates; None: whom the system trusts. ``cert`` and ``key``: this peer's own, for
    peers that require one. Raises ``ValueError`` as `server_context` does.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _prepare(context)
    if ca is not None:
        _load_authorities(context, ca)
    else:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    if (cert is None) != (key is None):
        given, wanted = (CERT_OPTION, KEY_OPTION) if key is None else (KEY_OPTION, CERT_OPTION)
        raise ValueError(f"{wanted}: got nothing, expected a file, since {given} is given")
    if cert is not None and key is not None:
        _load_certificate(context, cert, key)
    return context


def _prepare(context: ssl.SSLContext) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    context.options |= ssl.OP_NO_RENEGOTIATION  # by which a client would have us do handshakes all the time
    context.set_alpn_protocols(["http/1.1"])  # a Go server would choose HTTP/2 if it might


def _load_certificate(context: ssl.SSLContext, cert: str, key: str) -> None:
    _check(CERT_OPTION, cert, _CERTIFICATE, "a certificate")
    _check(KEY_OPTION, key, _PRIVATE_KEY, "a private key")
    try:
        context.load_cert_chain(cert, key, password=lambda: _refuse_encrypted(key))
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ValueError(f"{KEY_OPTION}: {key} is not the key of the certificate in {CERT_OPTION} {cert}") from None
        raise ValueError(f"{CERT_OPTION} {cert}, {KEY_OPTION} {key}: {error}") from None


def _refuse_encrypted(key: str) -> NoReturn:
    """Called for an encrypted key: OpenSSL would ask for the password on the terminal."""
    raise ValueError(f"{KEY_OPTION}: {key} is encrypted, expected a key without a password; openssl pkey takes it off")


def _load_authorities(context: ssl.SSLContext, ca: str) -> None:
    _check(CA_OPTION, ca, _CERTIFICATE, "certificates of authorities")
    try:
        context.load_verify_locations(ca)
    except ssl.SSLError as error:
        raise ValueError(f"{CA_OPTION} {ca}: {error}") from None


def _check(option: str, path: str, expected: re.Pattern[bytes], what: str) -> None:
    """OpenSSL's own errors tell neither the file nor what is missing from it."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{option}: {path}: {error.strerror}") from None
    if not expected.search(content):
        raise ValueError(f"{option}: got {path}, which holds no PEM block of that kind, expected {what}")
