"""What FOCUS 1.4 says of its columns, read from `model_1_4.json` (CC-BY-4.0, attribution inside), and the shape of 1.2."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal

Dataset = Literal["Cost and Usage", "Contract Commitment", "Billing Period", "Invoice Detail"]
Version = Literal["1.4", "1.2"]
COST_AND_USAGE: Dataset = "Cost and Usage"

# 1.4 dropped them; 1.2 has them as mandatory.
ONLY_1_2 = ("ProviderName", "PublisherName")
SINCE_1_3 = frozenset(
    {
        "AllocatedMethodDetails",
        "AllocatedMethodId",
        "AllocatedResourceId",
        "AllocatedResourceName",
        "AllocatedTags",
        "CommitmentProgramEligibilityDetails",
        "ContractApplied",
        "HostProviderName",
        "InvoiceDetailId",
        "ServiceProviderName",
    }
)


@dataclass(frozen=True, slots=True)
class Column:
    """One column as the specification has it. `kind` is Decimal, Date/Time, String or JSON, `form` its value format."""

    name: str
    level: str
    kind: str
    form: str
    is_nullable: bool
    allowed: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None


@cache
def columns(dataset: Dataset = COST_AND_USAGE) -> Mapping[str, Column]:
    """The columns of a 1.4 dataset by name, in the specification's (alphabetical) order."""
    return {
        name: Column(
            name=name,
            level=each["level"],
            kind=each["type"],
            form=each["format"],
            is_nullable=each["nullable"],
            allowed=tuple(each.get("allowed", ())),
            low=(each.get("range") or [None, None])[0],
            high=(each.get("range") or [None, None])[1],
        )
        for name, each in _document()["datasets"][dataset].items()
    }


@cache
def subcategory_parents() -> Mapping[str, str]:
    """Which ServiceCategory each ServiceSubcategory belongs to."""
    return dict(_document()["service_subcategory_parents"])


@cache
def columns_1_2() -> Mapping[str, Column]:
    """The columns of Cost and Usage 1.2: those of 1.4 without what came since, with the two that went."""
    kept = {name: column for name, column in columns().items() if name not in SINCE_1_3}
    kept |= {name: Column(name, "Mandatory", "String", "Unspecified", False) for name in ONLY_1_2}
    return dict(sorted(kept.items()))


def columns_of(version: Version) -> Mapping[str, Column]:
    """The columns of Cost and Usage in this version."""
    return columns() if version == "1.4" else columns_1_2()


@cache
def _document() -> dict[str, Any]:
    text = resources.files("ledger.focus").joinpath("model_1_4.json").read_text(encoding="utf-8")
    document: dict[str, Any] = json.loads(text)
    return document
