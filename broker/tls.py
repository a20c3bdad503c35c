"""TLS as the settings have it: what the broker shows, and what others may show it."""

from __future__ import annotations

import ssl
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509

from broker.settings import HttpSettings


class BadTls(Exception):
    """The TLS settings cannot be used; the message says which, why, and how to mend it."""


def server_context(http: HttpSettings, authority: str | None = None) -> ssl.SSLContext:
    """The broker's side: its certificate, and client certificates of `authority` (PEM) asked for but not demanded: people
    come to the same port with API keys. Raises BadTls."""
    if http.tls_certificate is None or http.tls_key is None:
        raise BadTls("http.tls_certificate and http.tls_key go together; one of them is missing")
    shown_certificate(http.tls_certificate)
    _read("http.tls_key", http.tls_key)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    locked = _Locked()
    try:
        context.load_cert_chain(http.tls_certificate, http.tls_key, password=locked.refuse)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise BadTls(_told(http.tls_certificate, http.tls_key, error, is_locked=locked.was_asked)) from error
    if authority is not None:
        context.load_verify_locations(cadata=authority)
        context.verify_mode = ssl.CERT_OPTIONAL
    return context


class ServerTls:
    """The broker's side for as long as it runs: a certificate that was renewed in its place is shown from the next handshake on.

    `context` is what listeners are given; connections that are open keep what they were shown. Raises BadTls when it is made.
    """

    def __init__(self, http: HttpSettings, authority: str) -> None:
        self._http, self._authority = http, authority
        self._seen = self._stamps()
        self.context = self._shown = server_context(http, authority)
        self.context.sni_callback = self._show

    def look(self) -> bool:
        """Whether the files have changed, and what they hold now is shown from now on.

        Raises BadTls, once for a change, when they cannot be used: written one after the other they are no pair for a moment.
        What was shown before is shown further.
        """
        stamps = self._stamps()
        if stamps == self._seen:
            return False
        self._seen = stamps
        self._shown = server_context(self._http, self._authority)
        return True

    def _show(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        """Asked in each handshake, whether or not the client names a host. Of the context only the certificate is taken."""
        connection.context = self._shown

    def _stamps(self) -> tuple[tuple[int, int, int] | None, ...]:
        return tuple(_stamp(each) for each in (self._http.tls_certificate, self._http.tls_key))


def _stamp(file: Path | None) -> tuple[int, int, int] | None:
    try:
        found = file.stat() if file else None
    except OSError:
        return None
    return found and (found.st_mtime_ns, found.st_ino, found.st_size)


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


def shown_certificate(file: Path) -> x509.Certificate:
    """The server's own certificate: the first of the file, which those that signed it may follow. Raises BadTls."""
    text = _read("http.tls_certificate", file)
    try:
        return x509.load_pem_x509_certificates(text)[0]
    except ValueError as error:
        raise BadTls(
            f"http.tls_certificate = {str(file)!r} is no PEM of a certificate and its chain: {error}"
        ) from error


def names(certificate: x509.Certificate, host: str) -> bool:
    """Whether a client that dials `host` takes the certificate for its own: by subject alternative names alone (RFC 9525), of
    which one may be `*` for exactly one label."""
    wanted = host.lower().rstrip(".")
    try:
        wildcard = wanted = str(ip_address(wanted))
    except ValueError:
        wildcard = "*." + wanted.partition(".")[2]
    return any(each in (wanted, wildcard) for each in hosts_of(certificate))


def hosts_of(certificate: x509.Certificate) -> list[str]:
    """The names and addresses that it is of, in lower case."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    addresses = [str(each) for each in found.get_values_for_type(x509.IPAddress)]
    return [each.lower() for each in found.get_values_for_type(x509.DNSName)] + addresses


class _Locked:
    """OpenSSL would ask the terminal for the passphrase of a key, and wait; a broker starts without a person."""

    was_asked = False

    def refuse(self) -> str:
        self.was_asked = True
        return ""


def _read(setting: str, file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise BadTls(f"{setting} = {str(file)!r} cannot be read: {error.strerror}") from error


def _told(certificate: Path, key: Path, error: Exception, *, is_locked: bool) -> str:
    if is_locked:
        plain = f"write it without one: openssl pkey -in {key} -out NEW, mode 0600"
        return f"http.tls_key = {str(key)!r} is locked with a passphrase, and nobody is there to type it; {plain}"
    reason = getattr(error, "reason", None)
    if reason == "KEY_VALUES_MISMATCH":
        mend = "name the key that the certificate was requested with (the server's own certificate comes first in its file)"
        return f"http.tls_key = {str(key)!r} is not the key of http.tls_certificate = {str(certificate)!r}; {mend}"
    return f"http.tls_key = {str(key)!r} is no private key in PEM that OpenSSL takes: {reason or error}"
