"""Backup of a broker's data folder and database, and restoring it elsewhere."""
