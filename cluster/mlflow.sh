#!/usr/bin/env bash
# MLflow's server on a head node, for this machine only: 127.0.0.1, with a login.
#   mlflow.sh start   in the background, unless it already runs; log in ~/mgdm-mlflow/server.log
#   mlflow.sh run     in the foreground
#   mlflow.sh stop
# Options, from the environment:
#   MGDM_MLFLOW_AUTH=off        no login
#   MGDM_MLFLOW_PASSWORD_FILE   the password of user mgdm; default: created on first start
#   MGDM_MLFLOW_HOST, _PORT     127.0.0.1, 5000
#   MGDM_MLFLOW_DATABASE        sqlite in ~/mgdm-mlflow
#   MGDM_MLFLOW_ARTIFACTS       ~/mgdm-mlflow/artifacts; may be s3://BUCKET/FOLDER
set -euo pipefail
umask 077
export PATH="$HOME/mgdm-env/bin:$PATH"
home=$HOME/mgdm-mlflow
host=${MGDM_MLFLOW_HOST:-127.0.0.1}
port=${MGDM_MLFLOW_PORT:-5000}
database=${MGDM_MLFLOW_DATABASE:-sqlite:///$home/mlflow.db}
artifacts=${MGDM_MLFLOW_ARTIFACTS:-$home/artifacts}
mkdir -p "$home"
export MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false

running() {
  [ -s "$home/pid" ] && kill -0 "$(cat "$home/pid")" 2>/dev/null
}

if [ "${1:-}" = stop ]; then
  if running; then kill "$(cat "$home/pid")"; fi
  rm -f "$home/pid"
  exit 0
elif [ "${1:-}" = start ]; then
  if running; then
    echo "mlflow: already running on $host:$port"
    exit 0
  fi
  setsid nohup "$0" run </dev/null >>"$home/server.log" 2>&1 &
  echo $! >"$home/pid"
  echo "mlflow: starting on $host:$port"
  exit 0
elif [ "${1:-}" != run ]; then
  echo "usage: mlflow.sh start|run|stop" >&2
  exit 2
fi

options=(--host "$host" --port "$port" --workers 1 --backend-store-uri "$database"
  --artifacts-destination "$artifacts")
if [ -n "${MGDM_MLFLOW_ALLOWED_HOSTS:-}" ]; then
  options+=(--allowed-hosts "$MGDM_MLFLOW_ALLOWED_HOSTS")
fi
if [ "${MGDM_MLFLOW_AUTH:-on}" != off ]; then
  password_file=${MGDM_MLFLOW_PASSWORD_FILE:-$home/password}
  [ -s "$password_file" ] \
    || python -c 'import secrets; print(secrets.token_hex(16), end="")' >"$password_file"
  password=$(cat "$password_file")
  cat >"$home/auth.ini" <<INI
[mlflow]
default_permission = NO_PERMISSIONS
database_uri = sqlite:///$home/users.db
admin_username = mgdm
admin_password = $password
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
INI
  # MLflow's clients on this machine, e.g. the study's driver, read their login from here.
  mkdir -p ~/.mlflow
  printf '[mlflow]\nmlflow_tracking_username = mgdm\nmlflow_tracking_password = %s\n' \
    "$password" >~/.mlflow/credentials
  [ -s "$home/key" ] || python -c 'import secrets; print(secrets.token_hex(32), end="")' >"$home/key"
  MLFLOW_FLASK_SERVER_SECRET_KEY=$(cat "$home/key")
  export MLFLOW_FLASK_SERVER_SECRET_KEY MLFLOW_AUTH_CONFIG_PATH=$home/auth.ini
  options+=(--app-name basic-auth)
fi
exec mlflow server "${options[@]}"
