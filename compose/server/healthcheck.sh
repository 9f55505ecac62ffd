#!/bin/sh
# Docker's health check of the server: repeats what the resident watchdog (health.py) has found, and starts nothing for
# it. While the server starts it waits, so that a slow machine is not kept busy with health checks; Docker calls that
# "starting" until compose.yml's timeout.
finding=${1:-/tmp/health}
while :; do
	test ! -r "$finding" || read -r until word reason <"$finding"
	read -r now _ </proc/uptime
	if test "${now%.*}" -gt "${until:-${now%.*}}"; then
		echo "the watchdog has not looked at the server any more"
		exit 1
	fi
	case ${word:-starting} in
	well) exit 0 ;;
	starting) sleep 1 ;;
	*)
		echo "$reason"
		exit 1
		;;
	esac
done
