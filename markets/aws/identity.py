"""Whose a login is: the account's number, as STS gives it. The call needs no permission, so that every key can ask it."""

from __future__ import annotations

from botocore.loaders import Loader

from markets.aws.account import Account, AwsKeys, fixed
from markets.errors import ShapeDrift


async def account_id(keys: AwsKeys, region: str, endpoint_url: str | None, loader: Loader) -> str:
    """Twelve digits. Raises NotAuthorized for keys that AWS refuses, Unavailable without an answer."""
    account = Account(fixed(keys), endpoint_url=endpoint_url, threads=1, loader=loader)
    try:
        answer = await account.ask(region, "get_caller_identity", service="sts")
    finally:
        await account.close()
    number = answer.get("Account")
    if not isinstance(number, str) or not number:
        raise ShapeDrift(f"aws: get_caller_identity in {region} named no account")
    return number
