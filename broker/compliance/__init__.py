"""Compliance: how residency policies come into force, and what is kept of every decision."""
