"""Offers as files: CSV and Parquet. Columns are those of `broker offers --json`; money stays exact decimal text."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from broker.api.shapes import Offer

COLUMNS = tuple(Offer.model_fields)


def as_csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """RFC 4180. Lists are joined by `; `, None is empty. A cell that a spreadsheet would run is quoted with an apostrophe."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    writer.writerows([[_cell(row[name]) for name in COLUMNS] for row in rows])
    return text.getvalue().encode()


def as_parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """One row group. Raises ModuleNotFoundError without pyarrow (the extra `parquet`)."""
    # Imported where it is used: pyarrow is an extra, and takes half a second.
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    types = {
        "location_evidence": pa.list_(pa.string()), "operator_jurisdictions": pa.list_(pa.string()),
        "gpu_count": pa.int32(), "capacity": pa.int32(), "observed_at": pa.int64(), "notice_s": pa.int32(),
        "granularity_s": pa.int32(), "minimum_s": pa.int32(), "quarantined": pa.bool_(),
    }  # fmt: skip
    schema = pa.schema([(name, types.get(name, pa.string())) for name in COLUMNS])
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows], schema=schema), sink, compression="zstd")
    return sink.getvalue()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    text = "; ".join(value) if isinstance(value, list) else str(value)
    return f"'{text}" if text[:1] in ("=", "+", "@", "\t", "\r") else text
