"""What all read-side adapters stand on: one HTTP API of a provider, how it is logged in at, and the shape of what it says."""
