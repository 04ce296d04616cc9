#!/bin/bash
# MLflow with accounts. From the environment:
#   MLFLOW_BACKEND_STORE_URI        postgresql+psycopg2://USER:PASSWORD@HOST:PORT/NAME, for runs and for accounts
#   MLFLOW_ARTIFACTS_DESTINATION    s3://BUCKET; with MLFLOW_S3_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY
#   MLFLOW_AUTH_ADMIN_PASSWORD      of the account `admin`, at the first start
#   MLFLOW_FLASK_SERVER_SECRET_KEY  any long random text, the same at every start
#   MLFLOW_SERVER_ALLOWED_HOSTS     names under which clients call this server, with ports: mlflow:5000,localhost:5000
#   HOST, PORT                      to listen on (0.0.0.0, 5000)
set -euo pipefail
: "${MLFLOW_BACKEND_STORE_URI:?}" "${MLFLOW_ARTIFACTS_DESTINATION:?}" "${MLFLOW_SERVER_ALLOWED_HOSTS:?}"
: "${MLFLOW_AUTH_ADMIN_PASSWORD:?}" "${MLFLOW_FLASK_SERVER_SECRET_KEY:?}"
folder=$(mktemp --directory)
export MLFLOW_AUTH_CONFIG_PATH=$folder/auth.ini # the file holds a password, and mktemp's folder is ours alone
cat >"$MLFLOW_AUTH_CONFIG_PATH" <<INI
[mlflow]
default_permission = READ
database_uri = ${MLFLOW_BACKEND_STORE_URI//%/%%}
admin_username = admin
INI
# Nothing here uses its background jobs, which cost seven processes and 1.5 GB.
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false
exec mlflow server --app-name basic-auth --host "${HOST:-0.0.0.0}" --port "${PORT:-5000}" --workers "${WORKERS:-2}"
