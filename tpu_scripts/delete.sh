#!/usr/bin/env bash
# Give the TPUs back: deletes the queued resource and its nodes. The bucket stays.
#
# Usage: delete.sh [OPTIONS]
#
#   --project, --zone, --name    as for create.sh (needed)
#   --yes                        TPU_YES=1: do not ask
#
# A run that is still going is lost back to its newest checkpoint; stop.sh first saves one.
# DRY_RUN=1 prints the command only.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

parse_options "project zone name" "yes" "$@"
((${#ARGUMENTS[@]} == 0)) || die 2 "unexpected argument '${ARGUMENTS[0]}'"
require project zone name
if [[ -z ${TPU_YES:-} && -z $DRY_RUN ]]; then
  printf 'Delete %s and its nodes in %s of project %s? Type the name to confirm: ' \
    "$TPU_NAME" "$TPU_ZONE" "$TPU_PROJECT" >&2
  read -r answer || die 2 "nobody to ask; use --yes"
  [[ $answer == "$TPU_NAME" ]] || die 2 "not confirmed; nothing was deleted"
fi
queue delete --force --quiet
