"""Prices that nobody asks an API for: rate cards that a person hands in, and the dated snapshot that ships with the package."""
