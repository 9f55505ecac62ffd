"""prefect-watch: looks at this server each minute, by the doctor's checks, and tells a person what is wrong and when it is well again."""
