"""Reading bills: FOCUS of any version (AWS, GCP, Azure), AWS cost and usage reports, CSV with a mapping, the sandbox's JSON.

Strict: a number that is none, a time without a date, two currencies, an unknown one; each is named with its line, and no line is
ever dropped to make a file readable (OpenCost #2243 dropped outliers in silence).
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any, Literal, get_args

import msgspec

from ledger.errors import UnknownUnit
from ledger.reconcile.bill import BadBill, Bill, BillFinding, BillLine, LineKind
from ledger.units import unit

Form = Literal["focus", "aws-cur", "csv", "sandbox"]
FORMS: tuple[Form, ...] = get_args(Form)
MOST_FINDINGS = 100
_NULLS = frozenset({"", "NULL", "null", "None", "N/A"})
_KINDS: Mapping[str, LineKind] = {
    "usage": "usage",
    "purchase": "purchase",
    "tax": "tax",
    "credit": "credit",
    "adjustment": "adjustment",
}
# What AWS calls its lines; discounts and refunds are credits to us.
_CUR_KINDS: Mapping[str, LineKind] = {
    "Usage": "usage",
    "DiscountedUsage": "usage",
    "SavingsPlanCoveredUsage": "usage",
    "Tax": "tax",
    "Credit": "credit",
    "Refund": "credit",
    "EdpDiscount": "credit",
    "BundledDiscount": "credit",
    "SavingsPlanNegation": "credit",
    "Fee": "purchase",
    "RIFee": "purchase",
    "SavingsPlanUpfrontFee": "purchase",
    "SavingsPlanRecurringFee": "purchase",
}
# How bills count tokens: "Tokens", "1K Tokens" (AWS, Azure), "1M tokens", "1000000 Tokens" (our own exports).
_TOKENS = re.compile(r"(?:per )?(?P<count>[0-9][0-9,]*)? ?(?P<pack>k|thousand|m|million)? ?tokens?")
_PACKS: Mapping[str, int] = {"": 1, "k": 1_000, "thousand": 1_000, "m": 1_000_000, "million": 1_000_000}
Row = dict[str, str | None]


class Columns(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which columns of a generic CSV mean what; `currency` may be a column or a code such as USD, `tokens` are single ones."""

    resource: str
    amount: str
    currency: str = "USD"
    kind: str | None = None
    hours: str | None = None
    unit_price: str | None = None
    start: str | None = None
    end: str | None = None
    sku: str | None = None
    description: str | None = None
    tokens: str | None = None


def read_bill(
    text: bytes, *, provider: str, form: Form, period: str | None = None, columns: bytes | None = None,
    number: str | None = None,
) -> Bill:  # fmt: skip
    """The file as a bill. `period` is needed where no line has a time, `number` where the file holds several invoices: it is of
    that one. Raises BadBill naming every line that cannot be read."""
    digest = hashlib.sha256(text).hexdigest()[:16]
    if form == "sandbox":
        return _sandbox(text, provider, period, digest)
    rows, names = _rows(text)
    reader = _Reader(provider, form, digest, number)
    if form == "focus":
        reader.require(names, ("BilledCost", "BillingCurrency", "ChargeCategory"))
        reader.read(rows, _focus_line, "BillingCurrency", "InvoiceId")
    elif form == "aws-cur":
        rows, names = ({_snake(k): v for k, v in row.items()} for row in rows), [_snake(name) for name in names]
        reader.require(names, ("line_item_unblended_cost", "line_item_line_item_type", "line_item_currency_code"))
        reader.read(rows, _cur_line, "line_item_currency_code", "bill_invoice_id")
    else:
        wanted = _columns(columns)
        reader.require(names, [wanted.resource, wanted.amount])
        reader.read(rows, lambda number, row: _csv_line(number, row, wanted), wanted.currency, None)
    return reader.bill(period)


