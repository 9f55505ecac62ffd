"""The tool behind prefect-doctor: the checks of this server, worst first, each with what to do."""
