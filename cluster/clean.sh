#!/usr/bin/env bash
# Removes from a head what must not be in an image of it: token, keys, MLflow's data, this project's
# files, caches. Packages (~/mgdm-env) stay. Only on a head started for an image:
#   ray up -y cluster/gpu.yaml -n mgdm-image     (all steps: docs/cluster.md)
set -euo pipefail
if ! grep -qs '"cluster_name": "mgdm-image"' ~/ray_bootstrap_config.yaml; then
  echo "clean: this is not the head of a cluster named mgdm-image; nothing was removed" >&2
  exit 1
fi
~/mgdm-ray/cluster/mlflow.sh stop
~/mgdm-env/bin/ray stop --force >/dev/null 2>&1 || true
rm -rf ~/mgdm-mlflow ~/.mlflow ~/.ray ~/.aws ~/.cache "${RAY_TMPDIR:-/tmp}/ray"
rm -f ~/ray_bootstrap_key.pem ~/ray_bootstrap_config.yaml ~/.bash_history ~/.python_history
cd ~
rm -rf ~/mgdm-ray
echo "clean: packages are kept, secrets and data are gone"
