"""The bodies of `/v1/uploads`, as at OpenAI."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from broker.api.shapes import Compatible, ExpiresAfter, File
from jobs.uploads import MAX_PARTS


class UploadCreate(Compatible):
    bytes: int = Field(ge=1, description="length of the whole file")
    filename: str = Field(min_length=1, max_length=1_000)
    mime_type: str = Field(max_length=255)
    purpose: str = Field(max_length=64, description="`batch`")
    expires_after: ExpiresAfter | None = None


class UploadComplete(Compatible):
    part_ids: list[str] = Field(min_length=1, max_length=MAX_PARTS, description="all parts, in order")
    md5: str | None = Field(
        default=None, pattern=r"^[0-9A-Fa-f]{32}$", description="the MD5 of the whole file, 32 hexadecimal digits"
    )


class Upload(BaseModel):
    """OpenAI's upload object; `file` is set once it is completed."""

    id: str
    object: Literal["upload"] = "upload"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: Literal["pending", "completed", "cancelled", "expired"]
    file: File | None = None


class UploadPart(BaseModel):
    id: str
    object: Literal["upload.part"] = "upload.part"
    created_at: int
    upload_id: str
