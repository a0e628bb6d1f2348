#!/usr/bin/env bash
# Prepare all workers: this repository at one revision, its packages at pinned versions, the bucket as a
# folder; then check that all devices are there and that a sum over all of them is right.
#
# Usage: setup.sh [OPTIONS]
#
#   --project, --zone, --name    as for create.sh (needed)
#   --accelerator, --slices      as for create.sh (needed, 1): how many devices there must be
#   --bucket NAME       TPU_BUCKET       with hierarchical namespace; data.sh --make-bucket makes one (needed)
#   --revision REV      TPU_REVISION     commit, tag or branch of this clone; HEAD
#   --mount DIR         TPU_MOUNT        where the bucket appears on the workers; /mnt/mental-r1
#   --ssh WAY           TPU_SSH          external (usual), internal or iap
#
# The source goes to gs://BUCKET/source/COMMIT.tar.gz, so changes that are not committed are left out.
# Running it again is safe. DRY_RUN=1 prints the commands only.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# devices_of ACCELERATOR: devices that JAX shows for one slice; the names of v4 and v5p count cores.
devices_of() {
  local number=${1##*-}
  [[ $number =~ ^[1-9][0-9]*$ ]] || die 2 "an accelerator ends in a number, for example v6e-32; got '$1'"
  case $1 in
    v4-* | v5p-*) echo $((number / 2)) ;;
    *) echo "$number" ;;
  esac
}

parse_options "project zone name accelerator slices bucket revision mount ssh" "" "$@"
((${#ARGUMENTS[@]} == 0)) || die 2 "unexpected argument '${ARGUMENTS[0]}'"
require project zone name accelerator bucket
devices=$(($(devices_of "$TPU_ACCELERATOR") * ${TPU_SLICES:-1}))
commit=$(git -C "$REPOSITORY" rev-parse --verify --quiet "${TPU_REVISION:-HEAD}^{commit}") ||
  die 2 "'${TPU_REVISION:-HEAD}' is no revision of a git clone in $REPOSITORY; the workers get a commit"
[[ -n ${TPU_REVISION:-} || -z $(git -C "$REPOSITORY" status --porcelain --untracked-files=no) ]] ||
  echo "warning: changes that are not committed stay here; the workers get $commit" >&2

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
archive=$folder/$commit.tar.gz
run git -C "$REPOSITORY" archive --format=tar.gz --output="$archive" "$commit"
run gcloud storage cp --no-clobber "$archive" "gs://$TPU_BUCKET/source/$commit.tar.gz"

source_folder=${WORKER_SCRIPTS%/tpu_scripts/worker}
fetch="rm -rf $source_folder && mkdir -p $source_folder"
fetch+=" && gcloud storage cat $(quote "gs://$TPU_BUCKET/source/$commit.tar.gz") | tar -xz -C $source_folder"
on_workers all all "$fetch && $(worker_script setup.sh "$TPU_BUCKET" "$TPU_MOUNT")"
on_workers all all \
  "mental-r1/venv/bin/python $WORKER_SCRIPTS/check_devices.py --devices $devices"
[[ -n $DRY_RUN ]] || echo "$TPU_NAME: $devices devices, revision $commit"
