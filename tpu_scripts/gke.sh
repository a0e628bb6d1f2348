#!/usr/bin/env bash
# The same run on Google Kubernetes Engine: fills in gke/jobset.yaml and applies it, or gives the job to XPK.
# JobSet restarts the run after a preemption, so there is no supervisor.
#
# Usage: gke.sh [OPTIONS] RECIPE [section.key=value ...]
#
#   --name NAME         TPU_NAME         of the JobSet (needed)
#   --bucket NAME       TPU_BUCKET       as for setup.sh; data.sh fills it (needed)
#   --image IMAGE       TPU_IMAGE        of the program, in Artifact Registry (needed)
#   --topology T        TPU_TOPOLOGY     of one slice, as for `mental-r1 plan`: v6e:4x8 (needed)
#   --slices, --run, --verb, --max-restarts, --mount   as for train.sh
#   --spot              TPU_SPOT=1       on spot nodes
#   --service-account A TPU_SERVICE_ACCOUNT  Kubernetes account with access to the bucket; default
#   --build             TPU_BUILD=1      build and push the image first (docker), from --revision (HEAD)
#   --print             TPU_PRINT=1      print the manifest and do nothing else
#   --xpk               TPU_XPK=1        start through XPK; needs also --project, --zone, --cluster and
#                                        --storage, the bucket as attached to the cluster at the mount
#
# The cluster needs JobSet, the Cloud Storage FUSE driver and a TPU node pool a slice. See, follow and
# delete with `kubectl get jobset`, `kubectl logs -f -l jobset.sigs.k8s.io/jobset-name=NAME` and
# `kubectl delete jobset NAME`. DRY_RUN=1 prints the commands only.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# describe_topology v5p:2x4x4: sets label, chips_per_host, hosts (of a slice) and tpu_type (as XPK says).
describe_topology() {
  local family=${1%%:*} shape=${1#*:} chips=1 size
  [[ $1 =~ ^[a-z0-9]+:[1-9][0-9]*(x[1-9][0-9]*){1,2}$ ]] ||
    die 2 "--topology reads FAMILY:AxB or FAMILY:AxBxC, for example v6e:4x8; got '$1'"
  for size in ${shape//x/ }; do chips=$((chips * size)); done
  case $family in
    v4) label=tpu-v4-podslice tpu_type=v4-$((2 * chips)) ;;
    v5e) label=tpu-v5-lite-podslice tpu_type=v5litepod-$chips ;;
    v5p) label=tpu-v5p-slice tpu_type=v5p-$((2 * chips)) ;;
    v6e) label=tpu-v6e-slice tpu_type=v6e-$chips ;;
    *) die 2 "--topology: expected the family v4, v5e, v5p or v6e, got '$family'" ;;
  esac
  chips_per_host=$((chips < 4 ? chips : 4))
  # Eight chips of the small families come as one machine.
  [[ $family != v5e && $family != v6e || $shape != 2x4 ]] || chips_per_host=8
  hosts=$((chips / chips_per_host))
}

