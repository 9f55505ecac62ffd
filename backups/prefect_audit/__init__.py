"""Who did what at this Prefect server: the lines that its process writes, kept in files beside the journal.

compose/server/access/ writes them, one for each request that changes something and for each that was refused.
"""
