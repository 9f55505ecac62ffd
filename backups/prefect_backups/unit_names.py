"""Names of the kit's units that run now and then. Standard library only: a part of the doctor goes to hosts without the tools."""

#: Their failure systemd keeps until they are started again.
UNITS = (
    "prefect-backup.service",
    "prefect-backup-verify.service",
    "prefect-restore.service",
    "prefect-upgrade.service",
)