class _Reader:
    """Collects lines and everything that is wrong with them."""

    def __init__(self, provider: str, form: Form, digest: str, wanted: str | None) -> None:
        self._provider, self._form, self._digest, self._wanted = provider, form, digest, wanted
        self._lines: list[BillLine] = []
        self._findings: list[BillFinding] = []
        self._currencies: Counter[str] = Counter()
        self._numbers: Counter[str] = Counter()

    def require(self, names: list[str], wanted: Any) -> None:
        missing = [name for name in wanted if name not in names]
        if missing:
            raise BadBill(
                f"this is no {self._form} bill: the columns {', '.join(missing)} are missing; "
                "choose another form, or map the columns"
            )

    def read(
        self,
        rows: Iterator[Row],
        line_of: Callable[[int, Row], BillLine],
        currency: str,
        number: str | None,
    ) -> None:
        for at, row in enumerate(rows, start=2):
            if number and row.get(number):
                self._numbers[str(row[number])] += 1
            if self._wanted is not None and (number is None or row.get(number) != self._wanted):
                continue
            try:
                self._lines.append(line_of(at, row))
                self._currencies[
                    row.get(currency) or (currency if currency.isupper() and len(currency) <= 5 else "")
                ] += 1
            except (ValueError, InvalidOperation) as wrong:
                if len(self._findings) < MOST_FINDINGS:
                    self._findings.append(BillFinding(at, "unreadable", str(wrong)))

    def bill(self, period: str | None) -> Bill:
        if self._findings:
            raise BadBill(f"{len(self._findings)} lines cannot be read", tuple(self._findings))
        if not self._lines and self._wanted is not None:
            told = ", ".join(sorted(self._numbers)[:5]) or "none: its lines have no number of an invoice"
            raise BadBill(f"the file has no invoice {self._wanted}; those in it: {told}")
        if not self._lines:
            raise BadBill("the bill has no lines")
        if len(self._currencies) != 1:
            raise BadBill(
                f"the bill is in several currencies ({', '.join(sorted(self._currencies))}); split it, one each"
            )
        if len(self._numbers) > 1 and self._wanted is None:
            raise BadBill(
                f"the file holds several invoices ({', '.join(sorted(self._numbers)[:5])}); import one after the other, each "
                "with --number"
            )
        return Bill(
            provider=self._provider,
            number=self._wanted or next(iter(self._numbers), f"{self._provider}-{self._digest}"),
            period=_period(self._lines, period),
            currency=known_currency(next(iter(self._currencies))),
            form=self._form,
            lines=tuple(self._lines),
        )


def known_currency(code: str) -> str:
    """Raises BadBill for a code that is no currency."""
    try:
        if not code.isupper() or unit(code).kind == "quantity":
            raise UnknownUnit(f"{code!r} is no code of a currency")
    except UnknownUnit as unknown:
        raise BadBill(f"currency {code!r} is unknown: an ISO 4217 code such as USD is meant") from unknown
    return code


def _period(lines: list[BillLine], told: str | None) -> str:
    months = {_month(line.start_us) for line in lines if line.start_us is not None}
    if told is not None:
        # an invoice may charge for what began the month before; none of it may be of other months only
        if months and told not in months:
            raise BadBill(f"the bill's lines are of {', '.join(sorted(months))}, not of {told}")
        return told
    if len(months) != 1:
        raise BadBill(
            f"the bill does not say which month it is for (its lines are of {sorted(months) or 'no time'}); name it"
        )
    return months.pop()


