"""Named groups of countries that residency may use, each member with its dates, each group with its source and when it was read.

A membership is a fact of a day: who changes one, changes the date beside it, and `TABLE` with it. Lists of countries
(`--residency eu`) are compiled to the members of `as_of`; policy documents keep the dates, and are judged by those in force.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

TABLE = "2026-11-27"
"""The version of this table, kept with every decision."""


@dataclass(frozen=True, slots=True)
class Member:
    """A country of a group from `since` until before `until` (ISO dates; None: as long as the group, no end).

    `needs`: an agreement without which it does not count, such as DPF for the United States; `note` says why.
    """

    country: str
    since: str | None = None
    until: str | None = None
    needs: str | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class CountryGroup:
    """A treaty or a legal act by which countries belong together, with where the list is from and when it was read."""

    title: str
    dated: tuple[Member, ...]
    source: str
    as_of: str

    @property
    def members(self) -> tuple[str, ...]:
        """ISO 3166 alpha-2 codes of those that belong to it without a condition on the day `as_of`."""
        return tuple(
            sorted(
                {
                    each.country
                    for each in self.dated
                    if each.needs is None
                    and (each.since or "") <= self.as_of
                    and (each.until is None or self.as_of < each.until)
                }
            )
        )


def _joined(by_day: Mapping[str, str]) -> Iterator[Member]:
    for day, countries in by_day.items():
        yield from (Member(country, since=day) for country in countries.split())


_EU = (
    *_joined(
        {
            "1958-01-01": "BE DE FR IT LU NL",
            "1973-01-01": "DK IE",
            "1981-01-01": "GR",
            "1986-01-01": "ES PT",
            "1995-01-01": "AT FI SE",
            "2004-05-01": "CY CZ EE HU LT LV MT PL SI SK",
            "2007-01-01": "BG RO",
            "2013-07-01": "HR",
        }
    ),
    Member("GB", since="1973-01-01", until="2020-02-01"),
)
# EU members are parties since they joined (Croatia provisionally since 2014-04-12); GB took part until the transition ended.
_EEA = (
    *(
        Member(each.country, since=max(each.since or "", "1994-01-01"))
        for each in _EU
        if each.country not in ("GB", "HR")
    ),
    Member("HR", since="2014-04-12"),
    Member("GB", since="1994-01-01", until="2021-01-01"),
    *_joined({"1994-01-01": "IS NO", "1995-05-01": "LI"}),
)
_ADEQUATE = (
    Member("CH", since="2000-07-26", note="Decision 2000/518/EC"),
    Member("CA", since="2001-12-20", needs="PIPEDA", note="Decision 2002/2/EC: recipients subject to PIPEDA only"),
    Member("AR", since="2003-06-30", note="Decision 2003/490/EC"),
    Member("GG", since="2003-11-21", note="Decision 2003/821/EC"),
    Member("IM", since="2004-04-28", note="Decision 2004/411/EC"),
    Member("JE", since="2008-05-08", note="Decision 2008/393/EC"),
    Member("FO", since="2010-03-05", note="Decision 2010/146/EU"),
    Member("AD", since="2010-10-19", note="Decision 2010/625/EU"),
    Member("IL", since="2011-01-31", note="Decision 2011/61/EU"),
    Member("UY", since="2012-08-21", note="Decision 2012/484/EU"),
    Member("NZ", since="2012-12-19", note="Decision 2013/65/EU"),
    Member("JP", since="2019-01-23", note="Decision (EU) 2019/419: private sector, with supplementary rules"),
    Member(
        "GB", since="2021-06-28", until="2031-12-27", note="Decision (EU) 2021/1772, renewed in 2025 until 2031-12-27"
    ),
    Member("KR", since="2021-12-17", note="Decision (EU) 2022/254"),
    Member("US", since="2000-07-26", until="2015-10-06", needs="SAFE-HARBOR", note="struck down: Schrems I, C-362/14"),
    Member(
        "US", since="2016-07-12", until="2020-07-16", needs="PRIVACY-SHIELD", note="struck down: Schrems II, C-311/18"
    ),
    Member(
        "US", since="2023-07-10", needs="DPF", note="Decision (EU) 2023/1795: companies certified under the DPF only"
    ),
    # adopted early in 2026; counted from the day on which our source reported it
    Member("BR", since="2026-02-09", note="adequacy decision on Brazil, reported on 2026-02-09"),
)

GROUPS: Mapping[str, CountryGroup] = MappingProxyType(
    {
        "eu": CountryGroup(
            title="European Union",
            dated=_EU,
            source="Treaty on European Union, Article 52, and the treaties of accession",
            as_of="2026-11-22",
        ),
        "eea": CountryGroup(
            title="European Economic Area",
            dated=_EEA,
            source="Agreement on the European Economic Area, Article 126; Switzerland is not a party",
            as_of="2026-11-22",
        ),
        "efta": CountryGroup(
            title="European Free Trade Association",
            dated=(*_joined({"1960-05-03": "CH NO", "1970-03-01": "IS", "1991-09-01": "LI"}),),
            source="Convention establishing the European Free Trade Association (Stockholm 1960, Vaduz 2001)",
            as_of="2026-11-22",
        ),
        "gdpr-adequacy": CountryGroup(
            title="Countries with a GDPR adequacy decision",
            dated=_ADEQUATE,
            source="European Commission decisions under Article 45 GDPR (and 25(6) of Directive 95/46/EC)",
            as_of="2026-11-22",
        ),
    }
)
