"""A provider of its own: a separate process, spoken to over HTTP only, that rents local processes and bills for them."""
