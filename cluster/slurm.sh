#!/usr/bin/env bash
# Slurm: one job starts a Ray cluster and runs the study on it; both end with the job.
# Cost: the allocation, nodes x GPUs x hours, busy or not: choose --time by `--plan`; there is no autoscaling.
# Edit: the #SBATCH lines (partition, account, GPUs: driver 580.65.06 or newer, no V100), ENV: a virtual environment in a folder
#   visible to all nodes: python3.11 -m venv ENV && ENV/bin/pip install -c constraints.txt -e '.[s3]'
# Submit, in the project's root: sbatch cluster/slurm.sh studies/grid.yaml --storage /shared/mgdm
#   (a folder visible to all nodes, or s3://BUCKET/mgdm); the same line again resumes.
#   With `ray job submit` instead: tunnel first, then -- python -m mgdm_ray.study studies/grid.yaml
#     --address auto --storage s3://BUCKET/mgdm; start this script with the one argument `wait`.
# Tunnel: ports, node and token file are in the job's output; from outside, through the login node:
#   ssh -J LOGIN -N -L 8265:127.0.0.1:PORT NODE     -> dashboard http://127.0.0.1:8265
#   MLflow: mlflow ui --backend-store-uri sqlite:////shared/mgdm/mlflow.db --host 127.0.0.1
# Stop: scancel JOB. Ray listens on the nodes' (private) addresses: others in that network can reach
#   it, but cannot start anything without the token.
#SBATCH --job-name=mgdm
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
set -euo pipefail
ENV=${ENV:-$SLURM_SUBMIT_DIR/.venv}
cd "$SLURM_SUBMIT_DIR"
export PATH="$ENV/bin:$PATH"

# One token per job, in a file that only you can read, visible to all nodes; removed at the end.
export RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=token
export RAY_AUTH_TOKEN_PATH="$SLURM_SUBMIT_DIR/cluster/secrets/slurm-$SLURM_JOB_ID"
(umask 077 && mkdir -p cluster/secrets && : >"$RAY_AUTH_TOKEN_PATH")
python -c 'import secrets; print(secrets.token_hex(32), end="")' >"$RAY_AUTH_TOKEN_PATH"
trap 'rm -f "$RAY_AUTH_TOKEN_PATH"' EXIT

# Two jobs may share a machine: every job has its own ports and temporary folder.
port=$((20000 + SLURM_JOB_ID % 10000))
dashboard=$((30000 + SLURM_JOB_ID % 10000))
client=$((40000 + SLURM_JOB_ID % 10000))
head=$SLURMD_NODENAME
address=$(hostname -i | awk '{print $1}')
cpus=${SLURM_CPUS_PER_TASK:-$(nproc)}
export SRUN_CPUS_PER_TASK=$cpus # srun does not inherit it from the job
gpus=${SLURM_GPUS_ON_NODE:-0}
echo "ray: head $head ($address:$port), dashboard 127.0.0.1:$dashboard, token $RAY_AUTH_TOKEN_PATH"

srun --nodes=1 --ntasks=1 --nodelist="$head" \
  ray start --head --block --node-ip-address="$address" --port="$port" \
  --dashboard-host=127.0.0.1 --dashboard-port="$dashboard" --ray-client-server-port="$client" \
  --temp-dir="/tmp/mgdm-$SLURM_JOB_ID" --num-cpus="$cpus" --num-gpus="$gpus" &
srun_head=$!
until ray health-check --address "$address:$port" 2>/dev/null; do
  kill -0 "$srun_head" 2>/dev/null || { echo "ray: the head did not start" >&2; exit 1; }
  sleep 2
done
others=$((SLURM_JOB_NUM_NODES - 1))
if [ "$others" -gt 0 ]; then
  srun --nodes="$others" --ntasks="$others" --exclude="$head" \
    ray start --block --address="$address:$port" --num-cpus="$cpus" --num-gpus="$gpus" &
fi
python - "$address:$port" "$SLURM_JOB_NUM_NODES" <<'PYTHON'
import sys, time, ray
ray.init(address=sys.argv[1], log_to_driver=False)
for _ in range(300):
    if sum(node["Alive"] for node in ray.nodes()) >= int(sys.argv[2]):
        break
    time.sleep(2)
else:
    sys.exit("ray: not all nodes joined within ten minutes")
print("ray: all nodes joined:", ray.cluster_resources())
PYTHON

if [ "${1:-}" = wait ]; then
  wait
else
  # In the background, so that Slurm's signal is handled at once and the study stops cleanly.
  python -m mgdm_ray.study "$@" --address "$address:$port" &
  study=$!
  trap 'kill -TERM "$study"' TERM
  status=0
  wait "$study" || status=$?
  wait "$study" 2>/dev/null || true
  exit "$status"
fi
