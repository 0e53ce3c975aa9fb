#!/usr/bin/env bash
# Train on this machine, rollouts on Ray workers of its own. Anything after the config is passed on to `parl train`.
#
#     scripts/launch/local.sh configs/quickstart.yaml seed=1
#     DRY_RUN=1 scripts/launch/local.sh configs/quickstart.yaml      say what would run, and check the config
#
# Tested on: Linux, 2 cores, no GPU.
set -euo pipefail
CONFIG=${1:?usage: scripts/launch/local.sh CONFIG [key.path=value ...]}
shift
CORES=$(nproc)
WORKERS=${WORKERS:-$((CORES > 1 ? CORES - 1 : 1))} # one core is the learner's
export OMP_NUM_THREADS=1                           # unpinned threads of several processes slow each other down 30 times

COMMAND=(parl train "$CONFIG" rollout.backend=ray rollout.num_workers="$WORKERS" train.mode="${MODE:-async}" "$@")
echo "${COMMAND[@]}"
if [[ -n ${DRY_RUN:-} ]]; then
    exec parl config check "$CONFIG" rollout.backend=ray rollout.num_workers="$WORKERS" train.mode="${MODE:-async}" "$@"
fi
exec "${COMMAND[@]}"
