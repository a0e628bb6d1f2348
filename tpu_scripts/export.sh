#!/usr/bin/env bash
# From a run in the bucket to a released model: pull its weights, convert them, verify, push to the Hub.
# Runs on this machine, on the CPU, and needs no TPU.
#
# Usage: export.sh [OPTIONS] RUN [section.key=value ...]
#
#   RUN                 name of the run: gs://BUCKET/runs/RUN
#   --bucket NAME       TPU_BUCKET       (needed)
#   --output DIR        TPU_OUTPUT       where the run and DIR/RUN/hf go; exports
#   --no-verify         TPU_NO_VERIFY=1  skip the comparison with transformers, which needs torch
#   --push REPO         TPU_PUSH         upload the folder to this Hub repository, private unless --public
#   --public            TPU_PUBLIC=1
#
# Memory: about 6 bytes a parameter. A model may repeat posts that it was trained on: read the model card and
# some completions before you publish. DRY_RUN=1 prints the commands only.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

parse_options "bucket output push" "no-verify public" "$@"
((${#ARGUMENTS[@]} > 0)) || die 2 "expected the name of a run; see export.sh --help"
require bucket
name=${ARGUMENTS[0]}
require_name RUN "$name"
output=${TPU_OUTPUT:-exports}
folder=$output/$name

run mkdir -p "$folder" "$output/data"
# The optimizer is two thirds of a checkpoint, and completions may quote posts: both stay.
run gcloud storage rsync --recursive \
  --exclude='^checkpoints/[0-9]+/optimizer/|^completions/|^tensorboard/' \
  "gs://$TPU_BUCKET/runs/$name" "$folder"
# The model card counts the labels of the training posts.
run gcloud storage rsync --recursive "gs://$TPU_BUCKET/data" "$output/data"
verify=(--verify)
[[ -z ${TPU_NO_VERIFY:-} ]] || verify=()
export JAX_PLATFORMS=cpu
mental_r1 export "$folder" "run.output_dir=$folder" "data.root=$output/data" \
  mesh.data=1 mesh.fsdp=1 mesh.tensor=1 "${ARGUMENTS[@]:1}" "${verify[@]}"
if [[ -n ${TPU_PUSH:-} ]]; then
  public=()
  [[ -z ${TPU_PUBLIC:-} ]] || public=(--public)
  mental_r1 push "$folder/hf" "$TPU_PUSH" "${public[@]}"
fi
