"""Write docs/metrics.md from the catalogue: `python -m scripts.metrics_doc`. A test holds the two together."""

from __future__ import annotations

from pathlib import Path

from broker.metrics.catalogue import CATALOGUE, Family

FILE = Path(__file__).resolve().parents[1] / "docs" / "metrics.md"

HEAD = """# Metrics

`GET /metrics` answers in Prometheus's text format to a key with the role operator in all projects, because it is of all of them
together:

```yaml
scrape_configs:
  - job_name: broker
    authorization: { credentials_file: /etc/prometheus/broker.key }
    # made with: broker keys create prometheus --role operator --all-projects
    static_configs: [{ targets: ["broker:8080"] }]
```

No label holds an id, a project or anything that a person typed. A scrape makes a constant number of queries, over what is
open, listed, or new since the last scrape.

- *state* is counted in the database: every replica says the same, so take `max by (…)`, not `sum`.
- *process* is what this process did since it started, or sees: `sum` over replicas.

Alert rules are in `deploy/prometheus/alerts.yaml`, a Grafana dashboard is `deploy/grafana/broker.json`. Beside the metrics
below there are the `process_*` of the Prometheus client: CPU seconds, memory, open files, start time.

Lines per second: `max(rate(broker_lines_total{outcome="completed"}[5m]))`. Commits refused:
`sum by (outcome) (rate(broker_commits_total{outcome!~"committed.*|replayed"}[5m]))`. What an hour costs now:
`max by (market) (broker_rate_usd_per_hour)`.

| metric | kind | labels | of | meaning |
| --- | --- | --- | --- | --- |
"""


def render() -> str:
    return HEAD + "".join(_row(family) for family in CATALOGUE)


def _row(family: Family) -> str:
    labels = ", ".join(f"`{label}`" for label in family.labels)
    return f"| `{family.name}` | {family.kind} | {labels} | {family.origin} | {family.help} |\n"


if __name__ == "__main__":
    FILE.write_text(render())
