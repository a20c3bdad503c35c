"""AWS's prices for a broker that does not rent there: what `markets.aws` lists, with a project's own keys or the house's.

Unverified against the live service, as that is. Where the market `aws` is rented at, it lists its prices by itself and this
is not asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from markets.errors import NoCredentials, Unsupported
from markets.offer import Offer
from markets.provider.api import Reach
from markets.provider.login import CredentialSource, Login

if TYPE_CHECKING:
    from markets.aws.market import AwsMarket

MARKET = "aws"
REACH = Reach("")
LOGIN = Login(("access_key_id", "secret_access_key"))
TYPES = (
    "g4dn.*", "g5.*", "g6.*", "g6e.*", "g7.*", "g7e.*", "p3.*", "p3dn.*", "p4d.*", "p4de.*", "p5.*", "p5e.*", "p5en.*",
    "p6-b200.*", "p6-b300.*", "g4ad.*", "inf1.*", "inf2.*", "trn1.*", "trn1n.*", "trn2.*", "dl1.*", "dl2q.*",
)  # fmt: skip


class AwsPrices:
    """`endpoint_url`, `price_list_url` and `advisor_url` replace AWS's own (a test's server). `cache` keeps the price lists."""

    name = MARKET

    def __init__(
        self,
        credentials: CredentialSource,
        *,
        regions: Sequence[str],
        cache: Path,
        types: Sequence[str] = TYPES,
        endpoint_url: str | None = None,
        price_list_url: str | None = None,
        advisor_url: str | None = None,
    ) -> None:
        self._credentials, self._regions, self._cache, self._types = credentials, tuple(regions), cache, tuple(types)
        self._urls = (endpoint_url, price_list_url, advisor_url)
        self._market: AwsMarket | None = None
        self._values: Mapping[str, str] | None = None

    async def offers(self) -> list[Offer]:
        """Raises NoCredentials, before AWS is asked: boto3's own chain is the house's, and not meant by nobody's keys."""
        values = await self._credentials()
        missing = [name for name in LOGIN.needs if not (values or {}).get(name)]
        if missing or values is None:
            raise NoCredentials(f"aws: no credentials here; needs {', '.join(missing)}")
        if self._market is None or values != self._values:
            await self.close()
            self._market, self._values = self._opened(values), values
        return await self._market.offers()

    async def close(self) -> None:
        if self._market is not None:
            await self._market.close()
            self._market = None

    def _opened(self, values: Mapping[str, str]) -> AwsMarket:
        # Imported here: boto3 is an extra, and takes a second to load.
        try:
            from markets.aws.account import AwsKeys, fixed  # noqa: PLC0415
            from markets.aws.advisor import ADVISOR  # noqa: PLC0415
            from markets.aws.market import AwsMarket, AwsOptions  # noqa: PLC0415
            from markets.aws.price_list import BULK  # noqa: PLC0415
        except ModuleNotFoundError as missing:
            raise Unsupported(f"aws: needs {missing.name}; install compute-broker[aws]") from missing
        endpoint, prices, advisor = self._urls
        options = AwsOptions(
            regions=self._regions,
            instance_types=self._types,
            image="",
            endpoint_url=endpoint,
            price_list_url=prices or BULK,
            advisor_url=advisor or ADVISOR,
        )
        keys = AwsKeys(values["access_key_id"], values["secret_access_key"], values.get("session_token"))
        return AwsMarket(options, credentials=fixed(keys), owner="", cache=self._cache)
