#!/usr/bin/env bash
# Train on all workers, detached: the run goes on when this terminal closes.
#
# Usage: train.sh [OPTIONS] RECIPE [section.key=value ...]
#
#   --project, --zone, --name    as for create.sh (needed)
#   --bucket, --mount, --ssh     as for setup.sh (the bucket is needed)
#   --run NAME          TPU_RUN          the run folder gs://BUCKET/runs/NAME; the recipe's file name
#   --verb VERB         TPU_VERB         train (usual), sft or evaluate
#   --supervise         TPU_SUPERVISE=1  stay, and bring the run back after a preemption: delete the
#                                        request, create it again (with the options of create.sh, which
#                                        are needed then), set up with the same revision, go on. Start
#                                        it where it can stay: in tmux, on a small VM.
#   --max-restarts N    TPU_MAX_RESTARTS give up after so many; 50
#
# Sets run.output_dir and data.root to folders of the bucket; overrides come after and win. The same
# command again resumes the run from its newest checkpoint. Logs: logs.sh, and every minute
# gs://BUCKET/logs/NAME/START/HOST.log. DRY_RUN=1 prints the commands only.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

UNREACHABLE_LIMIT=10 # looks in a row at an ACTIVE request whose worker does not answer

# start: (re)start the job on all workers.
start() {
  on_workers all all "$(worker_script start.sh "$TPU_BUCKET" "$TPU_MOUNT" "$TPU_RUN" \
    "$(date -u +%Y%m%dT%H%M%SZ)" "$verb" "${words[@]}")"
}

# job_state: running, finished, stopped, absent, `failed STATUS`, or unreachable.
job_state() {
  local answer
  if [[ -n $DRY_RUN ]]; then
    on_workers 0 0 "$(worker_script state.sh)"
    echo finished
  elif answer=$(on_workers 0 0 "$(worker_script state.sh)" 2>/dev/null); then
    sed -n 's/^job on [^ ]*: //p' <<<"$answer"
  else
    echo unreachable
  fi
}

# count_restart WHY
count_restart() {
  restarts=$((restarts + 1))
  ((restarts <= ${TPU_MAX_RESTARTS:-50})) || die 1 "gave up after $((restarts - 1)) restarts; last: $1"
  echo "$(date -u +%H:%M:%SZ) restart $restarts: $1" >&2
}

# recreate: a new request in place of the lost one, ready to train. Tries until it holds.
recreate() {
  local state
  while true; do
    state=$(queued_state)
    [[ $state == ABSENT ]] || "$SCRIPTS/delete.sh" --yes || true
    if "$SCRIPTS/create.sh" --wait && "$SCRIPTS/setup.sh" && start; then
      return
    fi
    pause
    count_restart "the new request did not last until training started"
  done
}

# supervise: until the job ends for good.
supervise() {
  local state job unreachable=0
  while true; do
    state=$(queued_state)
    case $state in
      ACTIVE)
        job=$(job_state)
        [[ $job == unreachable ]] || unreachable=0
        case $job in
          running) ;;
          finished)
            echo "$TPU_RUN: finished" >&2
            return
            ;;
          stopped) die 1 "$TPU_RUN was stopped with stop.sh; the same command resumes it" ;;
          "failed 2") die 1 "$TPU_RUN: a mistake in the recipe or its overrides; see logs.sh" ;;
          unreachable)
            unreachable=$((unreachable + 1))
            if ((unreachable >= UNREACHABLE_LIMIT)); then
              unreachable=0
              count_restart "the workers did not answer $UNREACHABLE_LIMIT times"
              recreate
            fi
            ;;
          *)
            count_restart "the job was '$job' on the first worker"
            start || true
            ;;
        esac
        ;;
      SUSPENDED | FAILED)
        count_restart "the TPUs were taken away ($state)"
        recreate
        ;;
      ABSENT) die 1 "the request was deleted by somebody; not asking for a new one" ;;
      *) ;; # on its way somewhere
    esac
    pause
  done
}

parse_options "project zone name accelerator runtime slices service-account bucket revision mount ssh \
  run verb max-restarts" "spot reserved supervise" "$@"
((${#ARGUMENTS[@]} > 0)) || die 2 "expected a recipe; see train.sh --help"
recipe=${ARGUMENTS[0]}
if [[ -n ${TPU_SUPERVISE:-} ]]; then
  require project zone name bucket accelerator
else
  require project zone name bucket
fi
[[ -f $recipe ]] || die 2 "there is no recipe '$recipe'"
for word in "${ARGUMENTS[@]:1}"; do
  [[ $word == *.*=* ]] || die 2 "an override reads section.key=value, got '$word'"
done
recipe_name=$(basename "$recipe")
TPU_RUN=${TPU_RUN:-${recipe_name%.yaml}}
require_name --run "$TPU_RUN"
verb=${TPU_VERB:-train}
[[ $verb =~ ^(train|sft|evaluate)$ ]] || die 2 "--verb must be train, sft or evaluate, got '$verb'"
words=("run.output_dir=$TPU_MOUNT/runs/$TPU_RUN" "data.root=$TPU_MOUNT/data" "${ARGUMENTS[@]:1}")
restarts=0
if [[ -n ${TPU_SUPERVISE:-} ]]; then
  # Later restarts must not pick up commits that are made meanwhile.
  TPU_REVISION=$(git -C "$REPOSITORY" rev-parse --verify --quiet "${TPU_REVISION:-HEAD}^{commit}") ||
    die 2 "'${TPU_REVISION:-HEAD}' is no revision of a git clone in $REPOSITORY"
  export TPU_REVISION
fi

run gcloud storage cp "$recipe" "gs://$TPU_BUCKET/recipes/$TPU_RUN.yaml"
start
if [[ -n ${TPU_SUPERVISE:-} && -n $DRY_RUN ]]; then
  supervise
  echo "# and whenever the request is SUSPENDED or FAILED:" >&3
  recreate
elif [[ -n ${TPU_SUPERVISE:-} ]]; then
  supervise
elif [[ -z $DRY_RUN ]]; then
  echo "$TPU_RUN: started on all workers of $TPU_NAME; see status.sh, logs.sh and stop.sh"
fi
