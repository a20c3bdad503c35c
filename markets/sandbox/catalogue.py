"""What the sandbox sells: read from TOML, checked whole, every mistake named with its offer and field."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from decimal import Decimal
from importlib.resources import files
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from markets.offer import AcceleratorKind, LocationTier


class _Model(BaseModel):
    # strict: a price that TOML gives as a float is a mistake, not a price
    model_config = ConfigDict(frozen=True, extra="forbid")


class CatalogueAccelerator(_Model):
    kind: AcceleratorKind = "none"
    name: str = "cpu"
    form: str | None = None
    memory_mib: int = 0
    count: int = 0


class CatalogueOffer(_Model):
    """One line of the price list. `price` is USD per hour; 0 is listed as it is (a broker must not believe it)."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]{0,62}$")
    region: str | None = None
    zone: str | None = None
    country: str | None = Field(default=None, pattern=r"^[A-Z]{2}$")
    subdivision: str | None = None
    tier: LocationTier
    operator: str | None = None
    jurisdictions: tuple[str, ...] | None = None
    pricing: Literal["on_demand", "spot"]
    price: Decimal = Field(ge=0)
    capacity: int = Field(ge=0)
    granularity_s: int = Field(default=1, gt=0)
    minimum_s: int = Field(default=0, ge=0)
    hazard: Decimal | None = Field(default=None, ge=0)
    notice_s: int = Field(default=0, ge=0)
    boot_s: int = Field(default=0, ge=0)
    preempt: bool = False
    confidentiality: Literal["none", "dedicated"] = "none"
    accelerator: CatalogueAccelerator = CatalogueAccelerator()

    @model_validator(mode="before")
    @classmethod
    def _no_floats(cls, values: Mapping[str, object]) -> Mapping[str, object]:
        for name in ("price", "hazard"):
            if isinstance(values.get(name), float):
                raise ValueError(f"{name} = {values[name]} is a float; write it as a string")
        return values


class Catalogue(_Model):
    offers: tuple[CatalogueOffer, ...]

    @model_validator(mode="after")
    def _unique(self) -> Catalogue:
        seen: set[str] = set()
        for offer in self.offers:
            if offer.id in seen:
                raise ValueError(f"offer id {offer.id!r} occurs twice; ids are identities")
            seen.add(offer.id)
        return self


def load(file: Path | None = None) -> Catalogue:
    """The catalogue in `file`, or the built-in one. Raises pydantic.ValidationError or tomllib.TOMLDecodeError."""
    text = file.read_text() if file else (files("markets.sandbox") / "catalogue.toml").read_text()
    return Catalogue.model_validate(tomllib.loads(text))
