"""S3 alone: what a store must refuse, what others may do with a signed request, and what a network does to it."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp
import pytest
from msgspec import structs

from jobs.errors import ObjectExists, ObjectMissing, StoreFailed, StoreUnfit
from jobs.objects import ObjectStore, SignedRequest
from jobs.s3 import PART_BYTES, S3Bucket, S3Keys, S3Place
from jobs.store_check import check_store
from tests.support.object_stores import s3_of
from tests.support.s3_server import S3Server
from tests.support.torn_proxy import TornProxy, torn_proxy

PART = b"the answers of a worker"
PART_SHA = hashlib.sha256(PART).hexdigest()
DAY_US = 86_400 * 1_000_000


@pytest.fixture
async def store(s3: S3Server) -> AsyncIterator[ObjectStore]:
    store = s3_of(s3)
    yield store
    await store.close()


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def signed_put(store: ObjectStore, key: str = "p/part", ttl_s: int = 60) -> SignedRequest:
    assert store.direct is not None
    return await store.direct.signed_put(key, len(PART), PART_SHA, ttl_s)


async def send(
    http: aiohttp.ClientSession, method: str, url: str, headers: Mapping[str, str], body: bytes | None = None
) -> tuple[int, bytes]:
    async with http.request(method, url, headers=headers, data=body) as answer:
        return answer.status, await answer.read()


async def test_a_worker_creates_the_one_object_that_it_announced_and_only_once(
    store: ObjectStore, http: aiohttp.ClientSession
) -> None:
    signed = await signed_put(store)
    assert (await send(http, "PUT", signed.url, signed.headers, PART))[0] == 200
    assert (await send(http, "PUT", signed.url, signed.headers, PART))[0] == 412
    assert await store.get("p/part") == PART
    assert await store.holds("p/part", len(PART), PART_SHA)


async def test_other_bytes_than_announced_are_refused_by_the_store(
    store: ObjectStore, http: aiohttp.ClientSession
) -> None:
    signed = await signed_put(store)
    assert (await send(http, "PUT", signed.url, signed.headers, PART.upper()))[0] == 400
    assert (await send(http, "PUT", signed.url, signed.headers, PART + b"!"))[0] == 403
    with pytest.raises(ObjectMissing):
        await store.size("p/part")


@pytest.mark.parametrize("left_out", ["If-None-Match", "x-amz-checksum-sha256"])
async def test_what_was_signed_cannot_be_left_out(
    store: ObjectStore, http: aiohttp.ClientSession, left_out: str
) -> None:
    signed = await signed_put(store)
    headers = {name: value for name, value in signed.headers.items() if name != left_out}
    assert (await send(http, "PUT", signed.url, headers, PART))[0] == 403


async def test_a_tampered_signature_another_key_and_another_method_are_refused(
    store: ObjectStore, http: aiohttp.ClientSession
) -> None:
    signed = await signed_put(store)
    last = "0" if signed.url[-1] != "0" else "1"
    assert "X-Amz-Signature=" in signed.url.rpartition("&")[2], "the signature is what is tampered with"
    assert (await send(http, "PUT", signed.url[:-1] + last, signed.headers, PART))[0] == 403
    assert (await send(http, "PUT", signed.url.replace("p/part", "p/other"), signed.headers, PART))[0] == 403
    assert (await send(http, "GET", signed.url, {}))[0] == 403


async def test_a_signature_expires(store: ObjectStore, http: aiohttp.ClientSession) -> None:
    signed = await signed_put(store, ttl_s=1)
    deadline = time.monotonic() + 30
    while (status := (await send(http, "PUT", signed.url, signed.headers, PART))[0]) != 403:
        assert time.monotonic() < deadline, status
        await asyncio.sleep(0.2)


async def test_a_worker_reads_the_bytes_of_its_shard_and_no_others(
    store: ObjectStore, http: aiohttp.ClientSession
) -> None:
    await store.put("p/input", b"0123456789")
    assert store.direct is not None
    signed = await store.direct.signed_get("p/input", 2, 5, 60)
    assert await send(http, "GET", signed.url, signed.headers) == (206, b"234")
    assert (await send(http, "GET", signed.url, {"Range": "bytes=0-9"}))[0] == 403
    assert (await send(http, "GET", signed.url, {}))[0] == 403


async def test_what_was_put_past_the_checksum_is_read_to_be_believed(store: ObjectStore, s3: S3Server) -> None:
    await store.put("p/x", b"abc")
    assert store.direct is not None
    assert await store.direct.sha256("p/x") is None
    assert await store.holds("p/x", 3, hashlib.sha256(b"abc").hexdigest())
    assert not await store.holds("p/x", 3, hashlib.sha256(b"abd").hexdigest())
    with pytest.raises(ObjectMissing):
        await store.holds("p/none", 3, PART_SHA)


async def in_chunks(size: int, letter: bytes = b"x") -> AsyncIterator[bytes]:
    for at in range(0, size, 1_000_000):
        yield letter * min(1_000_000, size - at)


@pytest.mark.parametrize("size", [PART_BYTES - 1, PART_BYTES, PART_BYTES + 1])
async def test_streams_around_the_size_of_a_part_arrive_whole(store: ObjectStore, size: int) -> None:
    assert (await store.put_stream("p/x", in_chunks(size))).size == size
    assert await store.size("p/x") == size


async def test_of_two_uploads_in_parts_to_one_free_name_the_first_to_end_makes_it(store: ObjectStore) -> None:
    """Both saw that the name was free; the completion decides, and the loser leaves nothing."""
    has_begun, is_made = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        has_begun.set()
        async for chunk in in_chunks(PART_BYTES + 1, b"a"):
            yield chunk
        await is_made.wait()

    loser = asyncio.create_task(store.put_stream("p/x", slow()))
    await has_begun.wait()
    await store.put_stream("p/x", in_chunks(PART_BYTES + 1, b"b"))
    is_made.set()
    with pytest.raises(ObjectExists):
        await loser
    assert set(await store.get("p/x")) == set(b"b")
    assert await store.remove_abandoned(time.time_ns() // 1_000 + 2 * DAY_US) == 0, "the loser left its parts"


async def test_parts_that_a_crash_left_are_removed_after_a_day(s3: S3Server) -> None:
    store = s3_of(s3, prefix="crashed")
    ours = "p/files/file-01M8F2WAHQJXA4ZM4WDYHMVAXZ"
    foreign = (f"elsewhere/{ours}", "crashed/p/x")  # the other's prefix, and what a broker would never write
    for name in (f"crashed/{ours}", *foreign):
        s3.client.create_multipart_upload(Bucket=s3.bucket, Key=name)
    now_us = time.time_ns() // 1_000
    assert await store.remove_abandoned(now_us) == 0
    assert await store.remove_abandoned(now_us + 2 * DAY_US) == 1
    left = s3.client.list_multipart_uploads(Bucket=s3.bucket)["Uploads"]
    assert {each["Key"] for each in left} == set(foreign), "what is not ours stays"
    await store.close()


async def test_a_fit_store_passes_the_check_and_nothing_is_left_of_it(store: ObjectStore) -> None:
    await check_store(store)
    assert [key async for key in store.keys("")] == []


class Overwriting(S3Bucket):
    """A server that does not know If-None-Match, as older ones do not: the header is dropped on the way."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._client.meta.events.register("before-call.s3", self._forget)

    @staticmethod
    def _forget(params: dict[str, Any], **_: Any) -> None:
        params["headers"].pop("If-None-Match", None)


