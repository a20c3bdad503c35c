"""Every metric that there is: /metrics, docs/metrics.md, and the tests of both are made from this list.

Names are `broker_<noun>_<unit>`. Labels have few, known values; never an id, a project, or what a person typed, so the
number of series does not grow with what is submitted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]
# state: counted in the database at the scrape, equal at every replica. process: what this process did or sees.
Origin = Literal["state", "process"]


@dataclass(frozen=True, slots=True)
class Family:
    """One metric. A counter's name ends in `_total`."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    origin: Origin = "state"


CATALOGUE: tuple[Family, ...] = (
    Family("broker_batches", "gauge", "Batches by status", ("status",)),
    Family("broker_lines_total", "counter", "Request lines by outcome", ("outcome",)),
    Family("broker_tokens_total", "counter", "Metered tokens by direction", ("direction",)),
    Family("broker_queue_lines", "gauge", "Lines without an answer, of batches under way, by state of their shard: "
           "pending (no worker has them) or leased", ("state",)),
    Family("broker_queue_shards", "gauge", "Shards of batches under way by state; leased ones are the running leases",
           ("state",)),
    Family("broker_queue_oldest_seconds", "gauge", "Age of the oldest batch that has not ended; 0 without one"),
    Family("broker_deadline_nearest_seconds", "gauge", "Seconds until the first batch under way expires; absent "
           "without one"),
    Family("broker_waiting_batches", "gauge", "Batches that cannot be placed, by what they wait on", ("cause",)),
    Family("broker_waiting_oldest_seconds", "gauge", "How long the longest of them has been waiting", ("cause",)),
    Family("broker_rentals", "gauge", "Machines that are paid for or about to be, by market and state",
           ("market", "state")),
    Family("broker_rentals_over_total", "counter", "Rentals that are over, by market and how: ended, failed (never "
           "started), lost", ("market", "state")),
    Family("broker_rentals_unsettled", "gauge", "Rentals that are over and not yet booked to the end"),
    Family("broker_workers", "gauge", "Agents on open rentals by state", ("state",)),
    Family("broker_worker_silence_seconds", "gauge", "How long the most silent agent that should be heard has been "
           "silent; 0 without one"),
    Family("broker_rate_usd_per_hour", "gauge", "What the running machines cost an hour", ("market",)),
    Family("broker_spend_usd_total", "counter", "Accrued cost, net of corrections; a float, the exact amount is the "
           "ledger's", ("market",)),
    Family("broker_held_usd", "gauge", "Money set aside for open rentals and not yet used"),
    Family("broker_offers", "gauge", "Offers by market: usable, sold_out, stale, quarantined", ("market", "state")),
    Family("broker_price_age_seconds", "gauge", "Age of the oldest price among the listed offers, by the market's own "
           "clock", ("market",)),
    Family("broker_market_poll_age_seconds", "gauge", "Seconds since the market's last good answer", ("market",)),
    Family("broker_market_poll_failing", "gauge", "1 when the market's newest poll failed", ("market",)),
    Family("broker_market_account_changed", "gauge", "1 while the house's login is of another account than the one that "
           "its machines run in: nothing is rented, listed or released", ("market",)),
    Family("broker_webhooks", "gauge", "Webhooks: enabled, failing (enabled, nothing but failures lately), disabled",
           ("state",)),
    Family("broker_webhook_deliveries", "gauge", "Events for webhooks that are not yet forgotten, by outcome",
           ("outcome",)),
    Family("broker_events_waiting", "gauge", "Events that the deliver loop has not seen yet"),
    Family("broker_break_glass", "gauge", "Break-glass exceptions of compliance: proposed, in_force", ("state",)),
    Family("broker_anomalies", "gauge", "Anomalies in the books that were found in the last 7 days", ("rule",)),
    Family("broker_leases_total", "counter", "Leases granted to workers", origin="process"),
    Family("broker_commits_total", "counter", "Workers' commits by outcome; all but committed and "
           "committed_superseded were refused, or had been answered before (replayed)", ("outcome",), "process"),
    Family("broker_part_bytes_total", "counter", "Bytes of parts that count", origin="process"),
    Family("broker_orphans_removed_total", "counter", "Objects removed because no row needs them", origin="process"),
    Family("broker_orphans_removed_bytes_total", "counter", "Bytes of such objects", origin="process"),
    Family("broker_plans_total", "counter", "Plans by stage of the fallback chain and by what ended the search",
           ("stage", "stopped_by"), "process"),
    Family("broker_plan_solve_seconds", "histogram", "Seconds from snapshot to plan", origin="process"),
    Family("broker_plan_gap_ratio", "gauge", "How far the newest plan's cost may be above the cheapest possible, as a "
           "part of its cost", origin="process"),
    Family("broker_plan_refused_total", "counter", "Plans that the independent checker refused, by stage", ("stage",),
           "process"),
    Family("broker_loop_seconds_total", "counter", "Seconds spent in each control loop", ("loop",), "process"),
    Family("broker_loop_runs_total", "counter", "Runs of each control loop", ("loop",), "process"),
    Family("broker_loop_failures_total", "counter", "Runs that failed, defects included", ("loop",), "process"),
    Family("broker_loop_lag_seconds", "gauge", "How long ago the loop should have ended a run; 0 when on time, and when "
           "another broker runs it", ("loop",), "process"),
    Family("broker_leader", "gauge", "1 when this broker decides for all that share its database; of those one does",
           origin="process"),
    Family("broker_http_requests_total", "counter", "HTTP answers by route and status", ("method", "route", "status"),
           "process"),
    Family("broker_http_request_seconds", "histogram", "Seconds until the answer was prepared", ("route",), "process"),
    Family("broker_http_requests_open", "gauge", "Requests that are being answered now, event streams included",
           origin="process"),
    Family("broker_database_connections", "gauge", "Connections of this process's pool by state: used, idle",
           ("state",), "process"),
    Family("broker_disk_free_bytes", "gauge", "Free bytes where the data folder is", origin="process"),
    Family("broker_build_info", "gauge", "Always 1; says which version runs", ("version",), "process"),
)  # fmt: skip

NAMED = {family.name: family for family in CATALOGUE}
