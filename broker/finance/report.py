"""A report: sections of rows, the same for terminal, JSON, CSV and HTML. Amounts are exact decimal strings."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, field

from ledger.export import csv_text, safe_cell

Row = Sequence[str]


@dataclass(frozen=True, slots=True)
class Section:
    """`note` says what the rows mean, or that there are none."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Row]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """`facts` are its headline: what, of when, how much."""

    title: str
    facts: Sequence[tuple[str, str]]
    sections: Sequence[Section] = field(default_factory=list)


_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;color:#1c1e21;margin:2rem auto;max-width:70rem;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}table{border-collapse:collapse;width:100%}
th,td{padding:.25rem .6rem;border-bottom:1px solid #d8dbe0;text-align:left}
td.n{text-align:right;font-variant-numeric:tabular-nums}
p.note{color:#5a6068}dl{display:grid;grid-template-columns:max-content 1fr;gap:.2rem 1rem}dt{color:#5a6068}dd{margin:0}
"""


def as_html(report: Report) -> str:
    """One page without scripts or anything from elsewhere; every text is escaped."""
    parts = [
        "<!doctype html>", '<html lang="en"><head><meta charset="utf-8">', f"<title>{_text(report.title)}</title>",
        f"<style>{_STYLE}</style></head><body><h1>{_text(report.title)}</h1><dl>",
        *(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in report.facts), "</dl>",
    ]  # fmt: skip
    for section in report.sections:
        parts.append(f"<h2>{_text(section.title)}</h2>")
        if section.note:
            parts.append(f'<p class="note">{_text(section.note)}</p>')
        if section.rows:
            head = "".join(f'<th scope="col">{_text(name)}</th>' for name in section.columns)
            parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>")
            parts += [f"<tr>{''.join(_cell(cell) for cell in row)}</tr>" for row in section.rows]
            parts.append("</tbody></table>")
    return "\n".join([*parts, "</body></html>\n"])


def as_csv(report: Report) -> str:
    """All sections in one table: section, then its cells with the names of their columns."""
    rows: list[Sequence[str]] = [("section", "row", "column", "value")]
    rows += [("report", "1", safe_cell(name), _csv_cell(value)) for name, value in report.facts]
    rows += [
        (safe_cell(section.title), str(number), safe_cell(name), _csv_cell(cell))
        for section in report.sections
        for number, row in enumerate(section.rows, start=1)
        for name, cell in zip(section.columns, row, strict=True)
    ]
    return csv_text(rows)


def _csv_cell(text: str) -> str:
    return text if _is_number(text) else safe_cell(text)


def _is_number(text: str) -> bool:
    return bool(text) and text.lstrip("-").replace(".", "", 1).isdigit()


def _text(text: str) -> str:
    return html.escape(text)


def _cell(text: str) -> str:
    return f'<td class="n">{_text(text)}</td>' if _is_number(text) else f"<td>{_text(text)}</td>"
