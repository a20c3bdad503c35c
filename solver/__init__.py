"""The plan: which queued work runs on which offer. Pure: a snapshot in, a plan out; no clock, socket or database."""
