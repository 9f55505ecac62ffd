"""prefect-watch: runs the doctor's checks each minute, and sends alerts when a problem begins and when it is resolved."""
