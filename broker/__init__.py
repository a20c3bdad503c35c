"""The control plane: settings, database, HTTP API, command line, control loops, composition root."""
