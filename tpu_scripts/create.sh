#!/usr/bin/env bash
# Ask for TPUs: creates a queued resource, and with --wait stays until it is ACTIVE.
#
# Usage: create.sh [OPTIONS]
#
#   --project ID        TPU_PROJECT      Google Cloud project (needed)
#   --zone ZONE         TPU_ZONE         for example us-east5-a (needed)
#   --name NAME         TPU_NAME         of the queued resource (needed)
#   --accelerator TYPE  TPU_ACCELERATOR  v5litepod-8, v5p-32, v6e-32, ... (needed)
#   --runtime VERSION   TPU_RUNTIME      software version; derived from the accelerator
#   --slices N          TPU_SLICES       more than 1: multislice, joined over the data-centre network
#   --spot              TPU_SPOT=1       cheap, may be taken away at any time
#   --reserved          TPU_RESERVED=1   from a reservation of the project
#   --service-account A TPU_SERVICE_ACCOUNT  identity of the workers; must read and write the bucket
#   --wait              TPU_WAIT=1       look every TPU_POLL seconds (30) until ACTIVE
#
# Without --spot and --reserved the request is on demand. DRY_RUN=1 prints the commands only.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# runtime_of ACCELERATOR
runtime_of() {
  case $1 in
    v2-* | v3-* | v4-*) echo tpu-ubuntu2204-base ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) die 2 "no software version is known for accelerator '$1'; give one with --runtime" ;;
  esac
}

# wait_until_active: returns when ACTIVE, ends the script when that cannot come any more.
wait_until_active() {
  local state last=
  while true; do
    state=$(queued_state)
    [[ $state == "$last" ]] || echo "$(date -u +%H:%M:%SZ) $TPU_NAME: $state" >&2
    last=$state
    case $state in
      ACTIVE) return ;;
      FAILED)
        queue describe '--format=yaml(state)' >&2
        die 1 "the request failed; the lines above say why (often: no quota for $TPU_ACCELERATOR in" \
          "$TPU_ZONE, or a type that the zone does not have). Delete it with delete.sh before asking again."
        ;;
      SUSPENDING | SUSPENDED)
        die 1 "the TPUs were taken away (a spot request was preempted, or somebody deleted them)." \
          "A suspended request never comes back: delete.sh, then create.sh."
        ;;
      DELETING | ABSENT) die 1 "there is no such request any more; somebody deleted it" ;;
    esac
    pause
  done
}

parse_options "project zone name accelerator runtime slices service-account" "spot reserved wait" "$@"
((${#ARGUMENTS[@]} == 0)) || die 2 "unexpected argument '${ARGUMENTS[0]}'"
require project zone name accelerator
require_name --name "$TPU_NAME"
[[ -z ${TPU_SPOT:-} || -z ${TPU_RESERVED:-} ]] || die 2 "--spot and --reserved exclude each other"
slices=${TPU_SLICES:-1}
[[ $slices =~ ^[1-9][0-9]*$ ]] || die 2 "--slices must be a positive number, got '$slices'"
runtime=${TPU_RUNTIME:-$(runtime_of "$TPU_ACCELERATOR")}

flags=(--accelerator-type="$TPU_ACCELERATOR" --runtime-version="$runtime")
if ((slices > 1)); then
  flags+=(--node-count="$slices" --node-prefix="$TPU_NAME")
else
  flags+=(--node-id="$TPU_NAME")
fi
[[ -z ${TPU_SPOT:-} ]] || flags+=(--spot)
[[ -z ${TPU_RESERVED:-} ]] || flags+=(--reserved)
[[ -z ${TPU_SERVICE_ACCOUNT:-} ]] || flags+=(--service-account="$TPU_SERVICE_ACCOUNT")
queue create "${flags[@]}"
[[ -z ${TPU_WAIT:-} ]] || wait_until_active
