"""The planner at scale: classes of works on time-shared capacity, a linear program with prices, and its way back to integers.

Works of one pool, policy and deadline bucket are one divisible *class*. A class buys hours at *resources*: an offer rented anew,
or running rentals of one pool. An offer's instances serve several pools one after another, so its capacity is hours before each
deadline. Floats live here alone: `settle` makes the plan exact.
"""
