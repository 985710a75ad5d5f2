#!/bin/sh
# Verifies the systemd unit: prints nothing and ends with 0 if systemd has
# nothing to say about it. Needs systemd-analyze; installs nothing, and does not
# need shaman to be installed.
set -eu

if ! command -v systemd-analyze >/dev/null 2>&1; then
	echo "verify.sh: systemd-analyze is missing; install systemd to verify the unit" >&2
	exit 1
fi

here=$(cd "$(dirname "$0")" && pwd)
unit=shaman-monitor.service
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

# systemd wants the program to be there. A copy of the unit starts one that is.
program=$(command -v true)
sed "s|^ExecStart=/usr/bin/shaman-monitor\$|ExecStart=$program|" "$here/$unit" >"$tmp/$unit"
if [ "$(grep -c "^ExecStart=$program\$" "$tmp/$unit")" != 1 ]; then
	echo "verify.sh: $unit does not have the one line ExecStart=/usr/bin/shaman-monitor" >&2
	exit 1
fi

# The manual pages are looked for in the system's manual; they are not there yet.
if said=$(systemd-analyze verify --man=no "$tmp/$unit" 2>&1) && [ -z "$said" ]; then
	exit 0
fi
printf '%s\n' "$said" >&2
echo "verify.sh: systemd-analyze has something to say about $unit" >&2
exit 1
