#!/usr/bin/env bash
# Creates the secrets of a cluster in cluster/secrets/ (mode 0600, never committed); existing ones
# are kept. To change one, delete its file, run this again and restart the cluster.
#   ray_token           needed by every node and to submit jobs
#   the others          for docker-compose.yaml only
set -euo pipefail
umask 077
cd "$(dirname "$0")"
mkdir -p secrets
chmod 700 secrets

make_secret() {
  [ -s "secrets/$1" ] || python3 -c 'import secrets; print(secrets.token_hex(32), end="")' >"secrets/$1"
  chmod 600 "secrets/$1"
}

for name in ray_token postgres_password minio_password mlflow_password; do
  make_secret "$name"
done
# The same password for S3 clients.
printf '[default]\naws_access_key_id = mgdm\naws_secret_access_key = %s\n' \
  "$(cat secrets/minio_password)" >secrets/aws_credentials
# The same for MLflow's clients.
printf '[mlflow]\nmlflow_tracking_username = mgdm\nmlflow_tracking_password = %s\n' \
  "$(cat secrets/mlflow_password)" >secrets/mlflow_credentials
# Containers read the files above as their owner.
printf 'MGDM_UID=%s\n' "$(id -u)" >.env
echo "secrets: written to $PWD/secrets"
