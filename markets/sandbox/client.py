"""The sandbox as a Market: its HTTP answers mapped to our offers, rentals and typed errors."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any

import aiohttp
import stamina

from markets.errors import (
    Ambiguous,
    BadOffer,
    MarketsError,
    NoCapacity,
    NotAuthorized,
    PartialList,
    PriceMoved,
    QuotaExceeded,
    RateLimited,
    RentalNotFound,
    StillReleasing,
    Unavailable,
)
from markets.market import Charge, Intent, Released, Rental
from markets.offer import Accelerator, Evidence, Offer, OfferKey, price_problem, quarantine, raw_digest
from markets.sandbox.process import SandboxHandle

PAGE = 100
EVIDENCE_TTL = timedelta(days=1)
EVIDENCE_KIND = {
    "claimed": "provider_claim",
    "verified_host": "provider_verification",
    "named_datacenter": "datacenter_name",
    "hyperscaler_region": "region_table",
}
_REFUSALS: Mapping[str, type[MarketsError]] = {
    "sold_out": NoCapacity,
    "offer_not_found": NoCapacity,
    "price_moved": PriceMoved,
    "price_unknown": PriceMoved,
    "quota_exceeded": QuotaExceeded,
}

Find = Callable[[], Awaitable[SandboxHandle]]
Json = dict[str, Any]


class SandboxMarket:
    """The market `sandbox`. `find` says where the sandbox is: asked first, and again after it could not be reached.

    `owner` marks what we rent; nothing else is ever seen. Reads that fail are tried three times.
    """

    name = "sandbox"

    def __init__(self, find: Find, *, owner: str, timeout_s: float = 15, create_timeout_s: float = 30) -> None:
        self._find = find
        self._owner = owner
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._create_timeout = aiohttp.ClientTimeout(total=create_timeout_s)
        self._session: aiohttp.ClientSession | None = None
        self._handle: SandboxHandle | None = None
        self._keys: dict[str, OfferKey] = {}
        self._finding = asyncio.Lock()

    async def offers(self) -> list[Offer]:
        """All that it lists. BadOffer: it sent something that cannot be an offer."""
        answer = await self._read("/v1/offers")
        offers = [_offer(each, _time(answer["seen_at"]), self.name) for each in answer["offers"]]
        self._keys = {offer.key.sku: offer.key for offer in offers}
        return offers

    async def rent(self, offer: Offer, intent: Intent) -> Rental:
        """POST with our tag, which the sandbox creates at most once. Never retried here: see Ambiguous."""
        files = {name: base64.b64encode(content).decode() for name, content in intent.start.files.items()}
        body = {
            "tag": intent.tag,
            "owner": intent.owner,
            "offer": offer.key.sku,
            "max_price": f"{intent.max_price:f}",
            "user_data": {"argv": list(intent.start.argv), "env": dict(intent.start.env), "files": files},
        }
        await self._known_keys(offer.key.sku)
        try:
            answer = await self._ask("POST", "/v1/instances", body=body, timeout=self._create_timeout)
        except _Broken as error:
            raise Ambiguous(f"sandbox: renting {intent.tag} ended without an answer ({error})") from error
        except _ServerError as error:
            raise Ambiguous(f"sandbox: renting {intent.tag}: {error}") from error
        return self._rental(answer["instance"], answer["seen_at"])

    async def rental(self, tag: str) -> Rental:
        """By tag, however long ago it ended."""
        answer = await self._tagged(tag)
        return self._rental(answer["instances"][0], answer["seen_at"])

    async def rentals(self) -> list[Rental]:
        """All pages. PartialList: a page failed, or the pages do not add up to the total that they state."""
        found: list[Rental] = []
        cursor: str | None = ""
        total = 0
        while cursor is not None:
            parameters = {"owner": self._owner, "limit": str(PAGE), "cursor": cursor}
            try:
                answer = await self._read("/v1/instances", parameters)
            except Unavailable as error:
                message = f"sandbox: the list broke off after {len(found)} instances ({error})"
                raise PartialList(message, found=found) from error
            await self._known_keys(*(each["offer"] for each in answer["instances"]))
            found += [self._rental(each, answer["seen_at"]) for each in answer["instances"]]
            cursor, total = answer["next"], answer["total"]
        if len(found) != total:
            raise PartialList(f"sandbox: listed {len(found)} of {total} instances", found=found)
        return found

    async def release(self, tag: str) -> Released:
        """DELETE, until the sandbox says that it has ended."""
        instance = (await self._tagged(tag))["instances"][0]
        answer = await self._retried("DELETE", f"/v1/instances/{instance['id']}")
        ended = answer["instance"]["ended_at"]
        if ended is None:
            raise StillReleasing(f"sandbox: {tag} ({instance['id']}) is {answer['instance']['state']}")
        return Released(tag=tag, at=_time(ended))

    async def charges(self, from_at: datetime, to_at: datetime) -> list[Charge]:
        """The lines of its invoice for the period. Unavailable also when they do not sum to the invoice's total."""
        answer = await self._read("/v1/invoices", {"from": from_at.isoformat(), "to": to_at.isoformat()})
        await self._known_keys(*(line["offer"] for line in answer["lines"]))
        charges = [self._charge(line) for line in answer["lines"]]
        if sum((each.amount for each in charges), Decimal(0)) != Decimal(answer["total"]):
            raise Unavailable(f"sandbox: the invoice's lines do not sum to its total {answer['total']}")
        return charges

    async def close(self) -> None:
        """Close the connections. Instances go on."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _tagged(self, tag: str) -> Json:
        answer = await self._read("/v1/instances", {"tag": tag, "owner": self._owner})
        if not answer["instances"]:
            if answer["total"]:
                raise Unavailable(f"sandbox: it counts an instance with tag {tag!r} and does not show it")
            raise RentalNotFound(f"sandbox: no instance of {self._owner} carries the tag {tag!r}")
        await self._known_keys(answer["instances"][0]["offer"])
        return answer

    async def _known_keys(self, *offers: str) -> None:
        """An instance names its offer by id; our key has more in it, so the price list must have been read once."""
        if any(offer not in self._keys for offer in offers):
            await self.offers()

    def _rental(self, instance: Json, seen_at: str) -> Rental:
        facts = {"id": instance["id"], "owner": instance["owner"], "folder": instance["folder"]}
        facts |= {"pid": str(instance["pid"])} if instance["pid"] else {}
        facts |= {"preemption_at": instance["preemption_at"]} if instance["preemption_at"] else {}
        return Rental(
            tag=instance["tag"],
            offer_key=self._key(instance["offer"]),
            state=instance["state"],
            price=Decimal(instance["price"]),
            currency=instance["currency"],
            started_at=_maybe_time(instance["started_at"]),
            ended_at=_maybe_time(instance["ended_at"]),
            seen_at=_time(seen_at),
            end_reason=instance["end_reason"],
            exit_status=instance["exit_status"],
            facts=facts,
        )

    def _charge(self, line: Json) -> Charge:
        return Charge(
            tag=line["tag"],
            offer_key=self._key(line["offer"]),
            from_at=_time(line["from"]),
            to_at=_time(line["to"]),
            seconds=line["seconds"],
            amount=Decimal(line["amount"]),
            currency=line["currency"],
            final=line["final"],
        )

    def _key(self, offer: str) -> OfferKey:
        # An offer can leave the catalogue while its machine still runs; the machine must be seen all the same.
        return self._keys.get(offer, OfferKey(self.name, None, None, offer, "cpu", 0, "on_demand"))

    async def _read(self, path: str, parameters: Mapping[str, str] | None = None) -> Json:
        return await self._retried("GET", path, parameters)

    async def _retried(self, method: str, path: str, parameters: Mapping[str, str] | None = None) -> Json:
        """For what can be asked twice. Raises Unavailable after the third failure."""
        attempts = stamina.retry_context(on=Unavailable, attempts=3, timeout=None, wait_initial=0.05, wait_max=0.5)
        async for attempt in attempts:
            with attempt:
                try:
                    return await self._ask(method, path, parameters=parameters, timeout=self._timeout)
                except (_Broken, _ServerError) as error:
                    raise Unavailable(f"sandbox: {method} {path}: {error}") from error
        raise AssertionError("stamina ends with an answer or an error")

    async def _ask(
        self,
        method: str,
        path: str,
        *,
        timeout: aiohttp.ClientTimeout,
        body: Json | None = None,
        parameters: Mapping[str, str] | None = None,
    ) -> Json:
        """One request. Unavailable: it never left us. _Broken, _ServerError: who knows what it did."""
        handle = await self._where()
        if self._session is None:
            self._session = aiohttp.ClientSession()
        key = {"Authorization": f"Bearer {handle.token}"}
        try:
            async with self._session.request(
                method, handle.url + path, params=parameters, json=body, headers=key, timeout=timeout
            ) as response:
                text = await response.text()
        except aiohttp.ClientConnectorError as error:
            self._handle = None  # it may be somewhere else by now
            raise Unavailable(f"sandbox at {handle.url} cannot be reached: {error}") from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _Broken(repr(error)) from error
        return _content(response.status, response.headers.get("Retry-After"), text)

    async def _where(self) -> SandboxHandle:
        async with self._finding:
            if self._handle is None:
                self._handle = await self._find()
            return self._handle


class _Broken(Exception):
    """The connection broke or timed out after the request may have been sent."""


class _ServerError(Exception):
    """A 5xx, or something that is not the API's JSON."""


