"""Buying tokens: what OpenAI-compatible endpoints ask per million, by their own catalogue or by a price card."""
