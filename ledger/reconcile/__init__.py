"""Reconciliation: a provider's bill against what was accrued; every difference is explained or waits for a person. Pure."""
