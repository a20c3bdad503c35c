"""What solver tests are built from: small snapshots in the words of the domain, and random queues of any size."""

from __future__ import annotations

from random import Random
from typing import Any

import msgspec
import pytest

from solver.residency import INTERNAL, FactEvidence, Facts, Policy, compile_countries, digest
from solver.types import (
    HOUR_US,
    Budget,
    OfferView,
    Progress,
    Quota,
    Running,
    Snapshot,
    Throughput,
    Timings,
    Variant,
    Work,
)

NOW = 1_795_000_000_000_000
USD = 1_000_000_000


class Town:
    """Builds snapshots. Times are hours and prices whole dollars an hour; the model runs 1,000 tokens/s on `gpu`."""

    NOW = NOW
    USD = USD

    def __init__(self) -> None:
        self.policies: dict[str, Policy] = {}
        self.facts: dict[str, Facts] = {}

    def policy(self, policy: Policy) -> str:
        self.policies[digest(policy)] = policy
        return digest(policy)

    def place(self, country: str | None, tier: str = "named_datacenter", valid: bool = True) -> str:
        facts = Facts(
            country=country,
            subdivision=None,
            location_tier=tier,
            confidentiality="none",
            launch="process",
            market="sandbox",
            evidence=(FactEvidence(kind="region", source="test", valid_until_us=NOW + (HOUR_US if valid else -1)),),
        )
        self.facts[digest(facts)] = facts
        return digest(facts)

    def offer(
        self, key: str, price: float | None = 1.0, *, start_s: int = 0, country: str = "DE", **more: Any
    ) -> OfferView:
        fields: dict[str, Any] = {
            "key": key,
            "market": key.partition("/")[0],
            "accelerator": "gpu",
            "pricing": "on_demand",
            "price_nano_hour": None if price is None else round(price * USD),
            "capacity": 1,
            "facts_hash": self.place(country),
            "timings": Timings(boot_s=start_s // 2, load_s=start_s - start_s // 2),
        }
        return OfferView(**fields | more)

    def work(
        self, work_id: str, hours: float = 1.0, *, within_h: float = 10.0, max_usd: float | None = None, **more: Any
    ) -> Work:
        """A work that keeps one `gpu` busy for `hours`."""
        fields: dict[str, Any] = {
            "id": work_id,
            "project": "p",
            "model": "m",
            "precision": "bf16",
            "endpoint": "/v1/chat/completions",
            "lines": 10_000,
            "input_tokens": 0,
            "output_tokens_p50": round(hours * 3_600_000),
            "output_tokens_p90": round(hours * 3_600_000),
            "deadline_us": NOW + round(within_h * HOUR_US),
            "max_nano": None if max_usd is None else round(max_usd * USD),
            "priority": 0,
            "policy_hash": self.policy(more.pop("policy", INTERNAL)),
        }
        return Work(**fields | more)

    def rental(self, rental_id: str, offer: OfferView, *, ready_in_s: int = 0, **more: Any) -> Running:
        fields: dict[str, Any] = {
            "rental_id": rental_id,
            "offer_key": offer.key,
            "project": "p",
            "model": "m",
            "precision": "bf16",
            "ready_in_s": ready_in_s,
            "price_nano_hour": offer.price_nano_hour or USD,
        }
        return Running(**fields | more)

    def snapshot(self, works: list[Work], offers: list[OfferView], **more: Any) -> Snapshot:
        speeds, cautious = more.pop("speeds", {("m", "gpu"): 1000.0}), more.pop("cautious", 1.0)
        throughput = tuple(
            Throughput(
                model=model,
                precision="bf16",
                accelerator=name,
                input_per_s=10 * rate,
                output_per_s=rate,
                source="test",
                cautious=cautious,
            )
            for (model, name), rate in speeds.items()
        )
        return Snapshot(
            now_us=NOW,
            works=tuple(sorted(works, key=lambda work: work.id)),
            offers=tuple(sorted(offers, key=lambda offer: offer.key)),
            policies=self.policies,
            facts=self.facts,
            throughput=throughput,
            **{key: tuple(value) for key, value in more.items()},
        )

    def random(self, seed: int, works: int | None = None, offers: int | None = None) -> Snapshot:
        """A random queue: several projects, models, countries, spot hazards, minimum billing, running rentals, scarce money."""
        random = Random(seed)
        scale = random.choice([1e-6, 1e-3, 1.0, 1.0, 30.0])
        listed = [
            self._random_offer(random, number)
            for number in range(offers if offers is not None else random.randint(0, 7))
        ]
        queue = [
            self._random_work(random, number, scale)
            for number in range(works if works is not None else random.randint(0, 7))
        ]
        running = []
        for number in range(random.randint(0, 3) if listed else 0):
            fields = {"project": random.choice("pq"), "model": random.choice(["m", "n"])}
            ready = random.choice([0, 0, 40, 5000])
            running.append(self.rental(f"rental_{number}", random.choice(listed), ready_in_s=ready, **fields))
        quotas = [Quota(market=market, remaining=random.randint(0, 4)) for market in "ab" if random.random() < 0.3]
        budgets = [
            Budget(project=project, remaining_nano=round(USD * scale * random.choice([0.1, 3, 50])))
            for project in "pq"
            if random.random() < 0.3
        ]
        speeds = {
            (model, name): random.uniform(20, 4000)
            for model in "mn"
            for name in ("gpu", "tpu")
            if random.random() < 0.95
        }
        cautious = random.choice([1.0, 1.0, 0.6])  # drawn last: the worlds of before stay what they were
        snapshot = self.snapshot(
            queue, listed, running=running, quotas=quotas, budgets=budgets, speeds=speeds, cautious=cautious
        )
        return self._with_p95(seed, self._with_distances(seed, self._with_more_costs(seed, snapshot)))

    def with_variants(self, seed: int, snapshot: Snapshot) -> Snapshot:
        """Half of the works that have not begun may be served in fp8 or by the other model too, of which the speeds, the fit, the
        start-ups and what policies may ask differ."""
        random = Random(f"variants {seed}")
        others = [(model, precision) for model in "mn" for precision in ("bf16", "fp8")]
        works = []
        for work in snapshot.works:
            named = [each for each in others if each != (work.model, work.precision)]
            some = random.sample(named, random.randint(1, 3)) if random.random() < 0.5 else []
            some = [] if work.progress.lines_done else some
            alternatives = tuple(Variant(model=model, precision=precision) for model, precision in some)
            works.append(msgspec.structs.replace(work, alternatives=alternatives))
        faster = tuple(
            msgspec.structs.replace(
                each,
                precision="fp8",
                input_per_s=each.input_per_s * random.uniform(0.7, 2),
                output_per_s=each.output_per_s * random.uniform(0.7, 2),
            )
            for each in snapshot.throughput
            if random.random() < 0.8
        )
        offers = tuple(
            msgspec.structs.replace(
                each,
                unfit={"n": "too large"} if random.random() < 0.2 else {},
                start_up={"n": Timings(boot_s=60, load_s=900)} if random.random() < 0.3 else {},
            )
            for each in snapshot.offers
        )
        running = tuple(
            msgspec.structs.replace(each, precision=random.choice(["bf16", "fp8"])) for each in snapshot.running
        )
        return msgspec.structs.replace(
            snapshot, works=tuple(works), throughput=snapshot.throughput + faster, offers=offers, running=running
        )

    @staticmethod
    def _with_distances(seed: int, snapshot: Snapshot) -> Snapshot:
        """In a fifth of the worlds some works must be near their data; drawn apart, too."""
        random = Random(f"distances {seed}")
        if random.random() > 0.2:
            return snapshot
        offers = tuple(
            msgspec.structs.replace(each, rtt_ms=random.choice([None, 0, 9, 10, 80])) for each in snapshot.offers
        )
        works = tuple(
            msgspec.structs.replace(each, max_rtt_ms=random.choice([None, None, 0, 10, 80])) for each in snapshot.works
        )
        return msgspec.structs.replace(snapshot, offers=offers, works=works)

    @staticmethod
    def _with_p95(seed: int, snapshot: Snapshot) -> Snapshot:
        """In a fifth of the worlds the requests of some works must be answered soon, and not of all speeds it is known how
        soon they are; drawn apart, too."""
        random = Random(f"p95 {seed}")
        if random.random() > 0.2:
            return snapshot
        throughput = tuple(
            msgspec.structs.replace(
                each,
                sequences=random.choice([0.0, 1.0, 8.0, 37.5, 256.0]),
                fixed=random.choice([0.0, 0.1, 0.5, 1.0]),
                slower=random.choice([1.0, 1.0, 0.7, 2.0]),
            )
            for each in snapshot.throughput
        )
        works = tuple(
            msgspec.structs.replace(each, max_p95_ms=random.choice([None, None, 1, 300, 3000, 60_000]))
            for each in snapshot.works
        )
        return msgspec.structs.replace(snapshot, throughput=throughput, works=works)

    @staticmethod
    def _with_more_costs(seed: int, snapshot: Snapshot) -> Snapshot:
        """In a third of the worlds costs besides time, and what is paid for anyway; drawn apart, so that the rest stays."""
        random = Random(f"more costs {seed}")
        if random.random() > 0.34:
            return snapshot
        offers = tuple(
            msgspec.structs.replace(
                each,
                sunk=(is_sunk := random.random() < 0.2),
                price_nano_hour=0 if is_sunk and random.random() < 0.7 else each.price_nano_hour,
                lost_nano=random.choice([0, 0, 10**7, 3 * USD]),
                ingress_nano_gb=random.choice([0, 0, 2 * 10**7]),
                egress_nano_gb=random.choice([0, 9 * 10**7, USD]),
            )
            for each in snapshot.offers
        )
        works = tuple(
            msgspec.structs.replace(
                each, input_bytes=4 * each.input_tokens, output_bytes=random.choice([4, 4000]) * each.output_tokens_p50
            )
            for each in snapshot.works
        )
        return msgspec.structs.replace(snapshot, offers=offers, works=works, fetched_bytes={"m": 16 * 10**9})

    def alike(self, seed: int) -> Snapshot:
        """300 alike batches of one class on offers of capacity 1 to 4, which have at least twice the instances that they need."""
        random = Random(seed)
        within_h = random.choice([0.5, 3, 10, 50])
        hours = within_h * random.uniform(0.2, 0.9)
        start_s = random.choice([0, 60, 200])
        cautious = random.choice([1.0, 0.6])
        needed = 300 * hours / cautious / (within_h - start_s / 3600)
        listed: list[OfferView] = []
        while sum(each.capacity or 0 for each in listed) < 2 * needed:
            listed.append(
                self.offer(
                    f"x/{len(listed):04}", random.uniform(1, 3), start_s=start_s, capacity=random.choice([1, 1, 2, 4])
                )
            )
        works = [self.work(f"work_{number:03}", hours, within_h=within_h) for number in range(300)]
        return self.snapshot(works, listed, cautious=cautious)

    def _random_offer(self, random: Random, number: int) -> OfferView:
        return self.offer(
            f"{random.choice('ab')}/{number:03}",
            random.choice([None, 0.0, *(random.uniform(0.02, 20) for _ in range(8))]),
            start_s=random.choice([0, 3, 120, 1500]),
            accelerator=random.choice(["gpu", "gpu", "tpu"]),
            pricing=random.choice(["on_demand", "spot", "token"] if random.random() < 0.3 else ["on_demand", "spot"]),
            capacity=random.choice([None, 0, 1, 2, 10, 10, 40]),
            hazard=random.choice([None, 0.0, 0.05, 0.4, 3.0]),
            minimum_s=random.choice([0, 0, 0, 0, 60, 3600]),
            granularity_s=random.choice([1, 1, 1, 1, 1, 60, 3600]),
            excluded=random.choice([None] * 9 + ["quarantined: implausible price"]),
            start_up=random.choice(
                [{}, {}, {"m": Timings(boot_s=700, load_s=5)}, {"n": Timings(boot_s=0, load_s=2500)}]
            ),
            unfit=random.choice([*[{}] * 8, {"m": "m: needs 8 accelerators"}]),
            facts_hash=self.place(
                random.choice(["DE", "FR", "US", None]),
                random.choice(["named_datacenter", "hyperscaler_region", "verified_host", "claimed"]),
                random.random() < 0.95,
            ),
        )

    def _random_work(self, random: Random, number: int, scale: float) -> Work:
        hours = random.lognormvariate(0, 1.5) * scale
        return self.work(
            f"work_{number:03}",
            hours,
            within_h=random.choice([-0.1, 0.02, 0.5, 2, 6, 24, 24, 24]),
            max_usd=random.choice([*[None] * 8, scale * 0.2, scale * 5, scale * 100]),
            project=random.choice("pq"),
            model=random.choice(["m", "m", "n"]),
            lines=random.choice([1, 60, 10_000]),
            input_tokens=round(hours * 1e6 * random.random()),
            output_tokens_p90=round(hours * 3_600_000 * random.uniform(1, 2)),
            priority=random.choice([0, 0, 1, 5]),
            policy=random.choice([INTERNAL, INTERNAL, compile_countries(["eu"]), compile_countries(["US"])]),
            progress=random.choice([Progress(), Progress(lines_done=5, spent_nano=round(USD * scale * 0.1))]),
        )


@pytest.fixture
def town() -> Town:
    """A fresh builder: `town.snapshot([town.work("a")], [town.offer("x/1")])`."""
    return Town()


@pytest.fixture(scope="session")
def towns() -> type[Town]:
    """The builder itself, for properties that need a fresh one each time."""
    return Town
