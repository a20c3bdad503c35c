"""Synthetic queues and markets of any size, the same for the same seed: what the solver is measured on.

12 GPU types in 1, 2, 4 and 8; 30 models from 1 B to 1 T parameters, dense and mixtures, with a roofline for their speed;
60 regions in 12 countries, 40 operators in 4 trust tiers; half spot, 42 % on demand, 8 % reserved; batches of 15 million tokens
in the median, deadlines from 1.5 to 96 hours, 72 policies. Cheap pools are deliberately scarce. Speeds are known exactly: plans
are compared, not estimates.
"""

from __future__ import annotations

import math
from random import Random

from solver.residency import FactEvidence, Facts, Policy, digest, evaluate
from solver.residency.types import PolicyRule
from solver.types import HOUR_US, OfferView, Snapshot, Throughput, Timings, Work

NOW_US = 1_795_000_000_000_000
USD = 1_000_000_000
COUNTRIES = ("DE", "FR", "NL", "IE", "SE", "GB", "CH", "US", "CA", "JP", "SG", "AU")
TIERS = ("claimed", "verified_host", "named_datacenter", "hyperscaler_region")
# name, TFLOP/s in half precision, TB/s, GB, USD an hour on demand: the order of what is rented today
GPUS = (
    ("T4", 65, 0.32, 16, 0.40),
    ("L4", 121, 0.30, 24, 0.70),
    ("A10", 125, 0.60, 24, 0.90),
    ("RTX4090", 165, 1.01, 24, 0.55),
    ("V100", 125, 0.90, 32, 1.10),
    ("L40S", 362, 0.86, 48, 1.40),
    ("A100-40", 312, 1.55, 40, 1.60),
    ("A100-80", 312, 2.04, 80, 2.00),
    ("H100", 989, 3.35, 80, 3.20),
    ("H200", 989, 4.80, 141, 3.90),
    ("MI300X", 1307, 5.30, 192, 3.60),
    ("B200", 2250, 8.00, 180, 5.80),
)


def world(jobs: int, offers: int, seed: int = 7) -> Snapshot:
    """A snapshot of `jobs` works and `offers` offers."""
    source = Random(f"{seed}/{jobs}/{offers}")
    models = _models(source)
    facts, listed = _offers(source, offers)
    policies = _policies(source)
    speeds = _speeds(models)
    power = _power(listed, facts, policies, speeds)
    works = [_work(source, number, models, sorted(policies), power) for number in range(jobs)]
    return Snapshot(
        now_us=NOW_US,
        works=tuple(sorted(works, key=lambda each: each.id)),
        offers=tuple(sorted(listed, key=lambda each: each.key)),
        policies=policies,
        facts=facts,
        throughput=tuple(speeds),
    )


def _models(source: Random) -> list[tuple[str, float, float]]:
    """(name, billions of parameters, billions active)."""
    sizes = [round(10 ** (3 * number / 29), 1) for number in range(30)]
    return [(f"model-{size:g}b", size, size * (0.08 if size > 40 and source.random() < 0.5 else 1.0)) for size in sizes]


def _speeds(models: list[tuple[str, float, float]]) -> list[Throughput]:
    """Roofline: tokens a second of one instance, None where weights do not fit in 80 % of the memory."""
    found = []
    for name, size, active in models:
        for gpu, tflops, tbs, gb, _ in GPUS:
            for count in (1, 2, 4, 8):
                free = 0.9 * gb * count - 1.2 * size
                if free < 0.1 * gb * count:
                    continue
                efficiency = 0.92 ** math.log2(count)
                batch = min(256.0, free / (0.0002 * size**0.5 * 1.5))
                by_memory = batch / ((2 * active + 0.02 * batch) / (1000 * tbs * count * 0.55))
                by_compute = 1000 * tflops * count * 0.45 / (2 * active)
                rate = 0.1 * efficiency * min(by_memory, by_compute)
                found.append(
                    Throughput(
                        model=name,
                        precision="bf16",
                        accelerator=f"{gpu}x{count}",
                        input_per_s=4 * rate,
                        output_per_s=rate,
                        source="roofline",
                    )
                )
    return found


