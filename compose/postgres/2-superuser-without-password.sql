-- Without a password nobody gets in as the superuser but over the socket, which is in the hands of the host's root. Where a
-- server of before connected as the superuser, the role `stack` runs this last: once the new one serves.
ALTER ROLE prefect PASSWORD NULL;
