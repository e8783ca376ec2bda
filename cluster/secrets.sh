#!/usr/bin/env bash
# Makes the secrets of a cluster in cluster/secrets/ (mode 0600, never committed); what is there
# stays. Delete a file and run this again, and start the cluster anew, to change one.
#   ray_token           every node and everyone who submits a job needs it
#   the others          only docker-compose.yaml
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
# The same password once more, in the form that clients of S3 read.
printf '[default]\naws_access_key_id = mgdm\naws_secret_access_key = %s\n' \
  "$(cat secrets/minio_password)" >secrets/aws_credentials
# The same two for MLflow's clients.
printf '[mlflow]\nmlflow_tracking_username = mgdm\nmlflow_tracking_password = %s\n' \
  "$(cat secrets/mlflow_password)" >secrets/mlflow_credentials
# Containers read the files above as their owner: you.
printf 'MGDM_UID=%s\n' "$(id -u)" >.env
echo "secrets: in $PWD/secrets"
