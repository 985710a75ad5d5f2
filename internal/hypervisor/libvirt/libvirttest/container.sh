#!/bin/sh
# What runs in a container of the tests: it counts its starts, ends by itself when
# there is a file /off, and, unless it is stubborn, when it is asked to.
rm -f /off
n=$(cat /boots 2>/dev/null || echo 0)
[ -e /stubborn ] || trap 'exit 0' TERM
echo $((n + 1)) >/boots.tmp && mv /boots.tmp /boots
while [ ! -e /off ]; do sleep 0.05; done
