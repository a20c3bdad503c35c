"""FOCUS, the FinOps Open Cost and Usage Specification: the books as the rows that finance's tools read."""
