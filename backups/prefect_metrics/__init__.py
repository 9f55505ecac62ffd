"""What no exporter has, as Prometheus text: flow runs, workers, backups, and the doctor's findings as numbers."""
