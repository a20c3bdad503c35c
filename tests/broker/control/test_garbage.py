"""The garbage loop: late, bounded, counted, and never in a place that is another broker's."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from broker.control import garbage
from broker.control.garbage import OWNER_KEY, GarbageCollector
from broker.settings import ControlSettings, Settings
from tests.support.object_stores import keys_of

DAY_US = 86_400 * 1_000_000


async def orphans(services: Any, count: int) -> set[str]:
    keys = {f"acme/files/file-{n:026}" for n in range(count)}
    for key in keys:
        await services.store.put(key, b"12345")
    return keys


async def test_orphans_are_removed_a_day_after_they_were_written_and_counted(town: Any) -> None:
    services = town.services
    keys = await orphans(services, 3)
    collector = GarbageCollector(services)
    await collector.step()
    assert await keys_of(services.store) == keys | {OWNER_KEY}, "their rows may still come"
    services.database.clock_offset_us = DAY_US + 60_000_000
    await collector.step()
    assert await keys_of(services.store) == {OWNER_KEY}
    counted = services.counters.registry.get_sample_value
    assert (counted("broker_orphans_removed_total"), counted("broker_orphans_removed_bytes_total")) == (3, 15)


async def test_each_round_removes_so_many_at_most_and_the_next_goes_on(
    town: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(garbage, "PAGE", 4)
    settings = Settings(data=tmp_path, control=ControlSettings(max_objects_per_cycle=3))
    services = replace(town.services, settings=settings)
    await GarbageCollector(services).step()
    await orphans(services, 8)
    await services.store.put("acme/files/a.foreign/object", b"")
    services.database.clock_offset_us = DAY_US + 60_000_000
    collector = GarbageCollector(services)
    left = []
    for _ in range(5):
        await collector.step()
        left.append(len([key for key in await keys_of(services.store) if key.startswith("acme/files/file-")]))
    assert left[0] == 6, "the page of four begins with what is not ours"
    assert all(before - after <= 3 for before, after in pairwise(left))
    assert left[-1] == 0
    assert await keys_of(services.store) == {OWNER_KEY, "acme/files/a.foreign/object"}


async def test_a_place_full_of_objects_that_we_do_not_know_is_not_taken_for_ours(town: Any) -> None:
    """Two brokers shared a bucket before places were marked; the first to be upgraded removed the other's files."""
    services = town.services
    keys = await orphans(services, 2)
    services.database.clock_offset_us = DAY_US + 60_000_000
    await GarbageCollector(services).step()
    assert await keys_of(services.store) == keys


async def test_nothing_is_removed_where_another_broker_keeps_its_objects(town: Any) -> None:
    services = town.services
    await GarbageCollector(replace(services, owner="another")).step()
    keys = await orphans(services, 1)
    services.database.clock_offset_us = DAY_US + 60_000_000
    await GarbageCollector(services).step()
    assert await keys_of(services.store) == keys | {OWNER_KEY}
