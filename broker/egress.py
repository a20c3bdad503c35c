"""Requests to addresses that users name: only to the public internet, so that nobody reaches our own network through us.

The check is made where the socket is made, on the very address that is then connected to. So nothing in front of it can
be tricked: not a name that resolves differently the second time, not an odd spelling of an address, not a cache.
"""

from __future__ import annotations

import errno
import ipaddress
import re
import socket
from typing import Any

import aiohttp
from yarl import URL

MAX_URL_CHARS = 2_000


class ForbiddenAddress(OSError):
    """The address is not one of the public internet."""

    def __init__(self, address: str) -> None:
        super().__init__(errno.EACCES, f"the address {address} is not of the public internet")


class BadUrl(ValueError):
    """A URL that no request is made to; the message says why and how to mend it."""


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet. Tunnels that carry another address inside are not.

    >>> [is_public(each) for each in ("8.8.8.8", "2606:4700::1111")]
    [True, True]
    >>> [is_public(each) for each in ("127.0.0.1", "10.1.2.3", "100.64.0.1", "169.254.169.254", "224.0.0.1", "0.0.0.0")]
    [False, False, False, False, False, False]
    >>> [is_public(each) for each in ("::1", "::ffff:10.0.0.1", "fe80::1%eth0", "2002:7f00:1::", "64:ff9b::7f00:1", "fc00::1")]
    [False, False, False, False, False, False]
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if not ip.is_global or ip.is_multicast or ip.is_reserved:
        return False
    if isinstance(ip, ipaddress.IPv4Address):
        return True
    return ip.ipv4_mapped is None and ip.sixtofour is None and ip.teredo is None and not ip.is_site_local


def checked_url(text: str, *, allow_http: bool, allow_private: bool) -> str:
    """The URL, normal in form. Raises BadUrl; a name that resolves to a private address is found when it is connected to.

    >>> checked_url("https://example.com/hook?a=b", allow_http=False, allow_private=False)
    'https://example.com/hook?a=b'
    >>> checked_url("https://[::1]/", allow_http=False, allow_private=False)
    Traceback (most recent call last):
    broker.egress.BadUrl: the address ::1 is not of the public internet
    """
    if len(text) > MAX_URL_CHARS:
        raise BadUrl(f"the URL has {len(text)} characters; at most {MAX_URL_CHARS} fit")
    try:
        url = URL(text)
    except ValueError as error:
        raise BadUrl(f"not a URL: {error}") from error
    schemes = ("https", "http") if allow_http else ("https",)
    if url.scheme not in schemes:
        raise BadUrl(f"the scheme is {url.scheme!r}; it must be {' or '.join(schemes)}")
    if not url.host or not re.fullmatch(r"[A-Za-z0-9._:-]+", url.raw_host or ""):
        raise BadUrl("the URL names no host, or one that cannot be")
    if url.user is not None or url.password is not None:
        raise BadUrl("the URL holds a user or a password; deliveries are signed instead")
    if not allow_private and _is_address(url.host) and not is_public(url.host):
        raise BadUrl(f"the address {url.host} is not of the public internet")
    return str(url.with_fragment(None))


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def connector(*, allow_private: bool, limit: int) -> aiohttp.TCPConnector:
    """Connections to public addresses only, at most `limit` at once; none is kept, so each is checked."""

    def public_socket(found: tuple[Any, ...]) -> socket.socket:
        family, kind, protocol, _, where = found
        if not allow_private and not is_public(str(where[0])):
            raise ForbiddenAddress(str(where[0]))
        return socket.socket(family=family, type=kind, proto=protocol)

    return aiohttp.TCPConnector(socket_factory=public_socket, use_dns_cache=False, force_close=True, limit=limit)
