"""Whose a login is that no adapter uses yet."""

from __future__ import annotations

from botocore.loaders import Loader

from markets.aws.account import Account, AwsKeys, fixed
from markets.aws.market import AwsOptions


async def account_id(keys: AwsKeys, options: AwsOptions, loader: Loader) -> str:
    """Twelve digits. Raises NotAuthorized for keys that AWS refuses, Unavailable without an answer."""
    account = Account(
        fixed(keys),
        endpoint_url=options.endpoint_url,
        sts_endpoint_url=options.sts_endpoint_url,
        threads=1,
        loader=loader,
    )
    try:
        return await account.number(options.regions[0])
    finally:
        await account.close()
