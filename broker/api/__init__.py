"""The HTTP API: OpenAI's Files and Batches, our own routes beside them, and the worker wire."""
