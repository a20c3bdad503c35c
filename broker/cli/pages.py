"""Lists that the broker gives page by page, as one document."""

from __future__ import annotations

from typing import Any

from broker.cli.client import Client, Query


async def pages(
    client: Client, path: str, *, limit: int, query: Query | None = None, last: str = "last_id", most: int = 100
) -> dict[str, Any]:
    """At most `limit` entries of a list, joined as if they were one page. `last` is the field in which a page says where
    it ends and the next begins, `most` how many the broker gives at once."""
    found: dict[str, Any] = {"object": "list", "data": [], last: None, "has_more": True}
    after: Query = query or {}
    while found["has_more"] and len(found["data"]) < limit:
        page = await client.get(path, {**after, "limit": min(most, limit - len(found["data"]))})
        found["data"] += page["data"]
        found["has_more"] = page["has_more"] and page[last] is not None
        found[last] = found[last] if page[last] is None else page[last]
        after = {**after, "after": found[last]}
    return found
