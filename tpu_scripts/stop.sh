#!/usr/bin/env bash
# Stop the run on all workers cleanly: it saves a checkpoint first. The TPUs stay, and cost, until
# delete.sh.
#
# Usage: stop.sh [OPTIONS]
#
#   --project, --zone, --name    as for create.sh (needed)
#   --ssh                        as for setup.sh
#
# The train.sh command again resumes it. DRY_RUN=1 prints the command only.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

parse_options "project zone name ssh" "" "$@"
((${#ARGUMENTS[@]} == 0)) || die 2 "unexpected argument '${ARGUMENTS[0]}'"
require project zone name
on_workers all all "$(worker_script stop.sh)"
