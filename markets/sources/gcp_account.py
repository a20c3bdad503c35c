"""One Google Cloud project over google-cloud-compute: which machines exist in which zone, and tokens for the billing catalogue.

google-cloud-compute is imported here, and this module where the market is opened: it is an extra, and slow to load. The
library is synchronous: its calls run in a bounded pool of threads.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import google.auth.transport.requests
from google.api_core.client_options import ClientOptions
from google.api_core.exceptions import GoogleAPICallError
from google.auth.exceptions import GoogleAuthError
from google.cloud import compute_v1
from google.oauth2 import service_account
from google.protobuf.json_format import ParseError  # type: ignore[import-untyped]
from requests.exceptions import RequestException, Timeout

from markets.errors import MarketsError, NoCredentials, NotAuthorized, RateLimited, ShapeDrift, Unavailable
from markets.provider.api import Passing, Reach, patiently, retry_after_s
from markets.provider.login import CredentialSource

T = TypeVar("T")
SCOPE = "https://www.googleapis.com/auth/cloud-platform"
NEEDS = "service_account"
_THREADS = 4
_MOST_PAGES = 1_000


class Account:
    """`endpoint` replaces Google's own (a test's server). The project is the service account's, or `project`."""

    def __init__(
        self, credentials: CredentialSource, reach: Reach, *, endpoint: str | None, project: str | None
    ) -> None:
        self._source, self._reach, self._endpoint, self._project = credentials, reach, endpoint, project
        self._pool = ThreadPoolExecutor(max_workers=_THREADS, thread_name_prefix="gcp")
        self._said: str | None = None
        self._login: service_account.Credentials | None = None

    async def token(self) -> Mapping[str, str] | None:
        """A bearer token for Google's other APIs: signed by the key itself, so that no server is asked for it."""
        login = await self._logged_in()
        if not login.valid:
            login.refresh(google.auth.transport.requests.Request())  # type: ignore[no-untyped-call]
        return {"token": str(login.token)}

    async def machine_types(self, filter_text: str) -> list[tuple[str, Any]]:
        """(zone, machine type) of all zones."""
        client = await self._client(compute_v1.MachineTypesClient)
        return await self._listed(client, compute_v1.AggregatedListMachineTypesRequest, "machine_types", filter_text)

    async def accelerator_types(self) -> list[tuple[str, Any]]:
        """(zone, accelerator type) of all zones."""
        client = await self._client(compute_v1.AcceleratorTypesClient)
        return await self._listed(client, compute_v1.AggregatedListAcceleratorTypesRequest, "accelerator_types", "")

    async def quotas(self) -> dict[tuple[str, str], int]:
        """How many are granted and not in use, by region and metric (`NVIDIA_L4_GPUS`)."""
        client = await self._client(compute_v1.RegionsClient)
        asked = compute_v1.ListRegionsRequest(project=self._project, max_results=500)

        def first_page() -> dict[tuple[str, str], int]:
            page = next(iter(client.list(asked, retry=None, timeout=self._reach.timeout_s).pages))
            return {
                (region.name, quota.metric): max(0, int(quota.limit - quota.usage))
                for region in page.items
                for quota in region.quotas
                if quota.limit > 0 and math.isfinite(quota.limit - quota.usage)
            }

        return await patiently(self._reach, lambda: self._ask(first_page))

    async def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _listed(self, client: Any, request: Any, member: str, filter_text: str) -> list[tuple[str, Any]]:
        """All pages of all zones: Unavailable for a zone that was not to be reached, rather than a list without it."""
        asked = request(project=self._project, filter=filter_text, max_results=500)

        def every_page() -> list[tuple[str, Any]]:
            found: list[tuple[str, Any]] = []
            pager = client.aggregated_list(asked, retry=None, timeout=self._reach.timeout_s)
            seen: set[str] = set()
            for page in pager.pages:
                # the library follows whatever token it is given, for ever
                if page.next_page_token in seen or len(seen) == _MOST_PAGES:
                    raise ShapeDrift(f"gcp: {member}: its pages go round, or are more than {_MOST_PAGES}")
                seen |= {page.next_page_token} - {""}
                if page.unreachables:
                    raise Unavailable(
                        f"gcp: {member} without {', '.join(page.unreachables)[:100]}, which did not answer"
                    )
                for place, scoped in page.items.items():
                    if scoped.warning.code not in ("", "NO_RESULTS_ON_PAGE"):
                        raise Unavailable(f"gcp: {member} of {place}: {scoped.warning.code}")
                    found += [(place.rpartition("/")[2], each) for each in getattr(scoped, member)]
            return found

        return await patiently(self._reach, lambda: self._ask(every_page))

    async def _client(self, kind: Any) -> Any:
        login = await self._logged_in()
        options = ClientOptions(api_endpoint=self._endpoint) if self._endpoint else None
        return await self._ask(lambda: kind(credentials=login, client_options=options))

    async def _logged_in(self) -> service_account.Credentials:
        values = await self._source()
        said = (values or {}).get(NEEDS)
        if not said:
            raise NoCredentials(
                f"gcp: no credentials here; needs {NEEDS} (the JSON key of a service account): `broker credentials set gcp` "
                "for a project, or providers.gcp.credentials in broker.toml for the house"
            )
        if self._login is None or said != self._said:
            self._login, self._said = _service_account(said), said
            self._project = self._project or str(self._login.project_id)
        return self._login

    async def _ask(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        # AttributeError: api_core takes the `error` of an answer that is none for an object
        except (GoogleAPICallError, GoogleAuthError, RequestException, ParseError, ValueError, AttributeError) as error:
            raise _market_error(error) from None


def _service_account(text: str) -> service_account.Credentials:
    """Raises NotAuthorized for what is no service account's key; the message never holds it."""
    try:
        login = service_account.Credentials.from_service_account_info(json.loads(text), scopes=[SCOPE])  # type: ignore[no-untyped-call]
        signed: service_account.Credentials = login.with_always_use_jwt_access(True)
    except (ValueError, KeyError, TypeError, GoogleAuthError):
        raise NotAuthorized("gcp: service_account is not the JSON key of a service account (it is not shown)") from None
    return signed


def _market_error(error: Exception) -> MarketsError:
    """Without what the server said: it may have said our token again."""
    if isinstance(error, GoogleAPICallError):
        return _refusal(error)
    if isinstance(error, Timeout):
        return Unavailable("gcp: Compute Engine: no whole answer in time")
    if isinstance(error, GoogleAuthError):
        return NotAuthorized(f"gcp: Compute Engine: {type(error).__name__}")
    if isinstance(error, RequestException) and not isinstance(error, ValueError):
        return Passing(f"gcp: Compute Engine: {type(error).__name__}")
    return ShapeDrift(f"gcp: Compute Engine's answer is not as its document says ({type(error).__name__})")


def _refusal(error: GoogleAPICallError) -> MarketsError:
    status = int(error.code or 0)
    words = f"gcp: Compute Engine: status {status}"
    if status in (401, 403):
        return NotAuthorized(words)
    if status == 429:
        headers = getattr(error.response, "headers", {})
        return RateLimited(words, retry_after_s=retry_after_s(headers.get("Retry-After")))
    return Passing(words) if status >= 500 else Unavailable(words)
