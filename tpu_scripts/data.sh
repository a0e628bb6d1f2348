#!/usr/bin/env bash
# Check the data sets and bring them to the bucket; with --model also a model from the Hub.
#
# Usage: data.sh [OPTIONS] RECIPE DATA
#
#   RECIPE, DATA        the recipe, and the folder with one sub-folder a set, as for `mental-r1 data`
#   --bucket NAME       TPU_BUCKET       (needed)
#   --make-bucket       TPU_MAKE_BUCKET=1  make the bucket first, in the region of --zone
#   --project, --zone                    needed with --make-bucket
#   --model ID          TPU_MODEL        Hub model to put into gs://BUCKET/models/ID; train.sh with
#                                        model.path=/mnt/mental-r1/models/ID then needs no Hub
#
# The posts go to gs://BUCKET/data: give access to nobody who may not read them. The bucket needs a
# hierarchical namespace, for only there is renaming a folder (the last act of saving a checkpoint) one
# step. DRY_RUN=1 prints the commands only.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# check_bucket: a flat bucket could show half a checkpoint as a whole one.
check_bucket() {
  local answer
  if [[ -n $DRY_RUN ]]; then
    run gcloud storage buckets describe "gs://$TPU_BUCKET" --raw '--format=value(hierarchicalNamespace.enabled)'
    return
  fi
  answer=$(run gcloud storage buckets describe "gs://$TPU_BUCKET" --raw \
    '--format=value(hierarchicalNamespace.enabled)') || die 1 "gs://$TPU_BUCKET cannot be read; see above"
  [[ ${answer,,} == true ]] ||
    die 2 "gs://$TPU_BUCKET has no hierarchical namespace; use another bucket (--make-bucket makes one)"
}

parse_options "project zone bucket model" "make-bucket" "$@"
((${#ARGUMENTS[@]} == 2)) || die 2 "expected RECIPE and DATA, got ${#ARGUMENTS[@]} arguments"
recipe=${ARGUMENTS[0]} data=${ARGUMENTS[1]}
if [[ -n ${TPU_MAKE_BUCKET:-} ]]; then require bucket project zone; else require bucket; fi
[[ -f $recipe ]] || die 2 "there is no recipe '$recipe'"
[[ -d $data ]] || die 2 "there is no folder '$data'"

mental_r1 data "$recipe" "data.root=$data"
if [[ -n ${TPU_MAKE_BUCKET:-} ]]; then
  run gcloud storage buckets create "gs://$TPU_BUCKET" --project="$TPU_PROJECT" \
    --location="${TPU_ZONE%-*}" --uniform-bucket-level-access --enable-hierarchical-namespace \
    --public-access-prevention
fi
check_bucket
run gcloud storage rsync --recursive "$data" "gs://$TPU_BUCKET/data"
if [[ -n ${TPU_MODEL:-} ]]; then
  folder=$(mktemp -d)
  trap 'rm -rf "$folder"' EXIT
  run hf download "$TPU_MODEL" --local-dir "$folder" --exclude 'original/*'
  run gcloud storage rsync --recursive --exclude='^\.cache/' "$folder" "gs://$TPU_BUCKET/models/$TPU_MODEL"
fi