def _month(micros: int) -> str:
    return datetime.fromtimestamp(micros // 1_000_000, UTC).strftime("%Y-%m")


def _rows(text: bytes) -> tuple[Iterator[Row], list[str]]:
    try:
        decoded = text.decode("utf-8-sig")
    except UnicodeDecodeError as wrong:
        raise BadBill(f"the file is not UTF-8 text (byte {wrong.start}); unpack it, or save it as CSV") from wrong
    reader = csv.DictReader(io.StringIO(decoded, newline=""), strict=True)
    try:
        names = list(reader.fieldnames or ())
    except csv.Error as wrong:
        raise BadBill(f"the file is not CSV: {wrong}") from wrong
    if not names:
        raise BadBill("the file is empty")

    def rows() -> Iterator[Row]:
        try:
            for row in reader:
                if None in row or None in row.values():
                    raise BadBill(f"line {reader.line_num} has another number of cells than the header's {len(names)}")
                yield {name: None if cell in _NULLS else cell for name, cell in row.items()}
        except csv.Error as wrong:
            raise BadBill(f"line {reader.line_num} is not CSV: {wrong}") from wrong

    return rows(), names


def _focus_line(number: int, row: Row) -> BillLine:
    category = row.get("ChargeCategory") or ""
    if category.lower() not in _KINDS:
        raise ValueError(f"ChargeCategory {category!r} is none of FOCUS'")
    is_hours = "hour" in (row.get("PricingUnit") or "").lower() or (row.get("PricingUnit") or "").lower() in (
        "hrs",
        "h",
    )
    return BillLine(
        number=number,
        names=_names(
            row.get("ResourceId"), row.get("ResourceName"), row.get("x_RentalId"), *_tag_values(row.get("Tags"))
        ),
        amount=_decimal(row.get("BilledCost"), "BilledCost"),
        kind=_KINDS[category.lower()],
        hours=_maybe(row.get("PricingQuantity"), "PricingQuantity") if is_hours else None,
        unit_price=_maybe(row.get("ContractedUnitPrice"), "ContractedUnitPrice") if is_hours else None,
        start_us=_time(row.get("ChargePeriodStart"), "ChargePeriodStart"),
        end_us=_time(row.get("ChargePeriodEnd"), "ChargePeriodEnd"),
        sku=row.get("SkuId"),
        description=row.get("ChargeDescription") or "",
        tokens=_tokens(row, "PricingUnit", "PricingQuantity"),
    )


def _cur_line(number: int, row: Row) -> BillLine:
    told = row.get("line_item_line_item_type") or ""
    if told not in _CUR_KINDS:
        raise ValueError(f"line item type {told!r} is none that is known: {', '.join(_CUR_KINDS)}")
    is_hours = (row.get("pricing_unit") or "").lower() in ("hrs", "hours", "hour")
    tags = [cell for name, cell in row.items() if name.startswith(("resource_tags", "resourcetags")) and cell]
    return BillLine(
        number=number,
        names=_names(row.get("line_item_resource_id"), *(each for tag in tags for each in (tag, *_tag_values(tag)))),
        amount=_decimal(row.get("line_item_unblended_cost"), "line_item_unblended_cost"),
        kind=_CUR_KINDS[told],
        hours=_maybe(row.get("line_item_usage_amount"), "line_item_usage_amount") if is_hours else None,
        unit_price=_maybe(row.get("line_item_unblended_rate"), "line_item_unblended_rate") if is_hours else None,
        start_us=_time(row.get("line_item_usage_start_date"), "line_item_usage_start_date"),
        end_us=_time(row.get("line_item_usage_end_date"), "line_item_usage_end_date"),
        sku=row.get("line_item_usage_type"),
        description=row.get("line_item_line_item_description") or "",
        tokens=_tokens(row, "pricing_unit", "line_item_usage_amount"),
    )


def _csv_line(number: int, row: Row, columns: Columns) -> BillLine:
    def cell(name: str | None) -> str | None:
        if name is not None and name not in row:
            raise ValueError(f"there is no column {name!r}")
        return row[name] if name else None

    kind = (cell(columns.kind) or "usage").lower()
    if kind not in _KINDS:
        raise ValueError(f"{columns.kind} {kind!r} is none of {', '.join(_KINDS)}")
    return BillLine(
        number=number,
        names=_names(cell(columns.resource)),
        amount=_decimal(cell(columns.amount), columns.amount),
        kind=_KINDS[kind],
        hours=_maybe(cell(columns.hours), columns.hours or ""),
        unit_price=_maybe(cell(columns.unit_price), columns.unit_price or ""),
        start_us=_time(cell(columns.start), columns.start or ""),
        end_us=_time(cell(columns.end), columns.end or ""),
        sku=cell(columns.sku),
        description=cell(columns.description) or "",
        tokens=_maybe(cell(columns.tokens), columns.tokens or ""),
    )


def _sandbox(text: bytes, provider: str, period: str | None, digest: str) -> Bill:
    try:
        document = json.loads(text, parse_float=Decimal)
        lines = tuple(
            BillLine(
                number=number,
                names=_names(str(each["tag"]), str(each["instance"])),
                amount=_decimal(str(each["amount"]), "amount"),
                kind="usage",
                hours=Decimal(int(each["seconds"])) / 3600,
                start_us=_time(str(each["from"]), "from"),
                end_us=_time(str(each["to"]), "to"),
                sku=str(each["offer"]),
            )
            for number, each in enumerate(document["lines"], start=1)
        )
        total, currency = _decimal(str(document["total"]), "total"), known_currency(str(document["currency"]))
    except (ValueError, KeyError, TypeError) as wrong:
        if isinstance(wrong, BadBill):
            raise
        raise BadBill(f"this is no invoice of the sandbox: {wrong!r}") from wrong
    if not lines:
        raise BadBill("the bill has no lines")
    bill = Bill(provider, f"{provider}-{digest}", _period(list(lines), period), currency, "sandbox", lines)
    if bill.total != total:
        raise BadBill(f"the lines sum to {bill.total}, the invoice says {total}; ask the provider for a whole one")
    return bill


def _columns(text: bytes | None) -> Columns:
    if text is None:
        raise BadBill('a generic CSV needs a mapping: {"resource": COLUMN, "amount": COLUMN, …}')
    try:
        return msgspec.json.decode(text, type=Columns)
    except msgspec.DecodeError as wrong:
        raise BadBill(f"the mapping cannot be read: {wrong}") from wrong


def _snake(name: str) -> str:
    """Both generations of AWS' report: `lineItem/UnblendedCost` and `line_item_unblended_cost`.

    >>> _snake("lineItem/UnblendedCost"), _snake("line_item_usage_amount"), _snake("lineItem/LineItemType")
    ('line_item_unblended_cost', 'line_item_usage_amount', 'line_item_line_item_type')
    """
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.replace("/", "_")).lower()


