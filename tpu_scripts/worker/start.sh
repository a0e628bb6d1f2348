#!/usr/bin/env bash
# Start the job of this worker, detached: a systemd service, so it survives the end of the ssh session,
# and at a shutdown it gets SIGTERM and time to save a checkpoint. Replaces a job that still runs.
#
# Usage: start.sh BUCKET MOUNT RUN START VERB [section.key=value ...]
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
bucket=$1 mount=$2
job=$HOME/mental-r1/job

if systemctl is-active --quiet mental-r1-job; then
  sudo systemctl stop mental-r1-job
fi
sudo systemctl reset-failed mental-r1-job 2>/dev/null || true
"$here/mount.sh" "$bucket" "$mount"
rm -rf "$job"
mkdir -p "$job"
# In a file, because systemd would expand `$` and `%` in a command line.
printf '%s\0' "${@:2}" >"$job/words"
sudo systemd-run --quiet --collect --unit=mental-r1-job --uid="$(id -u)" --gid="$(id -g)" \
  --setenv="HOME=$HOME" --property=After=mental-r1-bucket.service --property=TimeoutStopSec=600 \
  --property=LimitMEMLOCK=infinity --property=LimitNOFILE=1048576 \
  bash "$here/job.sh"
echo "$(hostname): started"
