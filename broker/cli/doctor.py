"""`doctor`: is everything in place, and if not, what mends it."""

from __future__ import annotations

from broker.cli import exits, options
from broker.cli.connection import connect
from broker.cli.output import document, line, table


def doctor(
    json: options.Json = False,
    data: options.Data = None,
    url: options.Url = None,
    key: options.Key = None,
) -> None:
    """Check the broker and what it stands on. Exit 1 when something is not in order."""

    async def work() -> int:
        async with connect(options.target(data, url, key)) as client:
            found = await client.get("/v1/doctor")
        if json:
            document(found)
        else:
            rows = [
                (check["name"], "ok" if check["ok"] else "NOT OK", check["found"], check["mend"] or "")
                for check in found["checks"]
            ]
            table(("check", "", "found", "to mend it"), rows)
            line("all is in order" if found["ok"] else "something is not in order")
        return exits.OK if found["ok"] else exits.ERROR

    options.run(work())
