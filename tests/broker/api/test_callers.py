"""From which country a machine calls where a proxy stands before the broker, and whose word on it counts."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from broker.api.callers import dialled_from
from broker.api.surroundings import callers
from broker.settings import HttpSettings, ResidencySettings, Settings
from tests.support.wire_agent import Rent, offer, running_batch

PROXIES = (ip_network("127.0.0.0/8"), ip_network("fd00::/8"))


@pytest.fixture
def table(tmp_path: Path) -> Path:
    (tmp_path / "networks.csv").write_text("network,country\n8.8.8.0/24,US\n2.16.0.0/16,DE\n")
    return tmp_path / "networks.csv"


@pytest.fixture
def proxies() -> tuple[str, ...]:
    return ("127.0.0.0/8",)


@pytest.fixture
def settings(tmp_path: Path, table: Path, proxies: tuple[str, ...]) -> Settings:
    http = HttpSettings.model_validate({"trusted_proxies": proxies})
    return Settings(data=tmp_path, http=http, residency=ResidencySettings(ip_countries=table))


async def hello(server: Any, rent: Rent, forwarded: str) -> int:
    """The status of the hello of a machine whose offer is in Germany, with this header on the last leg."""
    agent = await rent(batches=(await running_batch(server, offer("DE")),))
    server.http.headers["X-Forwarded-For"] = forwarded
    answer = await agent.hello()
    return int(answer.status)


@pytest.mark.parametrize(
    ("forwarded", "status"),
    [
        ("2.16.0.9", 200),
        ("8.8.8.8", 403),
        ("2.16.0.9, 8.8.8.8", 403),  # what the machine itself sent stands before what the proxy saw
        ("8.8.8.8, 2.16.0.9, 127.0.0.2", 200),  # two proxies of ours
    ],
)
async def test_behind_a_proxy_a_machine_is_held_to_the_address_that_the_proxy_saw(
    server: Any, rent: Rent, forwarded: str, status: int
) -> None:
    """All machines had the proxy's own private address, and none was ever found to call from elsewhere."""
    assert await hello(server, rent, forwarded) == status


@pytest.mark.parametrize("proxies", [()])
async def test_of_a_stranger_nothing_is_believed(server: Any, rent: Rent) -> None:
    assert await hello(server, rent, "8.8.8.8") == 200, "this machine's address is in no table"


@pytest.mark.parametrize(
    ("peer", "forwarded", "found"),
    [
        ("::ffff:8.8.8.8", "", "8.8.8.8"),  # a socket for both families
        ("::ffff:127.0.0.1", "8.8.8.8", "8.8.8.8"),
        ("fd00::1", "[2001:4860::1]:443", "2001:4860::1"),
        ("127.0.0.1", "8.8.8.8:1234", "8.8.8.8"),
        ("127.0.0.1", "8.8.8.8, garbage", None),
        ("127.0.0.1", "127.0.0.1", None),
        ("127.0.0.1", " , ", None),
        (None, "8.8.8.8", None),
        ("2001:4860::1", "8.8.8.8", "2001:4860::1"),
    ],
)
def test_addresses_are_read_from_the_end_of_the_list(peer: str | None, forwarded: str, found: str | None) -> None:
    assert dialled_from(peer, forwarded, PROXIES) == found


def test_a_table_of_countries_behind_a_proxy_that_nobody_named_is_a_warning(table: Path, tmp_path: Path) -> None:
    def states(**http: Any) -> list[str]:
        wanted = Settings(data=tmp_path, http=HttpSettings(**http), residency=ResidencySettings(ip_countries=table))
        return [check.state for check in callers(wanted)]

    assert states(public_url="https://broker.example.com") == ["warn"]
    assert states(public_url="https://broker.example.com", trusted_proxies=["10.0.0.0/8"]) == []
    assert states(public_url="http://127.0.0.1") == []
