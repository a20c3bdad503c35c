"""What each adapter brings to the common trials: one `case_*.py` a provider, with a `CASE` in it (found by `gathered.py`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from markets.market import PriceSource
from markets.provider.api import Reach
from markets.provider.login import CredentialSource
from tests.markets.sources.document import Document
from tests.markets.sources.loopback import Answer


@dataclass(frozen=True)
class Case:
    """`make(credentials, reach)` opens the adapter; `answers` are of a good day, on which it has `offers` of them.

    `looping`: answers whose pages go round; `twice`: answers in which a page comes twice, and the offers are those of the
    good day. Both None for a provider without pages. `by_library`: the provider's own library asks, and
    what it does with redirects and with answers without end is its own. `document` gives the official document; None: there is
    none that is public. `undocumented` are the answers that it says nothing of. `besides` are asked for what stands beside the
    prices: when they fail, all offers are there without it.
    """

    name: str
    make: Callable[[CredentialSource, Reach], PriceSource]
    answers: Mapping[str, Answer]
    offers: int
    credentials: Mapping[str, str] = field(default_factory=dict)
    is_public: bool = False
    base_path: str = ""
    looping: Mapping[str, Answer] | None = None
    twice: Mapping[str, Answer] | None = None
    by_library: bool = False
    document: Callable[[], Document | None] | None = None
    undocumented: frozenset[str] = frozenset()
    besides: frozenset[str] = frozenset()

    def open(
        self, url: str, *, timeout_s: float = 20, max_bytes: int = 1 << 26, anonymous: bool = False
    ) -> PriceSource:
        async def keys() -> Mapping[str, str] | None:
            return None if anonymous else self.credentials or None

        return self.make(keys, Reach(url + self.base_path, timeout_s=timeout_s, max_bytes=max_bytes))
