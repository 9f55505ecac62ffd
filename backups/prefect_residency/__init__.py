"""prefect-doctor residency: what leaves this host while it is watched, and for what reason.

packets.py reads what tcpdump captures, contents.py what names are in it, seen.py keeps where it went, reasons.py knows from the host's own
configuration where it may go, and cli.py puts them together.
"""
