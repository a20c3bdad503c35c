"""Batches: lines, shards, leases, commits, results, and the object store they live in."""
