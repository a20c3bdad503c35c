"""FOCUS datasets as CSV and Parquet. Nothing here knows what a column means.

Text that a spreadsheet would take for a formula gets an apostrophe in front in the CSV; Parquet holds it as it is.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ledger.export import safe_cell
from ledger.focus.columns import SCALE, Coded, CodedDecimals, Decimals, FocusColumn, Instants

if TYPE_CHECKING:
    import pyarrow as pa

Piece = Mapping[str, FocusColumn]
_WIDTH = 16  # bytes of a decimal128


class FocusFiles:
    """Open files of one dataset, written piece by piece. A path of None: that file is not wanted.

    Parquet needs pyarrow (the extra `parquet`): without it, opening raises ImportError.
    """

    def __init__(self, names: Sequence[str], *, csv_path: Path | None, parquet_path: Path | None) -> None:
        self._names = tuple(names)
        self._parquet = _ParquetFile(parquet_path) if parquet_path else None
        self._csv_file = csv_path.open("w", newline="", encoding="utf-8") if csv_path else None
        if self._csv_file:
            self._csv = csv.writer(self._csv_file)
            self._csv.writerow(self._names)
        self.rows = 0

    def write(self, piece: Piece) -> None:
        """Append the rows of a piece; it has every column."""
        if self._csv_file:
            made: dict[int, list[str]] = {}  # a column that stands under several names is written out once
            for name in self._names:
                column = piece[name]
                if id(column) not in made:
                    made[id(column)] = _csv_cells(column)
            self._csv.writerows(zip(*(made[id(piece[name])] for name in self._names), strict=True))
        if self._parquet:
            self._parquet.write(self._names, piece)
        self.rows += len(piece[self._names[0]])

    def close(self) -> None:
        if self._csv_file:
            self._csv_file.close()
        if self._parquet:
            self._parquet.close()


def _csv_cells(column: FocusColumn) -> list[str]:
    """Texts made safe and null empty; numbers and times begin with a digit or a minus that is one."""
    if isinstance(column, Coded):
        values = [safe_cell(value) for value in column.values]
        return [values[code] for code in column.codes]
    if isinstance(column, Decimals | CodedDecimals | Instants):
        return ["" if cell is None else cell for cell in column.cells()]
    return [safe_cell(cell) for cell in column.cells()]


class _ParquetFile:
    """A Parquet file whose columns follow from its first piece."""

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet  # noqa: F401, PLC0415 - an optional extra; missing, it is told before anything is written

        self._path = path
        self._writer: Any = None

    def write(self, names: Sequence[str], piece: Piece) -> None:
        import pyarrow as arrow  # noqa: PLC0415 - as above
        from pyarrow import parquet  # noqa: PLC0415 - as above

        made: dict[int, Any] = {}
        codes: dict[int, Any] = {}
        for name in names:
            column = piece[name]
            if id(column) not in made:
                made[id(column)] = arrow_array(column, codes)
        arrays = [made[id(piece[name])] for name in names]
        batch = arrow.RecordBatch.from_arrays(arrays, names=list(names))
        if self._writer is None:
            self._writer = parquet.ParquetWriter(self._path, batch.schema, compression="zstd")
        self._writer.write_batch(batch)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def arrow_array(column: FocusColumn, known_codes: dict[int, Any]) -> pa.Array:
    """decimal128(38,18), timestamp in UTC, or string. `known_codes` keeps what lists of codes became: many columns share one."""
    import numpy  # noqa: PLC0415 - with pyarrow only
    import pyarrow as arrow  # noqa: PLC0415 - as above

    if isinstance(column, Decimals):
        return _decimals(column.values)
    if isinstance(column, CodedDecimals):
        return _decimals(column.distinct).take(arrow.array(_codes(column.codes, known_codes)))
    if isinstance(column, Instants):
        seconds = arrow.array(numpy.asarray(column.values, dtype=numpy.int64))
        return seconds.cast(arrow.timestamp("s")).cast(arrow.timestamp("ms", tz="UTC"))
    if isinstance(column, Coded):
        codes = _codes(column.codes, known_codes)
        values = arrow.array(list(column.values), type=arrow.string())
        # -1 is the last, as in a list
        return values.take(arrow.array(numpy.where(codes < 0, codes + len(column.values), codes)))
    return arrow.array(column.values, type=arrow.string())


def _codes(codes: Sequence[int], known: dict[int, Any]) -> Any:
    import numpy  # noqa: PLC0415 - as above

    if id(codes) not in known:
        known[id(codes)] = numpy.asarray(codes, dtype=numpy.int32)
    return known[id(codes)]


def _decimals(values: Sequence[int | None]) -> pa.Array:
    """From integers to decimal128 by its bytes: through `decimal.Decimal` this alone would take half of an export's time."""
    import numpy  # noqa: PLC0415 - as above
    import pyarrow as arrow  # noqa: PLC0415 - as above

    # prices and quantities recur: each is made once, then counted off
    distinct = list(dict.fromkeys(values))
    if len(distinct) * 4 < len(values):
        numbers = {value: number for number, value in enumerate(distinct)}
        codes = numpy.fromiter(map(numbers.__getitem__, values), dtype=numpy.int32, count=len(values))
        return _decimals(distinct).take(arrow.array(codes))
    missing = [value is None for value in values]
    raw = b"".join([(value or 0).to_bytes(_WIDTH, "little", signed=True) for value in values])
    validity = None
    if True in missing:
        bits = numpy.packbits(~numpy.asarray(missing, dtype=bool), bitorder="little").tobytes()
        validity = arrow.py_buffer(bits)
    return arrow.Array.from_buffers(arrow.decimal128(38, SCALE), len(values), [validity, arrow.py_buffer(raw)])
