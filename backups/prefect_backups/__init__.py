"""Backups of a self-hosted Prefect that are proven by restoring them, and the way back on the bad night."""
