#!/usr/bin/env bash
# The job itself, run by systemd: the program, its log, a copy of the log in the bucket, its exit status.
# The words of start.sh, from MOUNT on, are in ~/mental-r1/job/words.
set -uo pipefail
job=$HOME/mental-r1/job
mapfile -d '' -t words <"$job/words"
mount=${words[0]} run=${words[1]} start=${words[2]} verb=${words[3]}
saved=$mount/logs/$run/$start/$(hostname).log

save_log() {
  mkdir -p "$(dirname "$saved")" && cp "$job/log" "$saved"
}

# systemd sends SIGTERM to everything in the service; this shell stays to write the status.
trap : TERM
: >"$job/log"
(
  trap 'exit 0' TERM
  while true; do
    sleep 60 &
    wait $!
    save_log
  done
) &
copier=$!

"$HOME/mental-r1/venv/bin/mental-r1" "$verb" "$mount/recipes/$run.yaml" "${words[@]:4}" \
  >>"$job/log" 2>&1 &
program=$!
# The signal cuts `wait` short while the program is still saving, so wait until it is gone; bash keeps
# its status.
while kill -0 "$program" 2>/dev/null; do
  wait "$program"
done
wait "$program"
status=$?

kill "$copier" 2>/dev/null
echo "exit status $status" >>"$job/log"
save_log
echo "$status" >"$job/status"
exit "$status"
