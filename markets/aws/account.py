"""One AWS account over boto3: clients per region, a bounded pool of threads for them, errors of ours.

boto3 is imported here, and this package where the market `aws` is configured: it is an extra, and slow to load.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.loaders import Loader

from markets.aws.failures import market_error
from markets.errors import MarketsError, NotAuthorized, ShapeDrift, Unavailable

T = TypeVar("T")
Answer = Mapping[str, Any]
_PAGE = 500


@dataclass(frozen=True, slots=True)
class AwsKeys:
    """Long-lived keys, or with `session_token` those of an assumed role."""

    access_key_id: str
    secret_access_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)


# The door to wherever credentials are kept; asked at first, and again after AWS has refused what it gave (rotation).
# None: boto3's own chain, which is the machine's role where the broker runs on AWS.
CredentialSource = Callable[[], Awaitable[AwsKeys | None]]


def fixed(keys: AwsKeys | None) -> CredentialSource:
    """Credentials that do not change while the broker runs."""

    async def give() -> AwsKeys | None:
        return keys

    return give


class Account:
    """`ask` and `pages` are all that is ever called. `endpoint_url` replaces AWS's own (a test's server, a VPC endpoint),
    `sts_endpoint_url` that of STS where it is another one.

    `loader` lets several accounts share what boto3 reads of its services' descriptions (a second of CPU each time)."""

    def __init__(
        self,
        credentials: CredentialSource,
        *,
        endpoint_url: str | None = None,
        sts_endpoint_url: str | None = None,
        threads: int = 8,
        timeout_s: float = 20,
        create_timeout_s: float = 60,
        loader: Loader | None = None,
    ) -> None:
        self._credentials = credentials
        self._endpoint_url = endpoint_url
        self._sts_endpoint_url = sts_endpoint_url or endpoint_url
        self._timeout_s, self._create_timeout_s = timeout_s, create_timeout_s
        self._pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="aws")
        self._loader = loader
        self._session: boto3.Session | None = None
        self._clients: dict[tuple[str, str, bool], Any] = {}
        self._opening = asyncio.Lock()
        self._whose: tuple[str, str] | None = None
        self._is_closed = False

    async def ask(
        self, region: str, operation: str, *, service: str = "ec2", may_create: bool = False, **request: Any
    ) -> Answer:
        """One call of boto3's method `operation`. Reads are tried three times by botocore, creations once."""
        client = await self._client(region, service, may_create)
        what = f"{operation} in {region}"
        try:
            answer: Answer = await self.in_thread(lambda: getattr(client, operation)(**request))
        except (ClientError, BotoCoreError) as error:
            failure = market_error(error, what, may_create=may_create)
            if isinstance(failure, NotAuthorized):
                await self._forget()
            raise failure from error
        return answer

    async def pages(
        self, region: str, operation: str, member: str, *, page: int = _PAGE, **request: Any
    ) -> tuple[list[Any], datetime]:
        """`member` of all pages, and AWS's clock at the last. BrokenOff when a page after the first failed."""
        found: list[Any] = []
        token: str | None = None
        seen: set[str] = set()
        at: datetime | None = None
        while True:
            paging: dict[str, Any] = {"MaxResults": page} | ({"NextToken": token} if token else {})
            try:
                answer = await self.ask(region, operation, **request, **paging)
            except MarketsError as error:
                if at is not None:
                    raise BrokenOff(
                        f"{operation} in {region} broke off after {len(found)}: {error}", found, at
                    ) from error
                raise
            found += answer[member]
            at = clock(answer)
            token = answer.get("NextToken") or None
            if token is None:
                return found, at
            if token in seen:
                raise BrokenOff(f"{operation} in {region}: the page {token[:20]!r} was sent before", found, at)
            seen.add(token)

    async def number(self, region: str) -> str:
        """The twelve digits of the account that the login in use is of, as STS says. The call needs no permission, so that every
        key can make it. An access key is of one account for ever: each is asked about once, also of those that a role's renewal
        or another file of credentials brings.

        Raises NotAuthorized for keys that AWS refuses, Unavailable without an answer.
        """
        key = await self._access_key(region)
        if self._whose is not None and self._whose[0] == key:
            return self._whose[1]
        answer = await self.ask(region, "get_caller_identity", service="sts")
        number = answer.get("Account")
        if not isinstance(number, str) or not number:
            raise ShapeDrift(f"aws: get_caller_identity in {region} named no account")
        if await self._access_key(region) == key:
            self._whose = key, number
        return number

    async def _access_key(self, region: str) -> str:
        """What requests are signed with now. Renewed when that is due, which may ask the machine's metadata service."""
        await self._client(region, "sts", False)
        session = self._session

        def look() -> str | None:
            found = session.get_credentials() if session else None
            return found.get_frozen_credentials().access_key if found else None

        try:
            key = await self.in_thread(look)
        except BotoCoreError as error:
            raise market_error(error, "the AWS credentials", may_create=False) from error
        if key is None:
            raise NotAuthorized("aws: there are no credentials; see the section aws of broker.toml")
        return key

    async def in_thread(self, work: Callable[[], T]) -> T:
        """In the account's own pool. Raises Unavailable when the account was closed before it came to that: a caller that is
        in the middle of something (another loop, while a key is rotated) is told so, and is not itself cancelled."""
        if self._is_closed:
            raise _closed()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if self._is_closed and caller is not None and not caller.cancelling():
                raise _closed() from None  # it waited in the pool, and never ran
            raise

    async def close(self) -> None:
        self._is_closed = True
        for client in self._clients.values():
            client.close()
        self._clients.clear()
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _client(self, region: str, service: str, may_create: bool) -> Any:
        key = (region, service, may_create)
        async with self._opening:
            if key not in self._clients:
                if self._session is None:
                    keys = await self._credentials()
                    self._session = await self.in_thread(lambda: _session(keys, self._loader))
                session = self._session
                self._clients[key] = await self.in_thread(lambda: self._make(session, *key))
            return self._clients[key]

    def _make(self, session: boto3.Session, region: str, service: str, may_create: bool) -> Any:
        config = Config(
            connect_timeout=10,
            read_timeout=self._create_timeout_s if may_create else self._timeout_s,
            retries={"mode": "standard", "total_max_attempts": 1 if may_create else 3},
            user_agent_extra="compute-broker",
        )
        endpoint = self._sts_endpoint_url if service == "sts" else self._endpoint_url
        return session.client(service, region_name=region, endpoint_url=endpoint, config=config)

    async def _forget(self) -> None:
        """The next call asks for credentials again: they may have been rotated."""
        async with self._opening:
            self._session = None
            self._clients.clear()


class BrokenOff(Unavailable):
    """Some pages of a list came and others did not; `found` is what came, the last of it `at` AWS's clock."""

    def __init__(self, message: str, found: list[Any], at: datetime) -> None:
        super().__init__(message)
        self.found = found
        self.at = at


def _closed() -> Unavailable:
    return Unavailable("the AWS account was closed, because it has other credentials now or none; nothing was asked")


def _session(keys: AwsKeys | None, loader: Loader | None) -> boto3.Session:
    core = botocore.session.Session()
    if loader is not None:
        core.register_component("data_loader", loader)
    if keys is None:
        return boto3.Session(botocore_session=core)
    return boto3.Session(
        botocore_session=core,
        aws_access_key_id=keys.access_key_id,
        aws_secret_access_key=keys.secret_access_key,
        aws_session_token=keys.session_token,
    )


def clock(answer: Answer) -> datetime:
    """AWS's clock when it answered, to the second: the Date header. Raises Unavailable without one."""
    text = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    try:
        return parsedate_to_datetime(str(text)).astimezone(UTC)
    except ValueError as error:
        raise Unavailable(f"aws: an answer came with the Date {text!r}, which is not a date") from error
