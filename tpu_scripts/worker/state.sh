#!/usr/bin/env bash
# Print one line: `job on HOST: running`, `finished`, `stopped` (by stop.sh), `failed STATUS` or `absent`.
set -euo pipefail
job=$HOME/mental-r1/job

if systemctl is-active --quiet mental-r1-job; then
  state=running
elif [[ -f $job/stopped ]]; then
  state=stopped
elif [[ ! -f $job/status ]]; then
  state=absent # never started, or the machine went down under it
elif [[ $(<"$job/status") == 0 ]]; then
  state=finished
else
  state="failed $(<"$job/status")"
fi
echo "job on $(hostname): $state"
