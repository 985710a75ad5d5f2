# For the other scripts of this directory; not a script by its name.

# tid prints the number that tgtd has for the target, or nothing. It ends the
# script when tgtd cannot be asked. A tgtd that is not there exports nothing.
tid() {
	if ! out=$(tgtadm --lld iscsi --op show --mode target 2>&1); then
		if [ -z "$(pidof tgtd)" ]; then return 0; fi
		echo "tgtd does not answer: $out" >&2
		exit 69
	fi
	printf '%s\n' "$out" | sed -n 's/^Target \([0-9]*\): \(.*\)$/\1 \2/p' | while read -r n name; do
		if [ "$name" = "$SHAMAN_CONF_TARGET" ]; then echo "$n"; fi
	done
}