# json WORD...: a list that YAML reads too.
json() {
  local word list=
  for word; do
    word=${word//\\/\\\\}
    list+="${list:+, }\"${word//\"/\\\"}\""
  done
  echo "[$list]"
}

# manifest: the template with everything filled in.
manifest() {
  local text key selector words=() word
  text=$(<"$SCRIPTS/gke/jobset.yaml")
  # Kubernetes reads `$(NAME)` in a command as a variable, and `$$` as `$`.
  for word in "${command[@]}"; do words+=("${word//\$/\$\$}"); done
  selector="{cloud.google.com/gke-tpu-accelerator: $label, cloud.google.com/gke-tpu-topology: ${TPU_TOPOLOGY#*:}"
  [[ -z ${TPU_SPOT:-} ]] || selector+=', cloud.google.com/gke-spot: "true"'
  selector+="}"
  local -A values=(
    [NAME]=$TPU_NAME [SLICES]=$slices [HOSTS]=$hosts [CHIPS_PER_HOST]=$chips_per_host
    [MAX_RESTARTS]=$max_restarts [SERVICE_ACCOUNT]=${TPU_SERVICE_ACCOUNT:-default}
    [NODE_SELECTOR]=$selector [IMAGE]=$TPU_IMAGE [COMMAND]=$(json "${words[@]}")
    [MOUNT]=$TPU_MOUNT [BUCKET]=$TPU_BUCKET
  )
  for key in "${!values[@]}"; do
    text=${text//"{{$key}}"/"${values[$key]}"}
  done
  echo "$text"
}

# build_image: from a commit, not from the working tree.
build_image() {
  local commit
  commit=$(git -C "$REPOSITORY" rev-parse --verify --quiet "${TPU_REVISION:-HEAD}^{commit}") ||
    die 2 "'${TPU_REVISION:-HEAD}' is no revision of a git clone in $REPOSITORY"
  run mkdir -p "$folder/source"
  run git -C "$REPOSITORY" archive --format=tar --output="$folder/source.tar" "$commit"
  run tar -xf "$folder/source.tar" -C "$folder/source"
  run docker build --platform=linux/amd64 --tag="$TPU_IMAGE" \
    --file="$folder/source/tpu_scripts/gke/Dockerfile" "$folder/source"
  run docker push "$TPU_IMAGE"
}

parse_options "name bucket image topology slices run verb max-restarts mount service-account revision \
  project zone cluster storage" "spot build print xpk" "$@"
((${#ARGUMENTS[@]} > 0)) || die 2 "expected a recipe; see gke.sh --help"
recipe=${ARGUMENTS[0]}
if [[ -n ${TPU_XPK:-} ]]; then
  require name bucket image topology project zone cluster storage
else
  require name bucket image topology
fi
[[ -f $recipe ]] || die 2 "there is no recipe '$recipe'"
require_name --name "$TPU_NAME"
describe_topology "$TPU_TOPOLOGY"
slices=${TPU_SLICES:-1} max_restarts=${TPU_MAX_RESTARTS:-50}
[[ $slices =~ ^[1-9][0-9]*$ ]] || die 2 "--slices must be a positive number, got '$slices'"
[[ $max_restarts =~ ^[0-9]+$ ]] || die 2 "--max-restarts must be a number, got '$max_restarts'"
recipe_name=$(basename "$recipe")
TPU_RUN=${TPU_RUN:-${recipe_name%.yaml}}
require_name --run "$TPU_RUN"
verb=${TPU_VERB:-train}
[[ $verb =~ ^(train|sft|evaluate)$ ]] || die 2 "--verb must be train, sft or evaluate, got '$verb'"
command=(mental-r1 "$verb" "$TPU_MOUNT/recipes/$TPU_RUN.yaml" "run.output_dir=$TPU_MOUNT/runs/$TPU_RUN"
  "data.root=$TPU_MOUNT/data" "${ARGUMENTS[@]:1}")

if [[ -n ${TPU_PRINT:-} ]]; then
  manifest
  exit 0
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
[[ -z ${TPU_BUILD:-} ]] || build_image
run gcloud storage cp "$recipe" "gs://$TPU_BUCKET/recipes/$TPU_RUN.yaml"
if [[ -n ${TPU_XPK:-} ]]; then
  run xpk workload create --project="$TPU_PROJECT" --zone="$TPU_ZONE" --cluster="$TPU_CLUSTER" \
    --workload="$TPU_NAME" --tpu-type="$tpu_type" --num-slices="$slices" --docker-image="$TPU_IMAGE" \
    --storage="$TPU_STORAGE" --max-restarts="$max_restarts" --command="$(quote "${command[@]}")"
else
  manifest >"$folder/jobset.yaml"
  run kubectl apply --filename="$folder/jobset.yaml"
fi
