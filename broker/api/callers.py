"""From which address a machine calls, also where a proxy ends TLS before the broker.

`X-Forwarded-For` is anybody's word: who sends it himself could say any country. It counts for what proxies added that the
settings name (`http.trusted_proxies`), read from its end; what stands before the first stranger is the stranger's word.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from broker.api.registry import Call

HEADER = "X-Forwarded-For"
Address = IPv4Address | IPv6Address


def address_of(call: Call) -> str | None:
    """The caller's address; None: it came through a trusted proxy that did not say it."""
    said = ",".join(call.request.headers.getall(HEADER, ()))
    return dialled_from(call.request.remote, said, call.services.settings.http.trusted_proxies)


def dialled_from(peer: str | None, forwarded: str, proxies: Sequence[IPv4Network | IPv6Network]) -> str | None:
    """Pure. `forwarded` is the header's list, the nearest proxy's word last.

    >>> from ipaddress import ip_network
    >>> proxies = [ip_network("10.0.0.0/8")]
    >>> dialled_from("203.0.113.7", "198.51.100.1", proxies)  # no proxy of ours: what he says counts for nothing
    '203.0.113.7'
    >>> dialled_from("10.0.0.2", "198.51.100.1, 203.0.113.7:4711, 10.0.0.3", proxies)
    '203.0.113.7'
    >>> dialled_from("10.0.0.2", "", proxies), dialled_from("10.0.0.2", "198.51.100.1, unknown", proxies)
    (None, None)
    """
    address = _address(peer or "")
    hops = [each.strip() for each in forwarded.split(",") if each.strip()]
    while address is not None and any(address in each for each in proxies):
        address = _address(hops.pop()) if hops else None
    return None if address is None else str(address)


def _address(text: str) -> Address | None:
    """Some proxies add the port."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    # a socket for both families tells IPv4 callers so
    return getattr(address, "ipv4_mapped", None) or address
