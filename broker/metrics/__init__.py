"""What Prometheus is told: the catalogue of metrics, counts as things happen, and the state at each scrape."""
