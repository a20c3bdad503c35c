"""A random world for residency: policies, classes, offers, machines that move, a market that lies about its countries, and a
clock that jumps, around a real broker whose loops are stepped by hand. An oracle of its own says what each machine may be given
by what is known at that moment; it shares no code with the broker."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from broker.control.place import Placer
from broker.control.plan import Planner
from broker.control.reconcile import Reconciler
from broker.control.validate import Validator
from jobs.clock import db_now
from markets import price_book
from markets.errors import NoCapacity, RentalNotFound
from markets.market import Intent, Released, Rental
from markets.offer import Accelerator, Evidence, Offer, OfferKey
from tests.support.wire_agent import Agent

SECOND_US = 1_000_000
COUNTRIES = ("DE", "FR", "US", "RU")
OPERATORS = ("Good Compute", "Shady Compute")
CLASSES = ("internal", "personal", "health")
TIERS = ("claimed", "verified_host", "named_datacenter")
TTL = timedelta(hours=2)


@dataclass(frozen=True)
class Told:
    """What a market says of an offer, since when its evidence counts, and where its machines really call from."""

    sku: str
    country: str
    operator: str
    tier: str
    price: Decimal
    address: str
    evidence_until_us: int = 0

    @property
    def place(self) -> tuple[str, str, str]:
        return self.country, self.operator, self.tier


@dataclass
class LyingMarket:
    """Answers the market contract from a script. `heard` is what it was last asked and told, by sku."""

    world: Any
    script: dict[str, Told] = field(default_factory=dict)
    heard: dict[str, Told] = field(default_factory=dict)
    machines: dict[str, Rental] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)
    rented: dict[str, Told] = field(default_factory=dict)

    async def offers(self) -> list[Offer]:
        until_us = self.world.now_us() + TTL // timedelta(microseconds=1)
        self.heard = {sku: replace(each, evidence_until_us=until_us) for sku, each in self.script.items()}
        return [self._offer(each) for each in self.heard.values()]

    async def close(self) -> None:
        return None

    async def rent(self, offer: Offer, intent: Intent) -> Rental:
        if self.world.random.random() < 0.1:
            raise NoCapacity
        token = re.search(rb'"bootstrap_token": ?"([0-9a-f]{64})"', b"".join(intent.start.files.values()))
        assert token is not None
        now = self.world.now()
        rental = Rental(
            tag=intent.tag,
            offer_key=offer.key,
            state="running",
            price=offer.price or Decimal(0),
            currency="USD",
            started_at=now,
            ended_at=None,
            seen_at=now,
        )
        self.machines[intent.tag], self.tokens[intent.tag] = rental, token[1].decode()
        self.rented[intent.tag] = Told(
            offer.key.sku,
            str(offer.country),
            str(offer.operator),
            offer.location_tier,
            offer.price or Decimal(0),
            "",
            max(round((each.observed_at + each.ttl).timestamp() * SECOND_US) for each in offer.evidence),
        )
        return rental

    async def rental(self, tag: str) -> Rental:
        if tag not in self.machines:
            raise RentalNotFound
        return self.machines[tag]

    async def rentals(self) -> list[Rental]:
        return [each for each in self.machines.values() if each.state == "running"]

    async def release(self, tag: str) -> Released:
        self.end(tag, "released")
        return Released(tag=tag, at=self.world.now())

    async def charges(self, from_at: datetime, to_at: datetime) -> list[Any]:
        return []

    def end(self, tag: str, reason: Any) -> None:
        if tag in self.machines and self.machines[tag].state == "running":
            ended = replace(self.machines[tag], state="ended", ended_at=self.world.now(), end_reason=reason)
            self.machines[tag] = ended

    def _offer(self, of: Told) -> Offer:
        now = self.world.now()
        return Offer(
            key=OfferKey("sandbox", None, None, of.sku, "cpu", 0, "on_demand"),
            launch="process",
            accelerator=Accelerator(),
            currency="USD",
            price=of.price,
            observed_at=now,
            source="test",
            raw_sha256="0" * 64,
            country=of.country,
            operator=of.operator,
            jurisdictions=(of.country,),
            capacity=4,
            boot_s=1,
            evidence=(Evidence("provider_api", "test", now, TTL),),
            location_tier=of.tier,  # type: ignore[arg-type]
        )


@dataclass(frozen=True)
class Rules:
    """A version of the policy, as the oracle understands it."""

    version: int
    countries: frozenset[str]
    least: str
    shady_from: str
    from_us: int

    def text(self) -> str:
        countries, least = ", ".join(sorted(self.countries)), self.least
        return (
            f"language: 1\npolicy: p\nversion: {self.version}\nrules:\n"
            f"  - {{id: where, effect: allow, on: [machine], when: {{country: [{countries}],"
            f" location_tier: {{at_least: {least}}}}}}}\n"
            f"  - {{id: shady, effect: deny, on: [machine], classes: {{at_least: {self.shady_from}}},"
            f" when: {{operator: ['Shady *']}}}}\n"
        )


@dataclass(frozen=True)
class Held:
    """A lease that an agent was given: of which batch, with what it reads its input by."""

    rental: str
    batch: str
    url: str
    named: dict[str, Any]


@dataclass
class World:
    """`forbidden` is what was readable where the oracle refuses; `given` counts what was readable at all."""

    server: Any
    random: random.Random
    classes: dict[str, str] = field(default_factory=dict)
    versions: list[Rules] = field(default_factory=list)
    waived: list[tuple[str, int, int]] = field(default_factory=list)
    agents: dict[str, Agent] = field(default_factory=dict)
    leases: list[Held] = field(default_factory=list)
    addresses: dict[str, str] = field(default_factory=dict)
    forbidden: list[str] = field(default_factory=list)
    given: int = 0
    read: int = 0
    keys: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, server: Any, seed: int) -> World:
        return cls(server, random.Random(seed))

    def __post_init__(self) -> None:
        self.market = LyingMarket(self)
        services = self.server.services
        services.markets["sandbox"] = self.market
        self.loops = {
            "validate": Validator(services),
            "plan": Planner(services),
            "place": Placer(services, None),
            "reconcile": Reconciler(services),
        }
        for sku in ("a", "b", "c", "d"):
            self.market.script[sku] = self._told(sku)
        self.calling = ""

    def now_us(self) -> int:
        return int(self.server.services.database.process_now_us())

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.now_us() / SECOND_US, UTC)

    def _told(self, sku: str) -> Told:
        pick = self.random.choice
        country = pick(COUNTRIES)
        # a lie about its country shows in where it calls from; most are seen through only later, by what the market tells
        address = country if self.random.random() < 0.85 else pick(COUNTRIES)
        return Told(sku, country, pick(OPERATORS), pick(TIERS), Decimal(pick(("1.0", "1.1", "1.2"))), address)

    async def observed(self, *_: Any) -> str | None:
        return self.addresses.get(self.calling)

    # -- what may happen

    async def act(self) -> None:
        self.server.services.database.clock_offset_us += self.random.choice((1, 2, 5, 20)) * SECOND_US
        what = self.random.choices(
            (self.submit, self.tick, self.work, self.market_moves, self.policy_moves, self.address_moves, self.preempt,
             self.clock_jumps, self.waive),
            (3, 8, 8, 3, 2, 1, 1, 1, 1),
        )[0]  # fmt: skip
        await what()

    async def submit(self) -> None:
        data_class = self.random.choice(CLASSES)
        made = await self.server.new_batch(lines=3, x_broker={"on_infeasible": "queue", "data_class": data_class})
        self.classes[made["id"]] = data_class

    async def tick(self) -> None:
        """The loops, as they come; one that is late changes nothing of what may be given out."""
        await self.hear()
        for name in ("validate", "plan", "place", "reconcile"):
            if self.random.random() < 0.9:
                await self.loops[name].step()  # type: ignore[attr-defined]
            if self.random.random() < 0.3:  # between one loop and the next
                await self.turn()
        for tag, token in self.market.tokens.items():
            if tag not in self.agents:
                self.agents[tag] = Agent(self.server, tag, token)
                sku = self.market.machines[tag].offer_key.sku
                self.addresses[tag] = self.market.script[sku].address

    async def turn(self) -> None:
        """What was right a moment ago is wrong: another policy, or the market tells something else of what it rents out."""
        if self.random.random() < 0.25:
            await self.policy_moves()
            return
        for _ in range(3):
            await self.market_moves()
        await self.hear()

    async def hear(self) -> None:
        """What a poll does: ask, and write down what was told."""
        offers = await self.market.offers()
        async with self.server.services.database.transaction() as session:
            await price_book.store_offers(session, "sandbox", offers, now_us=await db_now(session))

    async def work(self) -> None:
        """Machines do what machines do: say hello, that they live, ask for work, read what they were given."""
        for tag in [each for each in self.agents if self.market.machines[each].state == "running"][-4:]:
            if self.random.random() < 0.7:
                await self._work(tag)

    async def _work(self, tag: str) -> None:
        self.calling, agent = tag, self.agents[tag]
        if not agent.token:
            if self.random.random() < 0.3:
                await self.turn()
            await agent.hello()
        if self.random.random() < 0.2:
            await self.turn()
        held = [each for each in self.leases if each.rental == tag]
        if self.random.random() < 0.5:
            await agent.heartbeat(leases=[each.named for each in held])
        if self.random.random() < 0.7 and agent.token:
            await self._ask(agent, tag)
        for each in [one for one in self.leases if one.rental == tag]:
            if self.random.random() < 0.5:
                await self._read(agent, each)

    async def _ask(self, agent: Agent, tag: str) -> None:
        answer = await agent.lease()
        lease = answer.get("lease")
        if lease is None:
            return
        named = {name: lease[name] for name in ("shard_id", "epoch", "nonce")} | {"in_flight": [], "suspects": {}}
        held = Held(tag, lease["batch_id"], lease["input_get"], named)
        self.leases.append(held)
        self.given += 1
        self._judge(held, "lease")

    async def _read(self, agent: Agent, held: Held) -> None:
        answer = await self.server.call("GET", held.url, key=None)
        if answer.status == 200:
            self.read += 1
            self._judge(held, "read")

    async def market_moves(self) -> None:
        """It tells something else of one offer from its next answer on, of one that is rented mostly: the truth, another lie,
        or another price."""
        rented = [each.sku for each in self.market.rented.values()][-4:]
        sku = self.random.choice(rented if rented and self.random.random() < 0.7 else list(self.market.script))
        self.market.script[sku] = self._told(sku)

    async def address_moves(self) -> None:
        if self.addresses:
            self.addresses[self.random.choice(list(self.addresses))] = self.random.choice(COUNTRIES)

    async def preempt(self) -> None:
        if self.market.machines:
            self.market.end(self.random.choice(list(self.market.machines)), "preempted")

    async def clock_jumps(self) -> None:
        """Past what sessions, prices or evidence last."""
        hours = self.random.choice((0.1, 0.3, 1, 2.1))
        self.server.services.database.clock_offset_us += round(hours * 3600 * SECOND_US)

    async def policy_moves(self, countries: frozenset[str] = frozenset()) -> None:
        countries = countries or frozenset(self.random.sample(COUNTRIES, self.random.randint(2, 3)))
        later = self.random.random() < 0.3
        from_s = self.now_us() // SECOND_US + (120 if later else 0)
        rules = Rules(
            version=len(self.versions) + 1,
            countries=countries,
            least=self.random.choice(("verified_host", "named_datacenter", "claimed")),
            shady_from=self.random.choice(CLASSES),
            from_us=from_s * SECOND_US if later else 0,
        )
        body = {"text": rules.text(), "nodes": ["*"]} | ({"from_time": from_s} if later else {})
        if await self._by_two("policies", body, approvers=1):
            self.versions.append(rules)

    async def waive(self) -> None:
        """A waiver of the deny, or a broken glass: of everything."""
        if self._rules(self.now_us()) is None:
            return
        until_s = self.now_us() // SECOND_US + 1800
        if self.random.random() < 0.5:
            body = {"policy": "p", "rule": "shady", "projects": "default", "until": until_s, "reason": "a move"}
            if await self._by_two("waivers", body, approvers=1):
                self.waived.append(("shady", self.now_us(), until_s * SECOND_US))
            return
        body = {"policy": "p", "projects": "default", "hours": 1, "reason": "it burns"}
        before_us = self.now_us()
        if await self._by_two("break-glass", body, approvers=2):
            self.waived.append(("*", before_us, self.now_us() + 3600 * SECOND_US))

    async def _by_two(self, path: str, body: dict[str, Any], *, approvers: int) -> bool:
        for name in ("ann", "bob", "cid"):
            if name not in self.keys:
                self.keys[name] = await self.server.key("compliance", project=None, principal=name)
        made = await self.server.call("POST", f"/v1/compliance/{path}", key=self.keys["ann"], json=body)
        if made.status != 200:
            return False
        for name in ("bob", "cid")[:approvers]:
            on = f"/v1/compliance/proposals/{made.json['id']}/approve"
            done = await self.server.call("POST", on, key=self.keys[name], json={})
            assert done.status == 200, done.raw
        return True

    # -- what may be

    def _rules(self, at_us: int) -> Rules | None:
        return max(
            (each for each in self.versions if each.from_us <= at_us), key=lambda each: each.version, default=None
        )

    def _judge(self, held: Held, how: str) -> None:
        if why := self.refuses(held.rental, held.batch):
            self.forbidden.append(f"{how} of {held.batch} ({self.classes[held.batch]}) at {held.rental}: {why}")

    def refuses(self, rental: str, batch: str) -> str | None:
        """Why the machine may have nothing of the batch now, by what the broker was told so far; None when it may."""
        now_us, rented = self.now_us(), self.market.rented[rental]
        listed = self.market.heard.get(rented.sku)
        if listed is not None and listed.country == rented.country:
            rented = replace(rented, evidence_until_us=max(rented.evidence_until_us, listed.evidence_until_us))
        if self.addresses[rental] != rented.country:
            return f"it calls from {self.addresses[rental]}, rented in {rented.country}"
        for each in (rented, listed or rented):
            if why := self._refuses_place(self.classes[batch], each, now_us):
                return why
        return None

    def _refuses_place(self, data_class: str, told: Told, now_us: int) -> str | None:
        rules = self._rules(now_us)
        if rules is None:  # only known places, and only of data that no policy need speak of
            return None if data_class == "internal" and told.tier != "claimed" else "no policy is in force"
        waived = {rule for rule, since_us, until_us in self.waived if since_us <= now_us < until_us}
        is_shady = told.operator.startswith("Shady") and CLASSES.index(data_class) >= CLASSES.index(rules.shady_from)
        against = {
            "its evidence has expired": now_us >= told.evidence_until_us,
            f"{told.country} is not in {sorted(rules.countries)}": told.country not in rules.countries,
            f"{told.tier} is less than {rules.least}": TIERS.index(told.tier) < TIERS.index(rules.least),
            "its operator is shady": is_shady and "shady" not in waived,
        }
        return None if "*" in waived else next((why for why, is_so in against.items() if is_so), None)


async def lived(world: World, actions: int) -> World:
    """The world after so many random acts. Offers are polled and a wide policy is in force before the first."""
    await world.hear()
    await world.policy_moves(frozenset(COUNTRIES))
    for _ in range(3):
        await world.submit()
    await world.tick()
    await world.tick()
    await world.work()
    for _ in range(actions):
        await world.act()
    return world