def _content(status: int, retry_after: str | None, text: str) -> Json:
    """The answer's JSON, or the error that it stands for."""
    try:
        content: Json = json.loads(text)
    except ValueError as error:
        raise _ServerError(f"status {status} with a body that is not JSON: {text[:200]!r}") from error
    if status < 300:
        return content
    refusal = content.get("error", {})
    code, message = refusal.get("code", "unknown"), f"sandbox: {refusal.get('message', text[:200])}"
    if status >= 500:
        raise _ServerError(f"status {status}: {message}")
    if status in (401, 403) and code not in _REFUSALS:
        raise NotAuthorized(message)
    if status == 429:
        raise RateLimited(message, retry_after_s=float(retry_after) if retry_after else None)
    raise _REFUSALS.get(code, MarketsError)(message)


def _offer(raw: Json, seen_at: datetime, market: str) -> Offer:
    try:
        offer = _mapped(raw, seen_at, market)
    except (KeyError, TypeError, InvalidOperation) as error:
        raise BadOffer(f"sandbox offer {raw.get('id')!r}: {error!r}; it is not as /openapi.json says") from error
    problem = price_problem(offer)
    return quarantine(offer, problem) if problem else offer


def _mapped(raw: Json, seen_at: datetime, market: str) -> Offer:
    chip = raw["accelerator"]
    kind = EVIDENCE_KIND.get(raw["tier"])
    evidence = (Evidence(kind, "sandbox /v1/offers", seen_at, EVIDENCE_TTL),) if kind and raw["country"] else ()
    hazard = raw["interruptions_per_hour"]
    return Offer(
        key=OfferKey(market, raw["region"], raw["zone"], raw["id"], chip["name"], chip["count"], raw["pricing"]),
        launch="process",
        accelerator=Accelerator(
            kind=chip["kind"],
            name=chip["name"],
            form=chip["form"],
            memory_mib=chip["memory_mib"],
            count=chip["count"],
        ),
        currency=raw["currency"],
        price=Decimal(raw["price"]),
        observed_at=seen_at,
        source="sandbox /v1/offers",
        raw_sha256=raw_digest(raw),
        raw={"price": f"{raw['price']} {raw['currency']} per hour and instance"},
        capacity=raw["available"],
        granularity_s=raw["granularity_s"],
        minimum_s=raw["minimum_s"],
        interruption_per_hour=None if hazard is None else Decimal(hazard),
        notice_s=raw["notice_s"],
        boot_s=raw["boot_s"],
        country=raw["country"],
        subdivision=raw["subdivision"],
        evidence=evidence,
        location_tier=raw["tier"],
        confidentiality=raw["confidentiality"],
        operator=raw["operator"],
        jurisdictions=None if raw["jurisdictions"] is None else tuple(raw["jurisdictions"]),
    )


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _maybe_time(text: str | None) -> datetime | None:
    return None if text is None else _time(text)
