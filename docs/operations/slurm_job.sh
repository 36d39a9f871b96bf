#!/usr/bin/env bash
#SBATCH --job-name=specpipe
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --mem=256G
#SBATCH --time=08:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=specpipe-%j.log
#
# A whole job on one node:  sbatch slurm_job.sh job.json --config job.yaml --out /scratch/drafter
#
# The arguments are those of `specpipe run`; each GPU of the node trains as a rank, and job.yaml says
# how many engines dump (`dump: {workers: 4}`). Five minutes before the time is up SLURM sends
# SIGTERM, upon which the job saves and ends with exit code 5: that puts it back into the queue, where
# it goes on, on any node that sees the same folder.
set -uo pipefail

: "${1:?usage: sbatch slurm_job.sh JOB.json --out DIR [options of specpipe run]}"
most_restarts=50

# Since SLURM 22.05 srun does not take this from sbatch's option.
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"
srun specpipe run "$@" --processes "${SLURM_GPUS_ON_NODE:-1}" --json
code=$?
if [[ $code == 5 ]] && ((${SLURM_RESTART_COUNT:-0} < most_restarts)); then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