async def test_a_store_that_overwrites_is_refused(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.s3.S3Bucket", Overwriting)
    store = s3_of(s3)
    with pytest.raises(StoreUnfit, match="it overwrites"):
        await check_store(store)
    await store.close()


def behind(proxy: TornProxy, prefix: str) -> ObjectStore:
    """The same objects over a network that tears."""
    return s3_of(S3Server(proxy.url, 0, bucket="tests"), prefix=prefix)


async def test_a_read_that_is_torn_goes_on_where_it_was(s3: S3Server) -> None:
    content = bytes(range(256)) * 30_000
    near = s3_of(s3, prefix="torn-read")
    await near.put_stream("p/x", of(content))
    with torn_proxy(s3.url, [3_000_000, 2_000_000], upwards=False) as proxy:
        far = behind(proxy, "torn-read")
        assert await far.get("p/x") == content
        assert proxy.torn == 2
        await far.close()
    await near.close()


@pytest.mark.parametrize("write", ["put", "put_stream"])
async def test_a_write_whose_answer_was_lost_is_known_to_be_ours(s3: S3Server, write: str) -> None:
    """The repetition finds the object there: it is the one that we wrote, not another's."""
    cuts = [0] if write == "put" else [10**9, 0]  # before a stream it is asked whether the name is free
    with torn_proxy(s3.url, cuts, upwards=False) as proxy:
        far = behind(proxy, f"torn-{write}")
        stored = await (far.put("p/x", b"once") if write == "put" else far.put_stream("p/x", of(b"once")))
        assert (stored.size, proxy.torn) == (4, 1)
        assert await far.get("p/x") == b"once"
        with pytest.raises(ObjectExists):
            await far.put("p/x", b"once")
        await far.close()


async def of(content: bytes) -> AsyncIterator[bytes]:
    yield content


async def test_workers_are_sent_to_where_they_see_the_store() -> None:
    place = S3Place(bucket="b", region="eu-central-1", endpoint="http://10.0.0.5:9000", path_style=True)
    keys = S3Keys(access_key_id="a", secret_access_key="s")
    public = structs.replace(place, public_endpoint="https://objects.example.org")
    for each, url in ((place, "http://10.0.0.5:9000/b/p/x?"), (public, "https://objects.example.org/b/p/x?")):
        bucket = S3Bucket(each, keys)
        assert (await bucket.signed_get("p/x", 0, 1, 60)).url.startswith(url)
        await bucket.close()


async def test_amazons_own_buckets_are_named_in_the_host() -> None:
    bucket = S3Bucket(S3Place(bucket="acme", region="eu-central-1"), S3Keys(access_key_id="a", secret_access_key="s"))
    signed = await bucket.signed_put("p/x", 1, "0" * 64, 60)
    assert signed.url.startswith("https://acme.s3.eu-central-1.amazonaws.com/p/x?")
    await bucket.close()


async def test_wrong_credentials_are_a_failure_that_says_so(s3: S3Server) -> None:
    store = s3_of(s3, secret_access_key="another")
    with pytest.raises(StoreFailed, match="p/x"):
        await store.size("p/x")
    with pytest.raises(StoreFailed, match="SignatureDoesNotMatch"):
        await store.streams.write("p/x", in_chunks(10))
    await store.close()
