"""Who may do what at Prefect's API: accounts have roles, roles have permissions, routes need one (routes.txt).

Prefect's open-source server has no users. Caddy asks for the password and says whose it was; this package, in the server's own
process, decides what that account may do. It stands there, and not in a proxy of its own, because the path that it looks at is
then the very one by which Prefect chooses a route: two programs that read an address in two ways are how such walls are got past.
And a request is not sent once more through another process.
"""
