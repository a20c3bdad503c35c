"""All cases. Apart from `cases`, which they import themselves."""

from __future__ import annotations

import importlib
from pathlib import Path

from tests.markets.sources.cases import Case

CASES: tuple[Case, ...] = tuple(
    importlib.import_module(f"tests.markets.sources.{file.stem}").CASE
    for file in sorted(Path(__file__).parent.glob("case_*.py"))
)
