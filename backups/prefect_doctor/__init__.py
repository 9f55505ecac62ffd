"""The tool behind prefect-doctor: what is not as it should be on this server, worst first, each with the command that mends it."""
