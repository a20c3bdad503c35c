"""Groups of countries in a document: its own and those of `groups.py`, spelled out with dates and conditions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pycountry

from solver.residency.compile import near
from solver.residency.groups import GROUPS
from solver.residency.marks import Finding, Marked, Where
from solver.residency.spans import day_us
from solver.residency.types import Span


@dataclass(frozen=True, slots=True)
class Dated:
    """A country that counts within its dates, and with an agreement where it `needs` one."""

    country: str
    from_us: int | None = None
    until_us: int | None = None
    needs: str | None = None

    def within(self, from_us: int | None, until_us: int | None) -> Dated:
        """The same, within the dates of the group that it stands in, too."""
        begins = max((each for each in (self.from_us, from_us) if each is not None), default=None)
        ends = min((each for each in (self.until_us, until_us) if each is not None), default=None)
        return Dated(self.country, begins, ends, self.needs)

    @property
    def span(self) -> Span:
        return Span(value=self.country, from_us=self.from_us, until_us=self.until_us)


@dataclass
class Memberships:
    """What names of countries and groups stand for in one document."""

    marked: Marked
    own: Mapping[str, Any]
    findings: list[Finding] = field(default_factory=list)

    @classmethod
    def of(cls, marked: Marked) -> Memberships:
        found = cls(marked, marked.value.get("groups") or {})
        for name in found.own:
            if name in GROUPS or len(name) == 2:
                message = f"group {name!r} would hide what the name stands for already"
                found.findings.append(
                    marked.finding("name_taken", message, ("groups", name), "choose another name", key=True)
                )
            list(found._of_group(name, ("groups", name), (name,)))
        found.findings = list(dict.fromkeys(found.findings))
        return found

    def named(self, name: str, where: Where) -> tuple[Dated, ...]:
        """The countries that a name in the document stands for; a finding when it stands for none."""
        return tuple(dict.fromkeys(self._named(name, where, ())))

    def _named(self, name: str, where: Where, within: tuple[str, ...]) -> Iterator[Dated]:
        if name in self.own:
            if name in within:
                message = f"groups contain each other: {' > '.join((*within[within.index(name) :], name))}"
                self.findings.append(
                    self.marked.finding("group_cycle", message, where, f"take {name!r} out of {within[-1]!r}")
                )
                return
            yield from self._of_group(name, where, (*within, name))
        elif group := GROUPS.get(name.lower()):
            for each in group.dated:
                yield Dated(each.country, day_us(each.since), day_us(each.until), each.needs)
        elif len(name) == 2 and pycountry.countries.get(alpha_2=name.upper()):
            yield Dated(name.upper())
        else:
            meant = near(name, self.own)
            message = f"{name!r} is neither an ISO 3166 alpha-2 code nor a group"
            known = f"groups are {', '.join([*self.own, *GROUPS])}"
            hint = f"did you mean {' or '.join(meant)}?" if meant else known
            self.findings.append(self.marked.finding("unknown_country", message, where, hint))

    def _of_group(self, name: str, where: Where, within: tuple[str, ...]) -> Iterator[Dated]:
        group = self.own[name]
        from_us, until_us = day_us(group.get("from")), day_us(group.get("until"))
        for index, member in enumerate(group["members"]):
            at: Where = ("groups", name, "members", index)
            if isinstance(member, str):
                found = list(self._named(member, at, within))
            else:
                dates = (day_us(member.get("from")), day_us(member.get("until")))
                named = self._named(member["country"], (*at, "country"), within)
                found = [self._needing(each.within(*dates), member.get("needs")) for each in named]
            yield from (each.within(from_us, until_us) for each in found)

    @staticmethod
    def _needing(dated: Dated, needs: str | None) -> Dated:
        return dated if needs is None else Dated(dated.country, dated.from_us, dated.until_us, needs)
