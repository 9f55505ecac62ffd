"""Upgrades of Prefect on this host, with a way back: rehearse beside, migrate, replace the server, prove, take back."""
