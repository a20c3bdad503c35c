"""Where a batch's prompts and answers lie is held against its residency policy, as the place where they are computed is.

Only the rules about places count here: a store has no engine to attest and no launch kind. The facts are the operator's
statement in the settings; they are kept with the batch's quote. A local folder is on the broker's own machine: where that
stands is `objects.country`, else `local.country`; when neither is stated there is nothing to hold a policy against, and
`broker doctor` says so. A bucket whose country is not stated is unknown, which no policy that names places allows.
"""

from __future__ import annotations

import msgspec

from broker.settings import Settings
from solver.residency import Decision, FactEvidence, Facts, PathFacts, Policy, Reason, about_places, evaluate

STATED_FOR_US = 86_400_000_000  # a statement in the settings is renewed each day that it stands there
UNSTATED = (
    "unstated"  # the tier of a folder of whose machine nothing was said: there is nothing to hold a policy against
)


def store_facts(settings: Settings, now_us: int) -> Facts | None:
    """What is known of the store's place; None for a local folder of which nothing was stated."""
    stated = settings.objects
    country = stated.country or (settings.local.country if stated.kind == "local" else None)
    if stated.kind == "local" and country is None:
        return None
    evidence = FactEvidence(kind="operator_statement", source=stated.evidence, valid_until_us=now_us + STATED_FOR_US)
    return Facts(
        country=country,
        subdivision=stated.subdivision,
        location_tier="claimed",
        confidentiality="none",
        launch="store",
        market=f"objects:{stated.kind}",
        operator=stated.operator or ("self" if stated.kind == "local" else None),
        jurisdictions=stated.jurisdictions or ((country,) if country else None),
        evidence=(evidence,),
    )


def word_on_store(policy: Policy, facts: Facts, at_us: int) -> Decision:
    """Whether a batch under this policy may lie in the store, by its rules about places. Pure."""
    rules = about_places(policy)
    if rules is not None and facts.location_tier != UNSTATED:
        return evaluate(rules, facts, at_us)
    reason = Reason(rule_id=policy.name, field="-", wanted="-", found="-", code="not_asked")
    return Decision(outcome="allow", reasons=(reason,))


def store_at(settings: Settings, now_us: int, paths: tuple[PathFacts, ...]) -> Facts:
    """What is known of the store when a batch begins, with the other places that it is at from then on."""
    facts = store_facts(settings, now_us)
    if facts is None:
        facts = Facts(
            country=None,
            subdivision=None,
            location_tier=UNSTATED,
            confidentiality="none",
            launch="store",
            market=f"objects:{settings.objects.kind}",
        )
    return msgspec.structs.replace(facts, paths=paths)


def store_refusals(policy: Policy, facts: Facts | None, now_us: int) -> list[str]:
    """Why a batch under this policy may not lie in the store, in words; empty when it may."""
    if facts is None:
        return []
    decision = word_on_store(policy, facts, now_us)
    if decision.outcome == "allow":
        return []
    return [
        f"the object store ({facts.market}) may not hold it: {reason.field} {reason.found} is not {reason.wanted} (rule "
        f"{reason.rule_id} of policy {policy.name}); ask for a residency that includes where the store is, or use a broker "
        "whose store is there"
        for reason in decision.reasons
        if reason.code not in ("allowed", "not_denied")
    ]
