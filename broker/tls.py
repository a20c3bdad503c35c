"""TLS as the settings have it: what the broker shows, and what others may show it."""

from __future__ import annotations

import ssl

from broker.settings import HttpSettings


class BadTls(Exception):
    """The TLS settings cannot be used; the message says which, why, and how to mend it."""


def server_context(http: HttpSettings, authority: str) -> ssl.SSLContext:
    """The broker's side: its certificate, and client certificates of `authority` (PEM) asked for but not demanded: people
    come to the same port with API keys. Raises BadTls."""
    if http.tls_certificate is None or http.tls_key is None:
        raise BadTls("http.tls_certificate and http.tls_key go together; one of them is missing")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(http.tls_certificate, http.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise BadTls(
            f"http.tls_certificate = {str(http.tls_certificate)!r} with http.tls_key = {str(http.tls_key)!r}: {error}"
        ) from error
    context.load_verify_locations(cadata=authority)
    context.verify_mode = ssl.CERT_OPTIONAL
    return context


def trusted_ca(http: HttpSettings) -> str | None:
    """What `http.tls_ca` holds. Raises BadTls."""
    if http.tls_ca is None:
        return None
    try:
        text = http.tls_ca.read_text(encoding="ascii")
        ssl.create_default_context().load_verify_locations(cadata=text)
    except (OSError, ValueError, ssl.SSLError) as error:
        raise BadTls(f"http.tls_ca = {str(http.tls_ca)!r} is no PEM of certificates: {error}") from error
    return text
