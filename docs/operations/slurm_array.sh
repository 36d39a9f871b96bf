#!/usr/bin/env bash
#SBATCH --job-name=specpipe-dump
#SBATCH --array=0-15
#SBATCH --ntasks=1
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=96G
#SBATCH --time=08:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=dump-%A_%a.log
#
# One engine for each task of the array:  sbatch slurm_array.sh dump.yaml
#
# SLURM says which task this is. Two minutes before the time is up it sends SIGTERM, upon which the
# dump ends with exit code 5; that and a failing store (6) put the task back into the queue, where
# it continues. More tasks, fewer tasks or another array on the same dump change nothing but speed.
set -uo pipefail

config=${1:?usage: sbatch slurm_array.sh CONFIG.yaml}
most_restarts=10

# Since SLURM 22.05 srun does not take this from sbatch's option.
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"
srun specpipe dump --config "$config" --worker-index auto --json
code=$?
if [[ $code == 5 || $code == 6 ]] && ((${SLURM_RESTART_COUNT:-0} < most_restarts)); then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
