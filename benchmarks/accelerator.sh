#!/usr/bin/env bash
# One step of a random model on this machine's accelerator, next to TRL if it is there.
#
#   benchmarks/accelerator.sh OUT [TRL_PYTHON]
#
# OUT         folder for the random models and the reports.
# TRL_PYTHON  interpreter of an environment with torch and trl; without it only we are measured.
#
# Variables: MODELS ("Qwen/Qwen3-0.6B Qwen/Qwen3-1.7B"), PROMPTS (64), GROUP (8), PROMPT_LEN (512),
# COMPLETION_LEN (512), STEPS (4), ROUNDS (2), DTYPE (bfloat16), MICRO_BATCHES (8), PYTHON (python).
set -euo pipefail

if [[ $# -lt 1 || $1 == -h || $1 == --help ]]; then
  sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"
  exit $(($# < 1 ? 2 : 0))
fi
out=$1 trl=${2:-}
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python}
dtype=${DTYPE:-bfloat16}
mkdir -p "$out"

for like in ${MODELS:-Qwen/Qwen3-0.6B Qwen/Qwen3-1.7B}; do
  model=$out/${like//\//-}
  "$python" "$here/random_model.py" --like "$like" --out "$model" --dtype "$dtype"
  shape="--model $model --prompts ${PROMPTS:-64} --group ${GROUP:-8} --kl-coef 0.01 --dtype $dtype"
  shape+=" --prompt-len ${PROMPT_LEN:-512} --completion-len ${COMPLETION_LEN:-512} --steps ${STEPS:-4}"
  ours="$python $here/step.py $shape --micro-batches ${MICRO_BATCHES:-8} --json {json}"
  runs=(--run "ours=$ours")
  if [[ -n $trl ]]; then
    rows=$((${PROMPTS:-64} * ${GROUP:-8} / ${MICRO_BATCHES:-8}))
    runs+=(--run "trl=$trl $here/trl_step.py $shape --rows-at-once $rows --checkpointing --json {json}")
  fi
  "$python" "$here/side_by_side.py" "${runs[@]}" --rounds "${ROUNDS:-2}" --json "$model.json"
done
