#!/usr/bin/env bash
# Make the bucket a folder of this worker; does nothing where it is one already.
#
# Usage: mount.sh BUCKET MOUNT
#
# gcsfuse is a service of its own, so that at a shutdown the job can still save: the job's unit comes
# after it and is stopped before it. Nothing about files is cached: all workers write one checkpoint
# together and must see each other's folders at once.
set -euo pipefail
bucket=$1 mount=$2

if mountpoint -q "$mount"; then
  exit 0
fi
sudo mkdir -p "$mount"
sudo chown "$(id -u):$(id -g)" "$mount"
sudo systemctl reset-failed mental-r1-bucket 2>/dev/null || true
sudo systemd-run --quiet --unit=mental-r1-bucket --uid="$(id -u)" --gid="$(id -g)" \
  --property=After=network-online.target --property=Wants=network-online.target \
  "$(command -v gcsfuse)" --foreground --implicit-dirs \
  --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 "$bucket" "$mount"
for _ in {1..60}; do
  if mountpoint -q "$mount"; then
    exit 0
  fi
  sleep 1
done
echo "error: $(hostname): gs://$bucket did not appear at $mount; does the service account of the TPU" \
  "have the role roles/storage.objectUser on it? journalctl -u mental-r1-bucket says more" >&2
exit 1