def _names(*values: str | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(value for value in values if value))


def _tag_values(text: str | None) -> tuple[str, ...]:
    if not text or not text.startswith("{"):
        return ()
    try:
        document = json.loads(text)
    except ValueError as wrong:
        raise ValueError(f"Tags {text[:60]!r} is not JSON: {wrong}") from wrong
    return (
        tuple(str(value) for value in document.values() if isinstance(value, str)) if isinstance(document, dict) else ()
    )


def _decimal(text: str | None, name: str) -> Decimal:
    """Exact, finite, in 64 bits of nanos."""
    try:
        value = Decimal(text or "")
    except InvalidOperation:
        raise ValueError(f"{name} {text!r} is not a number") from None
    if not value.is_finite() or abs(value) > 9_000_000_000:
        raise ValueError(f"{name} {text!r} is no amount of money")
    return value


def _maybe(text: str | None, name: str) -> Decimal | None:
    return None if text is None else _decimal(text, name)


def _tokens(row: Row, unit_column: str, quantity_column: str) -> Decimal | None:
    """Single tokens, whatever the unit packs of them; None where it is no unit of tokens.

    >>> _tokens({"u": "1K Tokens", "q": "2.5"}, "u", "q"), _tokens({"u": "1000000 Tokens", "q": "0.5"}, "u", "q")
    (Decimal('2500.0'), Decimal('500000.0'))
    >>> _tokens({"u": "Tokens", "q": "7"}, "u", "q"), _tokens({"u": "Hrs", "q": "7"}, "u", "q")
    (Decimal('7'), None)
    """
    found = _TOKENS.fullmatch((row.get(unit_column) or "").strip().lower())
    quantity = _maybe(row.get(quantity_column), quantity_column)
    if found is None or quantity is None:
        return None
    return quantity * int((found["count"] or "1").replace(",", "")) * _PACKS[found["pack"] or ""]


def _time(text: str | None, name: str) -> int | None:
    if text is None:
        return None
    try:
        parsed = datetime.fromisoformat(text.strip().replace(" UTC", "+00:00"))
    except ValueError:
        raise ValueError(f"{name} {text!r} is not a time (ISO 8601)") from None
    aware = parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)
    return int(aware.timestamp()) * 1_000_000 + aware.microsecond
