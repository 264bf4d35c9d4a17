#!/bin/sh
# expect.sh STATUS PATTERN COMMAND...: the command ends with this exit status, and prints something that has the pattern.
wanted=$1 pattern=$2
shift 2
output=$("$@" 2>&1)
status=$?
printf '%s\n' "$output"
if [ "$status" -ne "$wanted" ]; then
    echo "exit status $status, not $wanted"
    exit 1
fi
printf '%s\n' "$output" | grep -E -q -e "$pattern" || { echo "no match for: $pattern" && exit 1; }