def _offers(source: Random, many: int) -> tuple[dict[str, Facts], list[OfferView]]:
    regions = [(f"region-{number:02}", COUNTRIES[number % 12]) for number in range(60)]
    operators = [(f"operator-{number:02}", TIERS[min(3, int(source.triangular(0, 4, 2.2)))]) for number in range(40)]
    facts: dict[str, Facts] = {}
    listed = []
    for number in range(many):
        region, country = source.choice(regions)
        operator, tier = source.choice(operators)
        gpu = source.choice(GPUS)
        count = source.choice((1, 2, 4, 8))
        pricing = source.choices(("spot", "on_demand", "reserved"), (50, 42, 8))[0]
        fact = Facts(
            country=country,
            subdivision=None,
            location_tier=tier,
            confidentiality="none",
            launch="vm",
            market=operator,
            operator=operator,
            evidence=(FactEvidence(kind="region", source=region, valid_until_us=NOW_US + 1000 * HOUR_US),),
        )
        facts[digest(fact)] = fact
        factor = {"spot": 0.38, "on_demand": 1.0, "reserved": 0.6}[pricing] * math.exp(source.gauss(0, 0.3))
        start_s = round(3600 * source.uniform(0.1, 0.6))
        listed.append(
            OfferView(
                key=f"{operator}/{region}/{gpu[0]}/{count}/{pricing}/{number:05}",
                market=operator,
                accelerator=f"{gpu[0]}x{count}",
                pricing=pricing,
                price_nano_hour=round(gpu[4] * count * factor * USD),
                capacity=1 + int(math.log(1 - source.random()) / math.log(1 - 0.18)),
                facts_hash=digest(fact),
                timings=Timings(boot_s=start_s // 3, load_s=start_s - start_s // 3),
                hazard=source.choice((0.01, 0.03, 0.08, 0.2)) if pricing == "spot" else 0.0,
            )
        )
    return facts, listed


def _policies(source: Random) -> dict[str, Policy]:
    patterns = [tuple(sorted(source.sample(COUNTRIES, source.choice((2, 3, 5, 8, 12))))) for _ in range(15)]
    found = []
    for number, countries in enumerate(patterns):
        for least in range(4):
            found.append(_policy(f"pattern-{number}-{least}", countries, TIERS[least:]))
    found.extend(_policy(f"zone-{country}", (country,), TIERS[1:]) for country in COUNTRIES)
    return {digest(policy): policy for policy in found}


def _policy(name: str, countries: tuple[str, ...], tiers: tuple[str, ...]) -> Policy:
    place = PolicyRule(id="countries", effect="allow", field="country", values=countries)
    trust = PolicyRule(id="tier", effect="allow", field="location_tier", values=tiers)
    return Policy(name=name, rules=(trust, place))


def _power(
    listed: list[OfferView], facts: dict[str, Facts], policies: dict[str, Policy], speeds: list[Throughput]
) -> dict[tuple[str, str], float]:
    """Output tokens a second that all offers allowed to a policy have together for a model."""
    of = {(each.model, each.accelerator): each.output_per_s for each in speeds}
    models = sorted({each.model for each in speeds})
    found: dict[tuple[str, str], float] = {}
    for name, policy in policies.items():
        fits: dict[str, float] = {}
        decisions = {key: evaluate(policy, fact, NOW_US).outcome == "allow" for key, fact in facts.items()}
        for offer in listed:
            if decisions[offer.facts_hash]:
                fits[offer.accelerator] = fits.get(offer.accelerator, 0.0) + (offer.capacity or 1)
        for model in models:
            found[name, model] = sum(many * of.get((model, accelerator), 0.0) for accelerator, many in fits.items())
    return found


def _work(
    source: Random,
    number: int,
    models: list[tuple[str, float, float]],
    policies: list[str],
    power: dict[tuple[str, str], float],
) -> Work:
    """A batch that takes at most two percent of what its policy allows to have until its deadline: none is hopeless."""
    while True:
        tokens = math.exp(source.gauss(math.log(15e6), 1.4))
        hours = min(96.0, max(1.5, math.exp(source.gauss(math.log(12.0), 1.1))))
        # small models are asked for more often than large ones
        model = models[min(29, int(source.triangular(0, 30, 8)))]
        policy = source.choice(policies)
        output = round(tokens / 3)
        if output * 1.5 <= 0.02 * power.get((policy, model[0]), 0.0) * (hours - 0.6) * 3600:
            break
    return Work(
        id=f"batch_{number:06}",
        project="p",
        model=model[0],
        precision="bf16",
        endpoint="/v1/chat/completions",
        lines=max(1, round(tokens / 1500)),
        input_tokens=round(tokens) - output,
        output_tokens_p50=output,
        output_tokens_p90=output,
        deadline_us=NOW_US + round(hours * HOUR_US),
        max_nano=None,
        priority=0,
        policy_hash=policy,
    )
