"""The only evaluator of residency policies (contract C5): total, pure, and closed when in doubt."""

from __future__ import annotations

from solver.residency.types import Decision, Facts, Policy, PolicyRule, Reason

_LOCATED = ("country", "subdivision")
_FIELDS = (*_LOCATED, "location_tier", "confidentiality", "launch", "market", "operator", "jurisdictions")


def evaluate(policy: Policy, facts: Facts, at_us: int) -> Decision:
    """May work under `policy` run at a place with these `facts` at `at_us`? Any input gives a decision with at least one reason.

    - A deny rule fires when the fact is one of its values, or *unknown*: what cannot be shown to be elsewhere may be there.
    - Every allow rule must be satisfied by a known fact; of several jurisdictions, all must be listed.
    - Without an allow rule there is no permission.
    - Country and subdivision are known only while at least one piece of evidence is valid at `at_us`.
    """
    judged = [_judge(rule, _found(facts, rule.field, at_us)) for rule in policy.rules]
    against = tuple(reason for granted, reason in judged if not granted)
    if not any(rule.effect == "allow" for rule in policy.rules):
        missing = Reason(rule_id=policy.name, field="-", wanted="an allow rule", found="none", code="no_permission")
        return Decision(outcome="deny", reasons=(*against, missing))
    if against:
        return Decision(outcome="deny", reasons=against)
    return Decision(outcome="allow", reasons=tuple(reason for _, reason in judged))


def _judge(rule: PolicyRule, found: tuple[str, ...] | str) -> tuple[bool, Reason]:
    """Whether this rule lets the place pass, and why. A `found` that is a word says why the fact is unknown."""
    if rule.effect == "deny":
        wanted = "none of " + ", ".join(rule.values)
        if isinstance(found, str):
            return False, _reason(rule, wanted, found, "unknown")
        hit = [each for each in found if each in rule.values]
        return not hit, _reason(rule, wanted, ", ".join(hit or found), "denied" if hit else "not_denied")
    wanted = "one of " + ", ".join(rule.values)
    if isinstance(found, str):
        return False, _reason(rule, wanted, found, "unknown")
    missing = [each for each in found if each not in rule.values]
    return not missing, _reason(rule, wanted, ", ".join(missing or found), "not_allowed" if missing else "allowed")


def _found(facts: Facts, field: str, at_us: int) -> tuple[str, ...] | str:
    """The known values of a field, or the words that say why it is unknown."""
    if field not in _FIELDS:
        return "unknown (no such fact)"
    value: str | tuple[str, ...] | None = getattr(facts, field)
    if value is None or value in ((), ""):
        return "unknown"
    if field in _LOCATED and not any(at_us < evidence.valid_until_us for evidence in facts.evidence):
        return f"unknown ({value} without valid evidence)"
    return (value,) if isinstance(value, str) else value


def _reason(rule: PolicyRule, wanted: str, found: str, code: str) -> Reason:
    return Reason(rule_id=rule.id, field=rule.field, wanted=wanted, found=found, code=code)
