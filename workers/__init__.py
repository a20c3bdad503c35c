"""Getting a worker onto a rented machine, and the agent that runs there."""
