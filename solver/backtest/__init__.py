"""Recorded spot pools replayed with any policy: what it would have cost, against on-demand and against hindsight."""
