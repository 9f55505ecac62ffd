#!/bin/sh
# The official image's entrypoint starts what it is given and, where nothing is given, a shell.
# (Its EXTRA_PIP_PACKAGES is not here: the kit installs nothing at start.)
if [ "$#" -eq 0 ]; then set -- bash; fi
exec "$@"
