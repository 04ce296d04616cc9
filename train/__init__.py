"""The method: a student predicts a frozen teacher's latents at masked blocks (US-JEPA, arXiv 2602.19322)."""

import os

# before the first import of mlflow, wherever it comes from
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # the default blocks four minutes on a dead server
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")  # seconds; the default is two minutes
