#!/usr/bin/env bash
# Show the state of the request, of the job on every worker, and how far the run is.
#
# Usage: status.sh [OPTIONS]
#
#   --project, --zone, --name    as for create.sh (needed)
#   --ssh                        as for setup.sh
#   --run NAME, --bucket NAME    also show the checkpoints and the last metrics of this run
#
# DRY_RUN=1 prints the commands only.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

parse_options "project zone name ssh run bucket" "" "$@"
((${#ARGUMENTS[@]} == 0)) || die 2 "unexpected argument '${ARGUMENTS[0]}'"
if [[ -n ${TPU_RUN:-} ]]; then require project zone name bucket; else require project zone name; fi

state=$(queued_state)
[[ -n $DRY_RUN ]] || echo "request $TPU_NAME: $state"
if [[ $state == ACTIVE ]]; then
  on_workers all all "$(worker_script state.sh)" || echo "some workers do not answer" >&2
fi
if [[ -n ${TPU_RUN:-} ]]; then
  folder=gs://$TPU_BUCKET/runs/$TPU_RUN
  run gcloud storage ls "$folder/checkpoints/" || echo "no checkpoint yet" >&2
  run gcloud storage cat --range=-8000 "$folder/metrics.jsonl" | tail -n 1 || echo "no metrics yet" >&2
fi
