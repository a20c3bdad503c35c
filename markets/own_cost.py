"""What an hour of an own machine costs: bought once, powered, cooled, housed. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

HOURS_A_YEAR = Decimal(8766)  # with leap years
HOURS_A_MONTH = HOURS_A_YEAR / 12
_PLACES = Decimal("1e-9")


@dataclass(frozen=True, slots=True)
class OwnCost:
    """`capex_usd` is written off evenly over `life_years` of `used_percent` of the hours (an idle hour earns nothing).
    `power_w` is drawn at work, `pue` what the building draws for each watt of it, `opex_usd_month` housing, network and hands."""

    capex_usd: Decimal
    life_years: Decimal
    power_w: Decimal
    usd_per_kwh: Decimal
    pue: Decimal = Decimal("1.4")
    opex_usd_month: Decimal = Decimal(0)
    used_percent: Decimal = Decimal(100)

    def components(self, *, slots: int = 1) -> Mapping[str, Decimal]:
        """USD an hour and slot, to the nano-dollar: `capex`, `power`, `opex`; what is 0 is left out. Raises ValueError for a
        life, a use or a number of slots that is not positive.

        >>> cost = OwnCost(Decimal(240_000), Decimal(4), Decimal(10_200), Decimal("0.12"), Decimal("1.3"), Decimal(900))
        >>> [f"{name} {amount:.3f}" for name, amount in cost.components().items()]
        ['capex 6.845', 'power 1.591', 'opex 1.232']
        """
        if self.life_years <= 0 or self.used_percent <= 0 or slots < 1:
            raise ValueError(
                f"own host: life_years {self.life_years}, used_percent {self.used_percent} and slots {slots} must be positive"
            )
        used = self.used_percent / 100
        hourly = {
            "capex": self.capex_usd / (self.life_years * HOURS_A_YEAR) / used,
            "power": self.power_w / 1000 * self.pue * self.usd_per_kwh,
            "opex": self.opex_usd_month / HOURS_A_MONTH / used,
        }
        parts = {name: (amount / slots).quantize(_PLACES) for name, amount in hourly.items()}
        return {name: amount for name, amount in parts.items() if amount > 0}
