"""S3 beyond what obstore does: streams that are created once, requests that are signed for others, checksums.

obstore offers no create-only completion of a multipart upload, cannot sign headers, and loses sight of uploads that a crash
cut off; boto3 does all three. Measured on SeaweedFS 4.48 (tests/jobs/test_objects_s3.py); of Amazon's S3 it is documented:
If-None-Match on PutObject and CompleteMultipartUpload, x-amz-checksum-sha256 verified on arrival and told by HeadObject
("unverified against the live service").

Two uploads in parts that are completed in the same instant may both succeed at SeaweedFS, which looks and completes in two
steps. Nothing rests on that: names of streams are unique, or hold a hash of what is in them.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import hashlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit, urlunsplit

import msgspec
import structlog
from obstore.store import S3Store
from ulid import ULID

from jobs.clock import MICROSECONDS
from jobs.errors import ObjectExists, ObjectMissing, StoreFailed
from jobs.garbage import our_name
from jobs.objects import ObjectStore, SignedRequest
from jobs.streams import ABANDONED_S, Chunks

if TYPE_CHECKING:
    from obstore.store import RetryConfig, S3Config

log = structlog.get_logger()

PART_BYTES = 5 * 1024 * 1024  # the least that S3 takes; of at most 10,000 parts: objects up to 52 GB
THREADS = 16
PART_TYPE = "application/octet-stream"
CREATE_ONLY = {"If-None-Match": "*"}
_EXISTS = frozenset({"PreconditionFailed", "412"})
_MISSING = frozenset({"NoSuchKey", "404", "NotFound"})
_MARK = "written-by"  # metadata that tells our object from another's when an answer was lost


class S3Keys(msgspec.Struct, frozen=True, kw_only=True):
    """Credentials that do not change. Without any, the instance's own identity is used (boto3's chain)."""

    access_key_id: str
    secret_access_key: str
    session_token: str | None = None


class S3Place(msgspec.Struct, frozen=True, kw_only=True):
    """Which bucket, where. `endpoint` None is Amazon's own in `region`; `public_endpoint` is how workers reach the same store
    where they see it elsewhere. `prefix` has no slash at its ends; "" is the whole bucket."""

    bucket: str
    region: str
    prefix: str = ""
    endpoint: str | None = None
    public_endpoint: str | None = None
    path_style: bool = False


def s3_store(place: S3Place, keys: S3Keys | None, *, sends_workers: bool) -> ObjectStore:
    """The objects below `place`. `sends_workers`: whether workers may be sent to it with signed requests.

    Raises StoreFailed when there are no credentials.
    """
    bucket = S3Bucket(place, keys)
    retry: RetryConfig = {"max_retries": 4, "retry_timeout": timedelta(seconds=30)}
    return ObjectStore(
        _backend(place, bucket.session, keys, retry),
        bucket,
        creating=_backend(place, bucket.session, keys, {"max_retries": 0, "retry_timeout": timedelta(seconds=30)}),
        direct=bucket if sends_workers else None,
    )


def _backend(place: S3Place, session: Any, keys: S3Keys | None, retry: RetryConfig) -> S3Store:
    from obstore.auth.boto3 import Boto3CredentialProvider  # noqa: PLC0415

    config: S3Config = {"region": place.region, "virtual_hosted_style_request": not place.path_style}
    if place.endpoint is not None:
        # obstore wants the bucket in the host itself where requests are virtual-hosted
        config["endpoint"] = place.endpoint if place.path_style else _in_host(place.endpoint, place.bucket)
    provider = None
    if keys is None:
        try:
            provider = Boto3CredentialProvider(session)
        except ValueError as error:
            raise StoreFailed(
                "no credentials for the object store: set objects.access_key_id and objects.secret_access_key, or run "
                "where the instance has an identity"
            ) from error
    else:
        config["access_key_id"], config["secret_access_key"] = keys.access_key_id, keys.secret_access_key
        if keys.session_token is not None:
            config["session_token"] = keys.session_token
    return S3Store(
        place.bucket,
        prefix=place.prefix or None,
        config=config,
        client_options={
            "allow_http": (place.endpoint or "").startswith("http://"),
            "connect_timeout": "10s",
            "read_timeout": "60s",
            "timeout": "3600s",  # of a whole answer, however slowly it is read
        },
        retry_config=retry,
        credential_provider=provider,
    )


def _in_host(endpoint: str, bucket: str) -> str:
    parts = urlsplit(endpoint)
    return urlunsplit(parts._replace(netloc=f"{bucket}.{parts.netloc}"))


class S3Bucket:
    """Streams (`jobs.streams.Streams`) and signed requests (`jobs.objects.Direct`) of one bucket."""

    def __init__(self, place: S3Place, keys: S3Keys | None) -> None:
        import boto3.session  # noqa: PLC0415

        self._place = place
        given: dict[str, Any] = {}
        if keys is not None:
            given = {
                "aws_access_key_id": keys.access_key_id,
                "aws_secret_access_key": keys.secret_access_key,
                "aws_session_token": keys.session_token,
            }
        self.session = boto3.session.Session(region_name=place.region, **given)
        self._client = self._opened(place.endpoint)
        self._public = self._client if place.public_endpoint is None else self._opened(place.public_endpoint)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="s3")

    def _opened(self, endpoint: str | None) -> Any:
        from botocore.config import Config  # noqa: PLC0415

        return self.session.client(
            "s3",
            endpoint_url=endpoint,
            config=Config(
                signature_version="s3v4",
                s3={"addressing_style": "path" if self._place.path_style else "virtual"},
                retries={"mode": "standard", "max_attempts": 5},
                max_pool_connections=THREADS,
                connect_timeout=10,
                read_timeout=60,
                ignore_configured_endpoint_urls=True,
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    # --- streams ------------------------------------------------------------------------------------------------------

    async def write(self, key: str, chunks: Chunks, *, in_parts: bool = False) -> None:
        """See Streams: one request for what fits a part, else a multipart upload that is completed create-only."""
        pieces = _pieces(chunks)
        first = await anext(pieces)
        second = await anext(pieces, None)
        mark = str(ULID())
        if second is None and not in_parts:
            await self._create(
                "put_object", key, mark, Body=first, ContentMD5=_md5(first), Metadata={_MARK: mark}, **_create_only()
            )
            return
        upload = (await self._call("create_multipart_upload", key, Metadata={_MARK: mark}))["UploadId"]
        is_complete = False
        try:
            parts = await self._send(key, upload, _again(first, second, pieces))
            await self._create(
                "complete_multipart_upload",
                key,
                mark,
                UploadId=upload,
                MultipartUpload={"Parts": parts},
                **_create_only(),
            )
            is_complete = True
        finally:
            if not is_complete:
                await self._abort(key, upload)

    async def _send(self, key: str, upload: str, pieces: Chunks) -> list[dict[str, Any]]:
        """Each piece goes out while the next one is gathered."""
        parts: list[dict[str, Any]] = []
        sending: asyncio.Task[dict[str, Any]] | None = None
        try:
            async for piece in pieces:
                if sending is not None:
                    parts.append(await sending)
                sending = asyncio.create_task(self._part(key, upload, len(parts) + 1, piece))
            if sending is not None:
                parts.append(await sending)
        finally:
            if sending is not None:
                await asyncio.wait((sending,))
        return parts

    async def _part(self, key: str, upload: str, number: int, piece: bytes) -> dict[str, Any]:
        sent = await self._call(
            "upload_part", key, UploadId=upload, PartNumber=number, Body=piece, ContentMD5=_md5(piece)
        )
        return {"PartNumber": number, "ETag": sent["ETag"]}

    async def _create(self, operation: str, key: str, mark: str, **arguments: Any) -> None:
        """A request that gives the name. An answer that got lost is not repeated blindly: the mark says whose object it is."""
        try:
            await self._call(operation, key, **arguments)
        except (ObjectExists, ObjectMissing, StoreFailed):
            if not await self._is_marked(key, mark):
                raise

    async def _is_marked(self, key: str, mark: str) -> bool:
        try:
            found = await self._call("head_object", key)
        except (ObjectMissing, StoreFailed):
            return False  # not known to be ours: what went wrong before is what the caller hears
        return bool(found.get("Metadata", {}).get(_MARK) == mark)

    async def _abort(self, key: str, upload: str) -> None:
        try:
            await self._call("abort_multipart_upload", key, UploadId=upload)
        except (ObjectMissing, StoreFailed) as failure:
            # what is left of it is collected a day later; the error that brought us here is the one to tell
            log.warning("object.upload_left", key=key, upload=upload, error=str(failure))

    async def remove_abandoned(self, now_us: int) -> int:
        """See Streams: multipart uploads that were begun a day ago. They cost money and are in no list of objects."""
        before_us, removed = now_us - ABANDONED_S * MICROSECONDS, 0
        marker: dict[str, Any] = {}
        while True:
            page = await self._ask("list_multipart_uploads", Prefix=self._name(""), **marker)
            # without a prefix the bucket's other users' uploads are listed, too
            ours = (found for found in page.get("Uploads", ()) if our_name(self._key(found["Key"])) is not None)
            for found in ours:
                if found["Initiated"].timestamp() * MICROSECONDS < before_us:
                    await self._abort(self._key(found["Key"]), found["UploadId"])
                    removed += 1
            if not page.get("IsTruncated"):
                return removed
            marker = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    async def close(self) -> None:
        """Ends the threads; requests under way are waited for."""
        await asyncio.to_thread(self._threads.shutdown)

    # --- for others ---------------------------------------------------------------------------------------------------

    async def signed_get(self, key: str, start: int, stop: int, ttl_s: int) -> SignedRequest:
        """See Direct. The range is signed: another one, or none, is refused with 403."""
        wanted = f"bytes={start}-{stop - 1}"
        return SignedRequest(url=await self._signed("get_object", key, ttl_s, Range=wanted), headers={"Range": wanted})

    async def signed_put(self, key: str, size: int, sha256: str, ttl_s: int) -> SignedRequest:
        """See Direct. Create-only, length and checksum are signed: leaving one out is 403, other bytes are 400."""
        checksum = base64.b64encode(bytes.fromhex(sha256)).decode()
        url = await self._signed(
            "put_object",
            key,
            ttl_s,
            ContentLength=size,
            ContentType=PART_TYPE,
            ChecksumSHA256=checksum,
            **_create_only(),
        )
        return SignedRequest(
            url=url, headers={"Content-Type": PART_TYPE, "x-amz-checksum-sha256": checksum, **CREATE_ONLY}
        )

    async def sha256(self, key: str) -> str | None:
        """See Direct. Checksums of objects in parts are of the parts' checksums, not of the content: those are no answer."""
        found = await self._call("head_object", key, ChecksumMode="ENABLED")
        told = found.get("ChecksumSHA256")
        if told is None or found.get("ChecksumType", "FULL_OBJECT") != "FULL_OBJECT" or "-" in told:
            return None
        return base64.b64decode(told).hex()

    async def _signed(self, operation: str, key: str, ttl_s: int, **parameters: Any) -> str:
        # in a thread: the instance's credentials may have to be renewed, which asks its metadata service
        wanted = {"Bucket": self._place.bucket, "Key": self._name(key), **parameters}
        sign = functools.partial(self._public.generate_presigned_url, operation, Params=wanted, ExpiresIn=ttl_s)
        return cast(str, await self._in_thread(sign, operation, key))

    # --- asking -------------------------------------------------------------------------------------------------------

    def _name(self, key: str) -> str:
        return f"{self._place.prefix}/{key}" if self._place.prefix else key

    def _key(self, name: str) -> str:
        return name.removeprefix(f"{self._place.prefix}/") if self._place.prefix else name

    async def _call(self, operation: str, key: str, **arguments: Any) -> dict[str, Any]:
        return await self._ask(operation, Key=self._name(key), **arguments)

    async def _ask(self, operation: str, **arguments: Any) -> dict[str, Any]:
        ask = functools.partial(getattr(self._client, operation), Bucket=self._place.bucket, **arguments)
        return cast("dict[str, Any]", await self._in_thread(ask, operation, str(arguments.get("Key", ""))))

    async def _in_thread(self, ask: Callable[[], Any], operation: str, key: str) -> Any:
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, ask)
        except ClientError as refused:
            code = str(refused.response.get("Error", {}).get("Code", ""))
            if code in _EXISTS:
                raise ObjectExists(f"object {key} exists; objects are immutable") from refused
            if code in _MISSING:
                raise ObjectMissing(f"no object {key}") from refused
            raise StoreFailed(f"the object store refused {operation} of {key}: {refused}") from refused
        except BotoCoreError as failure:
            raise StoreFailed(f"the object store did not answer {operation} of {key}: {failure}") from failure


def _create_only() -> dict[str, str]:
    return {"IfNoneMatch": "*"}


def _md5(piece: bytes) -> str:
    return base64.b64encode(hashlib.md5(piece, usedforsecurity=False).digest()).decode()


async def _pieces(chunks: Chunks) -> AsyncIterator[bytes]:
    """The stream in pieces of PART_BYTES; the last is shorter, and perhaps the only one and empty."""
    gathered, size, given = list[bytes](), 0, False
    async for chunk in chunks:
        rest = memoryview(chunk)
        while size + len(rest) >= PART_BYTES:
            take = PART_BYTES - size
            yield b"".join((*gathered, rest[:take]))
            gathered, size, given, rest = [], 0, True, rest[take:]
        if rest:
            gathered.append(bytes(rest))
            size += len(rest)
    if size or not given:
        yield b"".join(gathered)


async def _again(first: bytes, second: bytes | None, pieces: AsyncIterator[bytes]) -> Chunks:
    yield first
    if second is not None:
        yield second
    async for piece in pieces:
        yield piece
