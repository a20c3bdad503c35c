"""Lists as OpenAI pages them: entries, the ids of the first and last, and whether there are more behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import BaseModel


class Listed(BaseModel):
    """One page. A list of its own names the type of `data`."""

    object: Literal["list"] = "list"
    data: list[Any]
    first_id: str | None
    last_id: str | None
    has_more: bool

    @classmethod
    def of(cls, shown: Sequence[Any], *, has_more: bool, named: str = "id") -> Self:
        """The page that shows these entries; `named` is the field that the next page is asked for by."""
        first, last = (getattr(shown[at], named) if shown else None for at in (0, -1))
        return cls(data=list(shown), first_id=first, last_id=last, has_more=has_more)
