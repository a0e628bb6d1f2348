# shellcheck shell=bash
# What the verbs of this folder share: options, error messages, the dry run, quoting, and how to reach
# the queue and the workers. Sourced, never run.
#
# Every option `--some-name VALUE` has a twin TPU_SOME_NAME in the environment; the option wins.
# Exit status: 2 a mistake in the call, with one message; 1 the cloud or the run failed.

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "error: bash 4.4 or newer is needed, got $BASH_VERSION (on macOS: brew install bash)" >&2
  exit 2
fi

SCRIPTS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck disable=SC2034  # used by the verbs
REPOSITORY=$(dirname "$SCRIPTS")
VERB=$(basename "$0")
WORKER_SCRIPTS=mental-r1/source/tpu_scripts/worker # on the workers, below the home folder
DRY_RUN=${DRY_RUN:-}

# Commands of a dry run go here, also from inside `$(...)`.
exec 3>&1

# -- messages and options -------------------------------------------------------------------------

# die STATUS MESSAGE...
die() {
  local status=$1
  shift
  echo "error: $VERB: $*" >&2
  exit "$status"
}

# The comment at the top of the calling script.
usage() {
  awk 'NR == 1 { next } !/^#/ { exit } { sub(/^# ?/, ""); print }' "$0"
}

# variable_of some-name -> TPU_SOME_NAME
variable_of() {
  local name=${1//-/_}
  echo "TPU_${name^^}"
}

# parse_options "NAMES WITH VALUE" "NAMES OF FLAGS" "$@": options become exported TPU_* variables, so
# that a script started from this one has them too; the rest goes to the array ARGUMENTS.
parse_options() {
  local valued=" $1 " flags=" $2 " name value
  shift 2
  ARGUMENTS=()
  while (($#)); do
    case $1 in
      -h | --help)
        usage
        exit 0
        ;;
      --)
        shift
        ARGUMENTS+=("$@")
        return
        ;;
      --*)
        name=${1%%=*}
        name=${name#--}
        if [[ $flags == *" $name "* && $1 != *=* ]]; then
          value=1
        elif [[ $valued == *" $name "* && $1 == *=* ]]; then
          value=${1#*=}
        elif [[ $valued == *" $name "* ]] && (($# > 1)); then
          value=$2
          shift
        elif [[ $valued == *" $name "* ]]; then
          die 2 "--$name needs a value"
        else
          die 2 "unknown option $1; see $VERB --help"
        fi
        export "$(variable_of "$name")=$value"
        ;;
      *) ARGUMENTS+=("$1") ;;
    esac
    shift
  done
}

# require NAME...: one message that names everything that is missing.
require() {
  local name variable missing=
  for name; do
    variable=$(variable_of "$name")
    [[ -n ${!variable:-} ]] || missing+="${missing:+, }--$name (or $variable)"
  done
  [[ -z $missing ]] || die 2 "missing: $missing"
  TPU_BUCKET=${TPU_BUCKET:-}
  TPU_BUCKET=${TPU_BUCKET#gs://}
  export TPU_BUCKET=${TPU_BUCKET%/}
  TPU_MOUNT=${TPU_MOUNT:-/mnt/mental-r1}
  TPU_POLL=${TPU_POLL:-30}
}

# require_name WHAT VALUE: names become parts of paths and unit names.
require_name() {
  [[ $2 =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$ ]] ||
    die 2 "$1 must consist of letters, digits, '.', '_' and '-', got '$2'"
}

# -- running and printing -------------------------------------------------------------------------

# quote WORD...: the words as one line that a shell reads back as the same words.
quote() {
  local word mark="'\\''" line=()
  for word; do
    if [[ $word =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]]; then
      line+=("$word")
    else
      line+=("'${word//\'/$mark}'")
    fi
  done
  echo "${line[*]}"
}

# run COMMAND...: with DRY_RUN=1 only print it.
run() {
  if [[ -n $DRY_RUN ]]; then
    quote "$@" >&3
  else
    echo "+ $(quote "$@")" >&2
    "$@"
  fi
}

# pause: between two looks at the queue.
pause() {
  [[ -n $DRY_RUN ]] || sleep "$TPU_POLL"
}

# -- the queue and the workers --------------------------------------------------------------------

# queue VERB [FLAG...]: gcloud on this queued resource.
queue() {
  local verb=$1
  shift
  run gcloud compute tpus queued-resources "$verb" "$TPU_NAME" \
    --project="$TPU_PROJECT" --zone="$TPU_ZONE" "$@"
}

# queued_state: ACTIVE, WAITING_FOR_RESOURCES, SUSPENDED, ... or ABSENT (no such request), or UNKNOWN
# (gcloud failed; its message is shown). A dry run takes ACTIVE for granted.
queued_state() {
  local answer
  if [[ -n $DRY_RUN ]]; then
    queue describe '--format=value(state.state)'
    echo ACTIVE
  elif answer=$(queue describe '--format=value(state.state)' 2>&1); then
    tail -n 1 <<<"$answer"
  elif grep -qiE 'NOT_FOUND|not found' <<<"$answer"; then
    echo ABSENT
  else
    echo "$answer" >&2
    echo UNKNOWN
  fi
}

# on_workers SLICE WORKER COMMAND: a shell command on one worker or all of them, at the same time (with
# gcloud's usual batches of 64 the first ones would wait for the others in a collective for ever).
on_workers() {
  local route=()
  case ${TPU_SSH:-external} in
    external) ;;
    internal) route=(--internal-ip) ;;
    iap) route=(--tunnel-through-iap) ;;
    *) die 2 "--ssh must be external, internal or iap, got '$TPU_SSH'" ;;
  esac
  queue ssh --quiet --node="$1" --worker="$2" --batch-size=all "${route[@]}" --command="$3"
}

# worker_script NAME WORD...: the command that runs worker/NAME with these words.
worker_script() {
  local name=$1
  shift
  quote bash "$WORKER_SCRIPTS/$name" "$@"
}

# mental_r1 WORD...: the program on this machine.
mental_r1() {
  local program
  program=$(command -v mental-r1) || program=$REPOSITORY/.venv/bin/mental-r1
  [[ -x $program ]] || die 2 "mental-r1 is not installed here; run: pip install $REPOSITORY"
  run "$program" "$@"
}
