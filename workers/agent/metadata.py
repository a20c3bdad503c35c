"""Interruptions as clouds announce them: inside the machine, at the link-local address 169.254.169.254.

One function a cloud: it asks once and says what is announced, or None. Reading an answer is pure. Unverified against the
live services; the paths and bodies are those of AWS's EC2 metadata mock and of the providers' documentation:

AWS    PUT /latest/api/token, then GET /latest/meta-data/spot/instance-action (404 until there is one) and
       /latest/meta-data/events/recommendations/rebalance
GCP    GET /computeMetadata/v1/instance/preempted: TRUE or FALSE
Azure  GET /metadata/scheduledevents: events of type Preempt with a time NotBefore
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from email.utils import parsedate_to_datetime
from types import MappingProxyType
from typing import Any

import aiohttp

ADDRESS = "http://169.254.169.254"
_TIMEOUT = aiohttp.ClientTimeout(total=2)
_TOKEN_S = 21_600
# What the providers promise between the announcement and the end, in seconds.
_AWS_NOTICE_S = 120.0
_GCP_NOTICE_S = 30.0


class Unreadable(Exception):
    """The metadata service did not answer as documented; the message says what came instead."""


@dataclass(frozen=True, slots=True)
class Announced:
    """The machine may end at `at` (epoch seconds); `kind` is the provider's own word for it."""

    at: float
    kind: str


@dataclass(slots=True)
class AwsMetadata:
    """IMDSv2: each question carries a token, which is fetched anew when it is refused."""

    session: aiohttp.ClientSession
    address: str = ADDRESS
    _token: str | None = field(default=None, repr=False)

    async def ask(self, now: float) -> Announced | None:
        """The earlier of interruption and rebalance recommendation. Raises Unreadable."""
        action = await self._get("/latest/meta-data/spot/instance-action")
        if action is not None:
            return aws_action(action, now)
        rebalance = await self._get("/latest/meta-data/events/recommendations/rebalance")
        return None if rebalance is None else aws_rebalance(rebalance, now)

    async def _get(self, path: str) -> str | None:
        for is_again in (False, True):
            if self._token is None:
                headers = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_S)}
                status, text = await _request(self.session, "PUT", f"{self.address}/latest/api/token", headers)
                if status != 200:
                    raise Unreadable(f"PUT /latest/api/token: status {status}")
                self._token = text
            headers = {"X-aws-ec2-metadata-token": self._token}
            status, text = await _request(self.session, "GET", self.address + path, headers)
            if status == 404:
                return None
            if status == 200:
                return text
            if status != 401 or is_again:
                break
            self._token = None
        raise Unreadable(f"GET {path}: status {status}")


@dataclass(slots=True)
class GcpMetadata:
    session: aiohttp.ClientSession
    address: str = ADDRESS

    async def ask(self, now: float) -> Announced | None:
        """Raises Unreadable."""
        path = "/computeMetadata/v1/instance/preempted"
        status, text = await _request(self.session, "GET", self.address + path, {"Metadata-Flavor": "Google"})
        if status != 200:
            raise Unreadable(f"GET {path}: status {status}")
        return gcp_preempted(text, now)


@dataclass(slots=True)
class AzureMetadata:
    session: aiohttp.ClientSession
    address: str = ADDRESS

    async def ask(self, now: float) -> Announced | None:
        """Raises Unreadable."""
        path = "/metadata/scheduledevents?api-version=2020-07-01"
        status, text = await _request(self.session, "GET", self.address + path, {"Metadata": "true"})
        if status != 200:
            raise Unreadable(f"GET {path}: status {status}")
        return azure_events(text, now)


Ask = Callable[[float], Awaitable[Announced | None]]


def asker(source: str, session: aiohttp.ClientSession, address: str = ADDRESS) -> Ask:
    """How to ask the metadata service of `source`. Raises KeyError for one that is not in SOURCES."""
    return SOURCES[source](session, address).ask


SOURCES: Mapping[str, Callable[[aiohttp.ClientSession, str], AwsMetadata | GcpMetadata | AzureMetadata]] = (
    MappingProxyType({"aws": AwsMetadata, "gcp": GcpMetadata, "azure": AzureMetadata})
)


def aws_action(text: str, now: float) -> Announced:
    """Spot instance-action: `{"action": "terminate", "time": "2022-07-11T17:11:44Z"}`. Raises Unreadable.

    Stop and hibernate end our work as well. A clock that is behind must not stretch the two minutes that are promised.
    """
    notice = _object(text, "instance-action")
    at = _time(notice.get("time"), "instance-action").timestamp()
    return Announced(min(at, now + _AWS_NOTICE_S), f"spot {notice.get('action')}")


def aws_rebalance(text: str, now: float) -> Announced:
    """Rebalance recommendation: `{"noticeTime": "2022-07-16T19:18:24Z"}`. Raises Unreadable.

    It says that an interruption is likely, not when. The interruption's own notice may follow at any moment, so the
    earliest end is two minutes from now: leaving with time to spare costs one boot, staying risks a part.
    """
    _time(_object(text, "rebalance").get("noticeTime"), "rebalance")
    return Announced(now + _AWS_NOTICE_S, "rebalance")


def gcp_preempted(text: str, now: float) -> Announced | None:
    """Raises Unreadable for anything but TRUE and FALSE."""
    match text.strip().upper():
        case "TRUE":
            return Announced(now + _GCP_NOTICE_S, "preempted")
        case "FALSE":
            return None
    raise Unreadable(f"instance/preempted is {text[:80]!r}, neither TRUE nor FALSE")


def azure_events(text: str, now: float) -> Announced | None:
    """The first Preempt or Terminate in `{"Events": [{"EventType", "NotBefore": "Mon, 19 Sep 2016 18:29:47 GMT"}]}`.

    NotBefore is empty once the event has started. Raises Unreadable.
    """
    events = _object(text, "scheduledevents").get("Events")
    if not isinstance(events, list) or not all(isinstance(each, dict) for each in events):
        raise Unreadable(f"scheduledevents has no list of Events: {text[:200]!r}")
    ends = [
        Announced(_azure_time(event.get("NotBefore"), now), str(event["EventType"]).lower())
        for event in events
        if event.get("EventType") in ("Preempt", "Terminate")
    ]
    return min(ends, key=lambda each: each.at, default=None)


def _azure_time(text: object, now: float) -> float:
    if not text:
        return now
    try:
        return parsedate_to_datetime(str(text)).timestamp()
    except (ValueError, OverflowError) as error:
        raise Unreadable(f"scheduledevents: NotBefore {text!r} is not a date") from error


def _object(text: str, what: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise Unreadable(f"{what} is not JSON: {text[:200]!r}") from error
    if not isinstance(value, dict):
        raise Unreadable(f"{what} is no JSON object: {text[:200]!r}")
    return value


def _time(text: object, what: str) -> datetime:
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError as error:
        raise Unreadable(f"{what}: {text!r} is not a time") from error
    if moment.tzinfo is None:
        raise Unreadable(f"{what}: time {text!r} has no offset from UTC")
    return moment


async def _request(
    session: aiohttp.ClientSession, method: str, url: str, headers: Mapping[str, str]
) -> tuple[int, str]:
    try:
        async with session.request(method, url, headers=headers, timeout=_TIMEOUT, allow_redirects=False) as response:
            return response.status, await response.text()
    except (aiohttp.ClientError, TimeoutError, UnicodeDecodeError) as error:
        raise Unreadable(f"{method} {url}: {error!r}") from error
