#!/usr/bin/env bash
#SBATCH --job-name=parl
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --signal=B:INT@300
#SBATCH --requeue
# A Ray cluster over the nodes of a Slurm job, and a training run on it. Slurm's signal, 5 minutes before the end, makes the
# run save a checkpoint; a job that is queued again goes on from its last one.
#
#     sbatch scripts/launch/slurm.sh configs/quickstart.yaml run_dir=/shared/runs/mine rollout.num_workers=28
#     DRY_RUN=1 scripts/launch/slurm.sh configs/quickstart.yaml run_dir=/shared/runs/mine      only check the config
#
# Untested: no Slurm was at hand. The commands for Ray are those of its own documentation.
set -euo pipefail
CONFIG=${1:?usage: sbatch scripts/launch/slurm.sh CONFIG run_dir=RUN [key.path=value ...]}
shift
RUN=$(printf '%s\n' "$@" | sed -n 's/^run_dir=//p')
: "${RUN:?give run_dir=RUN, a folder that all nodes see}"
ARGUMENTS=("$CONFIG" rollout.backend=ray train.mode="${MODE:-async}" "$@")
if [[ -f $RUN/config.resolved.yaml ]]; then ARGUMENTS=("$RUN/config.resolved.yaml" --resume "$RUN"); fi
echo parl train "${ARGUMENTS[@]}"
if [[ -n ${DRY_RUN:-} ]]; then exec parl config check "$CONFIG" rollout.backend=ray train.mode="${MODE:-async}" "$@"; fi

export OMP_NUM_THREADS=1 PORT=${PORT:-6379}
HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun --nodes=1 --ntasks=1 --nodelist="$HEAD" ray start --head --port="$PORT" --num-cpus="$SLURM_CPUS_PER_TASK" --block &
sleep 20
if ((SLURM_NNODES > 1)); then
    srun --nodes=$((SLURM_NNODES - 1)) --ntasks=$((SLURM_NNODES - 1)) --exclude="$HEAD" \
        ray start --address="$HEAD:$PORT" --num-cpus="$SLURM_CPUS_PER_TASK" --block &
fi
sleep 20
RAY_ADDRESS="$HEAD:$PORT" parl train "${ARGUMENTS[@]}" &
TRAIN=$!
trap 'kill -INT $TRAIN' INT
wait $TRAIN || wait $TRAIN # the first wait ends with the signal, the second with the run
