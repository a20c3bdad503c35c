"""The demonstration: one real batch, one kill, and a check of what came out."""
