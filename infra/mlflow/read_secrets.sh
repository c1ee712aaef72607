# The secrets of MLflow's server, for its process alone: neither `docker inspect` nor a list of processes
# shows them, and the password of the database is in no address.
SECRETS="${SECRETS:-/run/secrets}"
PGPASSWORD="$(cat "$SECRETS/postgres")"
MLFLOW_FLASK_SERVER_SECRET_KEY="$(cat "$SECRETS/mlflow_key")"
MLFLOW_AUTH_ADMIN_PASSWORD="$(sed -n 's/^mlflow_tracking_password = //p' "$SECRETS/mlflow_admin")"
export PGPASSWORD MLFLOW_FLASK_SERVER_SECRET_KEY MLFLOW_AUTH_ADMIN_PASSWORD
