#!/usr/bin/env bash
# A dump as a job of a Ray cluster:  ray_job.sh http://HEAD:8265 16 dump.yaml
#
# The command plans the dump on the node where the job starts, and makes one actor for each engine,
# placed by GPUs (or cores, where there are none). Every node needs specpipe with the extra `ray`
# and the credentials of the store in its environment. Where the job ends with exit code 5 or 6,
# submit it again: it continues.
set -euo pipefail

usage='usage: ray_job.sh ADDRESS WORKERS CONFIG.yaml'
address=${1:?$usage} workers=${2:?$usage} config=${3:?$usage}

# The job's folder holds the configuration alone; target, data and output are where all nodes reach
# them.
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
cp "$config" "$folder/dump.yaml"

ray job submit --address "$address" --working-dir "$folder" -- \
  specpipe dump --config dump.yaml --executor ray --workers "$workers" --json
