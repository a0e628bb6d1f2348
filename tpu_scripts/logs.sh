#!/usr/bin/env bash
# Show what the run prints: live from the workers, or what was saved in the bucket.
#
# Usage: logs.sh [OPTIONS]
#
#   --project, --zone, --name    as for create.sh (needed)
#   --ssh                        as for setup.sh
#   --worker N|all      TPU_WORKER       which worker; 0
#   --slice N|all       TPU_SLICE        of which slice; 0
#   --lines N           TPU_LINES        the last so many lines; 100
#   --follow            TPU_FOLLOW=1     go on until Ctrl-C
#   --saved             TPU_SAVED=1      from gs://BUCKET/logs/RUN, all starts and hosts; needs --bucket and
#                                        --run, and no TPUs
#
# DRY_RUN=1 prints the command only.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

parse_options "project zone name ssh worker slice lines bucket run" "follow saved" "$@"
((${#ARGUMENTS[@]} == 0)) || die 2 "unexpected argument '${ARGUMENTS[0]}'"
lines=${TPU_LINES:-100}
[[ $lines =~ ^[0-9]+$ ]] || die 2 "--lines must be a number, got '$lines'"
if [[ -n ${TPU_SAVED:-} ]]; then
  require bucket run
  run gcloud storage cat --display-url "gs://$TPU_BUCKET/logs/$TPU_RUN/**"
else
  require project zone name
  follow=
  [[ -z ${TPU_FOLLOW:-} ]] || follow=" --follow=name --retry"
  on_workers "${TPU_SLICE:-0}" "${TPU_WORKER:-0}" "tail -n $lines$follow mental-r1/job/log"
fi
