"""A throwaway Debian 13 VPS in a container: systemd as PID 1, sshd, a Docker engine of its own, reboots.

Standard library only, so that `./scripts/demo` can use it on a machine that has nothing but Python 3.11.
"""
