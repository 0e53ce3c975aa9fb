#!/usr/bin/env bash
# Send a training run to a Ray cluster that is up (`ray start`, KubeRay, a cloud's), as a job that outlives this shell.
#
#     RAY_ADDRESS=http://head:8265 scripts/launch/cluster.sh configs/quickstart.yaml rollout.num_workers=32
#     DRY_RUN=1 scripts/launch/cluster.sh configs/quickstart.yaml    say what would be sent, and check the config
#
# The nodes need parl-swarm, your plugins, and a shared folder for runs/ (`run_dir=/shared/runs/mine`), so that a job that
# was killed goes on from another node: send it again with `--resume /shared/runs/mine`.
# The driver, which learns, takes LEARNER_CPUS and LEARNER_GPUS of one node; workers what rollout.num_*_per_worker says.
#
# Tested on: a cluster of two nodes on one machine (CPU), by `RAY_ADDRESS=... parl train`. Untested: job submission, GPUs.
set -euo pipefail
CONFIG=${1:?usage: scripts/launch/cluster.sh CONFIG [key.path=value ...]}
shift
JOB=(ray job submit --address "${RAY_ADDRESS:-http://127.0.0.1:8265}" --no-wait --working-dir .
    --entrypoint-num-cpus "${LEARNER_CPUS:-1}" --entrypoint-num-gpus "${LEARNER_GPUS:-0}"
    --runtime-env-json '{"excludes": [".venv", ".git", "runs", "wandb"], "env_vars": {"OMP_NUM_THREADS": "1"}}'
    -- env RAY_ADDRESS=auto parl train "$CONFIG" rollout.backend=ray train.mode="${MODE:-async}" "$@")
echo "${JOB[@]}"
if [[ -n ${DRY_RUN:-} ]]; then
    exec parl config check "$CONFIG" rollout.backend=ray train.mode="${MODE:-async}" "$@"
fi
exec "${JOB[@]}"
