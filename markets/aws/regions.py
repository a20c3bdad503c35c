"""Where AWS's regions are, and who operates them: the location facts of every offer.

Source: AWS documentation, "Regions and Availability Zones" (checked 2026-11-27). A region's zones are all in one country;
its subdivision is named only where the documentation names the state or city. Local and Wavelength Zones lie elsewhere
(`us-east-1-bue-1a` is in Argentina) and are never offered. Regions that are not listed here have no location.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

SOURCE = "AWS documentation: Regions and Availability Zones"
OPERATOR = "Amazon Web Services"
# Where the operator's parent can be compelled, wherever the machine is.
PARENT_COUNTRY = "US"


@dataclass(frozen=True, slots=True)
class Place:
    """ISO 3166-1 alpha-2 and, where it is known, ISO 3166-2."""

    country: str
    subdivision: str | None = None

    @property
    def jurisdictions(self) -> tuple[str, ...]:
        """Where the operator of a machine there can be compelled."""
        return tuple(sorted({self.country, PARENT_COUNTRY}))


PLACES: Mapping[str, Place] = MappingProxyType(
    {
        "us-east-1": Place("US", "US-VA"),
        "us-east-2": Place("US", "US-OH"),
        "us-west-1": Place("US", "US-CA"),
        "us-west-2": Place("US", "US-OR"),
        "ca-central-1": Place("CA", "CA-QC"),
        "ca-west-1": Place("CA", "CA-AB"),
        "mx-central-1": Place("MX"),
        "sa-east-1": Place("BR", "BR-SP"),
        "eu-central-1": Place("DE", "DE-HE"),
        "eu-central-2": Place("CH", "CH-ZH"),  # not a member of the EU
        "eu-north-1": Place("SE"),
        "eu-south-1": Place("IT"),
        "eu-south-2": Place("ES"),
        "eu-west-1": Place("IE"),
        "eu-west-2": Place("GB"),  # not a member of the EU
        "eu-west-3": Place("FR", "FR-IDF"),
        "af-south-1": Place("ZA", "ZA-WC"),
        "ap-east-1": Place("HK"),
        "ap-east-2": Place("TW"),
        "ap-northeast-1": Place("JP"),
        "ap-northeast-2": Place("KR"),
        "ap-northeast-3": Place("JP"),
        "ap-south-1": Place("IN"),
        "ap-south-2": Place("IN"),
        "ap-southeast-1": Place("SG"),
        "ap-southeast-2": Place("AU", "AU-NSW"),
        "ap-southeast-3": Place("ID"),
        "ap-southeast-4": Place("AU", "AU-VIC"),
        "ap-southeast-5": Place("MY"),
        "ap-southeast-7": Place("TH"),
        "il-central-1": Place("IL"),
        "me-central-1": Place("AE"),
        "me-south-1": Place("BH"),
    }
)
