"""Tables of facts that markets do not say themselves: accelerators, regions, operators, and a dated snapshot of prices."""
