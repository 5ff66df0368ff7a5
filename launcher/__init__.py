"""The door to uld-ds: command line, Ray driver and the recipes that ship with it."""

import os

# Ray and Ray Train read these when they are imported, so they are set before any module here can import them.
# The first: how soon, in seconds, a finished or dead worker is noticed.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
