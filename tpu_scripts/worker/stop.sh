#!/usr/bin/env bash
# Stop the job of this worker; returns when its checkpoint is saved.
set -euo pipefail
mkdir -p "$HOME/mental-r1/job"
touch "$HOME/mental-r1/job/stopped"
if systemctl is-active --quiet mental-r1-job; then
  sudo systemctl stop mental-r1-job
fi
echo "$(hostname): stopped"
