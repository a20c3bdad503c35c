"""The tables of secrets: data keys, and what lies under them. Nothing here can be read without a key-encryption key."""

from __future__ import annotations

from sqlalchemy import JSON, Column, LargeBinary
from sqlmodel import Field, SQLModel

from broker.tables import micros


class DataKeyRow(SQLModel, table=True):
    """A data key wrapped by the key-encryption key `kek`. Each owner has one."""

    __tablename__ = "broker_data_key"
    id: str = Field(primary_key=True)
    owner: str = Field(unique=True)
    kek: str = Field(index=True)
    wrapped: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    created_us: int = micros()
    wrapped_us: int = micros()


class CredentialRow(SQLModel, table=True):
    """What a project logs in with at a market. `names` are the names of the values; the values are sealed together.
    `account` is what the provider calls the account that they are of; None: not asked yet, or it did not say."""

    __tablename__ = "broker_credential"
    project: str = Field(primary_key=True)
    market: str = Field(primary_key=True)
    version: int
    names: list[str] = Field(sa_column=Column(JSON, nullable=False))
    data_key: str
    sealed: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    created_us: int = micros()
    updated_us: int = micros()
    updated_by: str
    account: str | None = None


class AuthorityRow(SQLModel, table=True):
    """The certificate authority for workers: one for all replicas; its private key (PKCS#8) is sealed."""

    __tablename__ = "broker_authority"
    name: str = Field(primary_key=True)
    certificate: str
    data_key: str
    sealed: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    created_us: int = micros()


class CertificateRow(SQLModel, table=True):
    """A worker's client certificate, by its serial number (hex without leading zeros)."""

    __tablename__ = "broker_certificate"
    serial: str = Field(primary_key=True)
    rental: str = Field(index=True)
    public_key_sha256: str
    pem: str
    issued_us: int = micros()
    expires_us: int = micros()
    revoked_us: int | None = micros(nullable=True)
    revoked_reason: str | None = None


class ObjectKeyRow(SQLModel, table=True):
    """The key that the objects of `owner` (a file, an upload, a batch) are sealed with, itself sealed with the project's data
    key. Destroyed: `sealed` is gone, and `decision` is the leaf of the stream `decisions` that says so. `key_sha256` names
    the key and tells nothing of it."""

    __tablename__ = "broker_object_key"
    owner: str = Field(primary_key=True)
    project: str = Field(index=True)
    data_key: str
    sealed: bytes | None = Field(default=None, sa_column=Column(LargeBinary, nullable=True))
    key_sha256: str
    created_us: int = micros()
    destroyed_us: int | None = micros(nullable=True, index=True)
    decision: int | None = micros(nullable=True)
