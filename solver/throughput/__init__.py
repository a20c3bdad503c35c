"""Tokens a second of a model on accelerators that it was never measured on: a roofline, corrected by what was measured."""
