"""How large a queue is: by the pairs of a work and an offer that may serve it, not by the rows of the price book."""

from __future__ import annotations

from collections import Counter

from solver.eligibility import is_rentable
from solver.residency import ModelFacts
from solver.types import SMALL, Work
from solver.view import View

# Above so many pairs of a work and any offer the rules are read as tables, however few of the offers may serve: row by row they
# would take longer than the program.
LISTED = 20 * SMALL


def is_small(view: View) -> bool:
    """Whether the program may have a column for each pair: of these there are at most `SMALL`.

    A price-only, quarantined or sold-out row makes no pair, nor does one that a work's policy denies. Where a policy asks what is
    held until a deadline, the earliest of its works counts, of which most is allowed.
    """
    snapshot = view.snapshot
    if len(snapshot.works) * len(snapshot.offers) <= SMALL:
        return True
    if len(snapshot.works) * len(snapshot.offers) > LISTED:
        return False
    in_use = {rental.offer_key for rental in snapshot.running}
    open_offers = [offer for offer in snapshot.offers if offer.key in in_use or is_rentable(offer, view)]
    example = {offer.facts_hash: offer for offer in open_offers}
    many = Counter(offer.facts_hash for offer in open_offers)
    alike: dict[tuple[str, ModelFacts | None], list[Work]] = {}
    for work in snapshot.works:
        alike.setdefault((work.policy_hash, snapshot.models.get(work.id)), []).append(work)
    pairs = 0
    for works in alike.values():
        first = min(works, key=lambda work: (work.deadline_us, work.id))
        allowed = (facts for facts, offer in example.items() if view.allows(first, offer))
        pairs += len(works) * sum(many[facts] for facts in allowed)
    return pairs <= SMALL
