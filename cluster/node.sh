#!/usr/bin/env bash
# Sets up one node: Python and this project's packages at the versions of constraints.txt, in
# ~/mgdm-env. Run by gpu.yaml, gcp.yaml and onprem.yaml on every node, again at every `ray up`, where
# it only checks the versions.
#   node.sh EXTRA [PACKAGE...]    EXTRA: s3 or gcs; packages: what the cloud's autoscaler needs
set -euo pipefail
cd "$(dirname "$0")/.."
extra=$1
shift
chmod 700 ~/.ray
chmod 600 ~/.ray/auth_token
# The launcher's copy of the ssh key.
[ ! -e ~/ray_bootstrap_key.pem ] || chmod 600 ~/ray_bootstrap_key.pem
# `ray down`, `ray attach` and `ray exec` look for ray in the login shell.
grep -qs mgdm-env ~/.bashrc || echo "export PATH=$HOME/mgdm-env/bin:\$PATH" >>~/.bashrc
cuda=$(sed -n 's/^# cuda==\([0-9.]*\).*/\1/p' constraints.txt)
# Before packages of several GB are installed for GPUs that torch cannot use.
check_gpus() {
  ~/mgdm-env/bin/python mgdm_ray/cli/gpu_driver.py "$cuda"
  command -v gcc >/dev/null || echo "node: no gcc, so torch.compile cannot speed up sampling"
}
installed=$(cat constraints.txt pyproject.toml <(echo "$extra" "$@") | sha256sum)
if [ "$(cat ~/.mgdm-node 2>/dev/null)" = "$installed" ]; then
  check_gpus
  echo "node: packages are up to date"
  exit 0
fi
export PATH="$HOME/.local/bin:$PATH"
command -v uv >/dev/null || python3 -m pip install --quiet --user -c constraints.txt uv
python=$(sed -n 's/^# python==//p' constraints.txt)
uv venv --quiet --allow-existing --python "$python" ~/mgdm-env
check_gpus
uv pip install --quiet --python ~/mgdm-env/bin/python -c constraints.txt \
  -e ".[$extra]" 'mlflow[auth]' "$@"
~/mgdm-env/bin/python -c 'import ray, torch; print(f"node: ray {ray.__version__}, torch {torch.__version__}, {torch.cuda.device_count()} GPUs")'
echo "$installed" >~/.mgdm-node
