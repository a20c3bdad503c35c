"""What finance adds to the books: how accounts map to an ERP's, invoices with what they did not explain, and what people said
of anomalies. What a person typed lives here and not in the sealed books (contract C13)."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, LargeBinary, UniqueConstraint
from sqlmodel import Field, SQLModel

from broker.tables import micros


class AccountMapRow(SQLModel, table=True):
    """A version of the account mapping for the ERP journal; the newest holds. Versions are never changed."""

    __tablename__ = "broker_account_map"
    version: int = Field(primary_key=True)
    body: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    created_us: int = micros()
    created_by: str


class InvoiceRow(SQLModel, table=True):
    """A provider's invoice that was imported once: known by the file's digest and by the provider's own number.

    `body` is what was matched, as JSON (`ledger.reconcile.bill`); the file itself stays with finance.
    """

    __tablename__ = "broker_invoice"
    __table_args__ = (
        UniqueConstraint("provider", "sha256", name="broker_invoice_by_file"),
        UniqueConstraint("provider", "number", name="broker_invoice_by_number"),
    )
    id: str = Field(primary_key=True)
    provider: str = Field(index=True)
    number: str
    period: str
    sha256: str
    form: str
    currency: str
    total_nano: int = micros()
    body: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    imported_us: int = micros()
    imported_by: str


class InvoiceException(SQLModel, table=True):
    """What an invoice charges and the books do not explain: it waits for a person.

    `state` is open, accepted (we pay it: it is a cost), or disputed (the provider is asked to give it back).
    """

    __tablename__ = "broker_invoice_exception"
    id: str = Field(primary_key=True)
    invoice: str = Field(index=True)
    provider: str
    subject: str
    code: str
    nano: int = micros()
    explanation: str
    state: str = Field(index=True)
    decided_by: str | None = None
    decided_us: int | None = micros(nullable=True)
    decision: str | None = None


class AnomalyLabel(SQLModel, table=True):
    """What a person said of an anomaly: true, false (alarm), or planned."""

    __tablename__ = "broker_anomaly_label"
    id: str = Field(primary_key=True)
    label: str
    note: str
    labelled_us: int = micros()
    labelled_by: str


class AnomalyRow(SQLModel, table=True):
    """An anomaly that the broker's own look found, once: its id is the same each time. `body` is it as JSON, as it was then."""

    __tablename__ = "broker_anomaly"
    id: str = Field(primary_key=True)
    scope: str
    rule: str
    at_us: int = micros()
    found_us: int = Field(sa_column=Column(BigInteger, nullable=False, index=True))
    body: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
