"""Which resources may serve a class, and which rule removed the others: whole offer tables at a time.

The rules and their order are those of `eligibility`, the money rules of a class are judged for the work of it that they forbid
most. Hard rules live there and here, and in the independent checker; a test holds the two together.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import numpy as np
import numpy.typing as npt

from solver.eligibility import ELIGIBLE, Funnel, Verdict, most_nano, survey_one
from solver.fluid.classes import Classes
from solver.fluid.figures import NANO_USD, OPEN, RULE, Figures, Flags, Floats, Ints
from solver.types import Rule, Work


@dataclass(slots=True)
class Masks:
    """The verdicts of all classes. `open_to(k)` are the resources that may serve class k; `funnel(k)` counts offers by rule."""

    figures: Figures
    classes: Classes
    _open: dict[int, npt.NDArray[np.uint8]] = field(default_factory=dict)
    _reach: dict[int, npt.NDArray[np.uint8]] = field(default_factory=dict)
    _static: dict[tuple[int, str], npt.NDArray[np.int8]] = field(default_factory=dict)
    _largest: dict[int, Work] = field(default_factory=dict)
    _examples: dict[tuple[object, ...], str] = field(default_factory=dict)
    _speeds: dict[int, Flags] = field(default_factory=dict)

    def open_to(self, k: int) -> Flags:
        """May serve at least the last of the class's works in time, residency and machine permitting."""
        if k not in self._open:
            codes = self.codes(k) if self.has_money(k) else self._small(k)
            self._open[k] = np.packbits(codes == OPEN)
        return np.unpackbits(self._open[k], count=len(self.figures.resources)).view(np.bool_)

    def may_serve(self, k: int, r: int) -> bool:
        """`open_to` of one resource."""
        if self.has_money(k):
            return bool(self.open_to(k)[r])
        figures, kind = self.figures, int(self.classes.kind[k])
        own = figures.resources.pool[r]
        return bool(
            self._by_place(kind, self.classes.policy[k])[r] == OPEN
            and figures.rtt[r] <= self.classes.max_rtt[k]
            and figures.start[kind, r] < self.classes.due_up[k] * (1 - 1e-12)
            and own in (-1, self.classes.pool[k])
            and not any(shut is not None and shut[r] for shut in self._closed_to(k))
        )

    def timeless_key(self, k: int) -> tuple[object, ...]:
        """What `timeless` is the same for."""
        pool = int(self.classes.pool[k]) if self._is_of_pools else -1
        return (int(self.classes.kind[k]), self.classes.policy[k], float(self.classes.max_rtt[k]), pool)

    def timeless(self, k: int) -> Flags:
        """Where the class may run if neither its deadline nor money forbids it."""
        pool = int(self.classes.pool[k])
        is_open: Flags = self._by_place(int(self.classes.kind[k]), self.classes.policy[k]) == OPEN
        if self.classes.max_rtt[k] < np.inf:
            is_open &= self.figures.rtt <= self.classes.max_rtt[k]
        own = self.figures.resources.pool
        if len(own) > len(self.figures.offers):
            is_open &= (own < 0) | (own == pool)
        for shut in self._closed_to(k):
            if shut is not None:
                is_open &= ~shut
        return is_open

    @property
    def _is_of_pools(self) -> bool:
        """Whether some resources are for some pools alone."""
        return len(self.figures.resources) > len(self.figures.offers) or self.figures.is_of_projects

    def _closed_to(self, k: int) -> tuple[Flags | None, Flags | None]:
        """Where its project begins nothing now, and where it rents nothing because of whose account that is."""
        project = self.figures.pools[int(self.classes.pool[k])].project
        return self.figures.held_back_from(project), self.figures.closed_to(project)

    def could_serve(self, k: int) -> Flags:
        """As `open_to` without the rules of money, which are judged for the class's largest work: what a bound must allow."""
        if not self.has_money(k):
            return self.open_to(k)
        if k not in self._reach:
            self._reach[k] = np.packbits(self._small(k) == OPEN)
        return np.unpackbits(self._reach[k], count=len(self.figures.resources)).view(np.bool_)

    def has_money(self, k: int) -> bool:
        """Whether a rule of money may decide where the class runs."""
        first = self.figures.works[self.classes.members[k][0]]
        if self.figures.view.refused(first):
            return True
        project = first.project
        return project in self.figures.view.budgets or bool(np.isfinite(self.classes.limit[k]))

    def codes(self, k: int) -> Ints:
        """Per resource the first rule that forbids it to class k."""
        codes = self._but_money(k)
        return self._money(k, codes) if self.has_money(k) else codes

    def _but_money(self, k: int) -> Ints:
        codes: Ints = self._small(k).astype(np.int64)
        return codes

    def _small(self, k: int) -> npt.NDArray[np.int8]:
        """Codes without the rules of money, in bytes: tables of eight times as many took a third of a first placement."""
        kind, pool = int(self.classes.kind[k]), int(self.classes.pool[k])
        codes = self._by_place(kind, self.classes.policy[k]).copy()
        most_rtt = self.classes.max_rtt[k]
        if most_rtt < np.inf:
            far = self.figures.rtt > most_rtt
            codes[far] = np.minimum(codes[far], RULE["latency"])
        late = np.flatnonzero(self.figures.start[kind] >= self.classes.due_up[k] * (1 - 1e-12))
        if late.size:
            codes[late] = np.minimum(codes[late], RULE["deadline"])
        own = self.figures.resources.pool
        if len(own) > len(self.figures.offers):
            codes[(own >= 0) & (own != pool)] = RULE["excluded"]
        held, closed = self._closed_to(k)
        if held is not None:
            codes[held] = np.minimum(codes[held], RULE["excluded"])
        if closed is not None:
            codes[closed] = RULE["account"]
        return codes

    def _by_place(self, kind: int, policy: str) -> npt.NDArray[np.int8]:
        """What does not depend on deadline or money, one table for all classes of a kind and policy."""
        if (kind, policy) not in self._static:
            figures = self.figures
            unknown = ~np.isfinite(figures.per_input[kind, figures.accelerator])
            codes = figures.renting
            codes = np.minimum(codes, np.where(figures.unfit[kind], RULE["unfit"], OPEN))
            codes = np.minimum(codes, np.where(unknown, RULE["model"], OPEN))
            codes = np.minimum(codes, np.where(figures.residency(policy), OPEN, RULE["residency"]))
            codes = np.minimum(codes, np.where(figures.too_slow[kind, figures.accelerator], RULE["latency"], OPEN))
            self._static[kind, policy] = codes.astype(np.int8)
        return self._static[kind, policy]

    def _money(self, k: int, codes: Ints) -> Ints:
        works = self.figures.works
        project = works[self.classes.members[k][0]].project
        budget = self.figures.view.budgets.get(project)
        limit = self.classes.limit[k]
        least = self.alone_cost(k, is_begun=bool(self.classes.begun[k]))
        if np.isfinite(limit):
            reserve = self._stop_reserve(k, least)
            codes = np.minimum(codes, np.where(least + reserve > limit, RULE["price_ceiling"], OPEN))
        if budget is not None:
            is_new = self.figures.resources.pool < 0
            codes = np.minimum(codes, np.where(is_new & (least > budget / 1e9), RULE["budget"], OPEN))
            codes = self._bought_over(k, codes, budget)
        return self._refused(k, codes)

    def _stop_reserve(self, k: int, least: Floats) -> Floats | float:
        """USD that one instance of each resource costs until it can be stopped; of tokens no more than there are."""
        resources, snapshot = self.figures.resources, self.figures.view.snapshot
        if not snapshot.stop_margin_s:
            return 0.0
        hours = (snapshot.stop_margin_s + 60) / 3600
        reserve: Floats = resources.price * hours
        for number in self.figures.bought:
            offer = self.figures.offers[resources.offer[number]]
            price = offer.per_million_nano or (0, 0)
            most = self._most_nano(k, price)
            hour = max(resources.price[number], offer.most_nano_hour / NANO_USD)
            reserve[number] = min(hour * hours, max(0.0, most / NANO_USD - least[number]))
        return reserve

    def _most_nano(self, k: int, price: tuple[int, int]) -> int:
        """What is held for the work of the class that needs most, at the most."""
        if k not in self._largest:
            works = [self.figures.works[each] for each in self.classes.members[k]]
            self._largest[k] = msgspec.structs.replace(
                works[0],
                input_tokens=max(each.input_tokens for each in works),
                input_tokens_most=max(each.input_tokens_most for each in works),
                output_tokens_p90=max(max(each.output_tokens_p50, each.output_tokens_p90) for each in works),
            )
        return most_nano(self._largest[k], price, self.figures.view.snapshot)

    def _bought_over(self, k: int, codes: Ints, budget: int) -> Ints:
        """Where tokens are bought the worst case is held: that of the class's work that needs most."""
        for number in self.figures.bought:
            offer = self.figures.offers[self.figures.resources.offer[number]]
            price = offer.per_million_nano or (0, 0)
            if self.figures.resources.pool[number] >= 0 or codes[number] < RULE["budget"]:
                continue
            if self._most_nano(k, price) > budget:
                codes[number] = RULE["budget"]
        return codes

    def _refused(self, k: int, codes: Ints) -> Ints:
        """Where a hold was refused a moment ago; the works of a class have been refused at the same offers."""
        first = self.figures.works[self.classes.members[k][0]]
        refused = self.figures.view.refused(first)
        if not refused:
            return codes
        resources = self.figures.resources
        shut = np.array([each.key in refused for each in self.figures.offers], dtype=bool)[resources.offer]
        covered = [each.key in refused and self.figures.view.is_covered(first, each) for each in self.figures.offers]
        shut &= (resources.pool < 0) | ~np.array(covered, dtype=bool)[resources.offer]
        return np.where(shut, np.minimum(codes, RULE["budget"]), codes)

    def alone_cost(self, k: int, is_begun: bool = False) -> Floats:
        """USD of the class's largest work alone on one instance of each resource, or of starting alone when it has begun."""
        resources, kind = self.figures.resources, self.classes.kind[k]
        start = self.figures.start[kind]
        if is_begun:
            starting: Floats = resources.price * start
            return starting
        tokens = self.classes.tokens_in[k] + self.classes.tokens_out[k]
        part = self.classes.largest[k] / tokens if tokens else 1.0
        cost: Floats = np.where(self._known(int(kind)), resources.price * (start + self.hours(k) * part), np.inf)
        return cost

    def _known(self, kind: int) -> Flags:
        """Where the speed of a kind and a price are known."""
        if kind not in self._speeds:
            figures = self.figures
            self._speeds[kind] = np.isfinite(figures.per_input[kind])[figures.accelerator] & figures.is_priced
        return self._speeds[kind]

    def few(self, k: int, *, is_bound: bool = False) -> Ints:
        """The resources of `open_to`, or `could_serve`, by number: a fifth of all is usual, so what is asked of a class is asked
        of these alone."""
        found: Ints = np.flatnonzero(self.could_serve(k) if is_bound else self.open_to(k))
        return found

    def hours(self, k: int, at: Ints | None = None, *, is_long: bool = False) -> Floats:
        """Instance hours of the whole class on each resource (or on these), 0 where nobody knows; `is_long`: cautious, with long
        outputs."""
        figures, kind = self.figures, self.classes.kind[k]
        out = self.classes.tokens_long[k] if is_long else self.classes.tokens_out[k]
        by_accelerator = self.classes.tokens_in[k] * figures.known_input[kind] + out * figures.known_output[kind]
        if is_long:
            by_accelerator *= figures.caution[kind]
        if at is None:
            every: Floats = by_accelerator[figures.accelerator] * figures.slow[kind]
            return every
        hours: Floats = by_accelerator[figures.accelerator[at]] * figures.slow[kind][at]
        return hours

    def offer_codes(self, k: int) -> Ints:
        """Per offer the first rule, open where any of its ways is."""
        codes = self.codes(k)
        many = len(self.figures.offers)
        offer_codes = codes[:many].copy()
        offer_codes[self.figures.resources.offer[many:][codes[many:] == OPEN]] = OPEN
        return offer_codes

    def funnel(self, k: int, codes: Ints | None = None) -> Funnel:
        """How many offers each rule removed, in order, with an example each; the last step is what is left. `codes` are those of
        the class's offers where they are at hand."""
        codes = self.offer_codes(k) if codes is None else codes
        counts = np.bincount(codes, minlength=OPEN + 1).tolist()
        steps = [
            Rule(rule=_NAMES[code], count=counts[code], example=self.example(k, code, int(np.argmax(codes == code))))
            for code in range(OPEN)
            if counts[code]
        ]
        left = counts[OPEN]
        key = self.figures.offers[int(np.argmax(codes == OPEN))].key if left else None
        return (*steps, Rule(rule=ELIGIBLE, count=left, example=key))

    def example(self, k: int, code: int, offer: int) -> str:
        """The offer and what was found against it."""
        rule = _NAMES[code]
        key: tuple[object, ...] = (code, offer, self.classes.kind[k], self.classes.policy[k])
        if rule == "account":
            return "of another account"  # whose it is, is not for the reader
        if rule in ("latency", "deadline", "price_ceiling", "budget"):
            key = (*key, k)
        if key not in self._examples:
            view = self.figures.offers[offer]
            broken = self.verdict(k, offer).broken
            found = next((each.found for each in broken if each.rule == rule), "not in time for each of its kind")
            self._examples[key] = f"{view.key}: {found}"
        return self._examples[key]

    @staticmethod
    def rule_of(code: int) -> str:
        return _NAMES.get(code, ELIGIBLE)

    def verdict(self, k: int, offer: int) -> Verdict:
        """The exact verdict for the first work of the class on one offer."""
        work = self.figures.works[self.classes.members[k][0]]
        return survey_one(work, self.figures.offers[offer], self.figures.view)


_NAMES = {number: rule for rule, number in RULE.items()}
