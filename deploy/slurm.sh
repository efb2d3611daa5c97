#!/bin/bash
# A run on the nodes of a Slurm job: sbatch deploy/slurm.sh CONFIG [--field value ...]
#
# Every node needs `nlrl` and `ray` on the path (activate the environment before sbatch, which passes yours on) and the
# folder that the config's `out` names. When a node fails, Slurm puts the job back into its queue; it then resumes.
#SBATCH --job-name=nlrl
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail
[ $# -gt 0 ] || { echo "usage: sbatch deploy/slurm.sh CONFIG [--field value ...]" >&2; exit 2; }

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
others=$((${#nodes[@]} - 1))
ip=$(hostname --ip-address | awk '{print $1; exit}') # this script runs on the first node, which is the head
port=$((20000 + SLURM_JOB_ID % 10000))               # jobs that share a node must not share a port
options=(--block --disable-usage-stats --num-cpus="${SLURM_CPUS_ON_NODE:-$(nproc)}")

trap 'kill $(jobs -p) 2>/dev/null || true' EXIT # Ray ends with this script, however it ends
trap 'exit 143' TERM

ray start --head "${options[@]}" --include-dashboard=false --node-ip-address="$ip" --port="$port" &
head=$!
until (exec 3<> "/dev/tcp/$ip/$port") 2>/dev/null; do
  kill -0 "$head" || { echo "the head did not start" >&2; exit 1; }
  sleep 1
done
if [ "$others" -gt 0 ]; then
  srun --nodes="$others" --ntasks="$others" --exclude="${nodes[0]}" ray start "${options[@]}" --address="$ip:$port" &
fi

export RAY_ADDRESS="$ip:$port"
python - "${#nodes[@]}" << 'PYTHON'
"""Waits until all nodes are there."""
import sys
import time

import ray

deadline = time.monotonic() + 300
ray.init(logging_level="ERROR")
while (joined := sum(node["Alive"] for node in ray.nodes())) < int(sys.argv[1]):
    if time.monotonic() > deadline:
        sys.exit(f"only {joined} of {sys.argv[1]} nodes joined within 300 s")
    time.sleep(1)
PYTHON

nlrl run "$@"
