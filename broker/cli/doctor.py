"""`doctor`: is everything in place, and if not, what mends it."""

from __future__ import annotations

from broker.cli import exits
from broker.cli.client import Client
from broker.cli.options import Target
from broker.cli.output import document, line, table


def doctor(target: Target) -> None:
    """Check the broker and what it stands on. Exit 1 when something is not in order."""

    async def work(client: Client) -> int:
        found = await client.get("/v1/doctor")
        if target.json:
            document(found)
        else:
            rows = [
                (check["name"], "ok" if check["ok"] else "NOT OK", check["found"], check["mend"] or "")
                for check in found["checks"]
            ]
            table(("check", "", "found", "to mend it"), rows)
            line("all is in order" if found["ok"] else "something is not in order")
        return exits.OK if found["ok"] else exits.ERROR

    target.run(work)
