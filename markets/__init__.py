"""Offers: what can be rented where, at which price, and the renting and releasing of it."""
