#!/bin/sh
# Runs the whole suite; with CI=true under coverage too, which is held against its bars.
set -eu
# A worker that is done takes over from one that is busy with the long ones.
set -- -n auto --dist worksteal "$@"
if [ "${CI:-}" != true ]; then
  exec pytest "$@"
fi
# Machines and races take thousands of rounds of what the other tests cover; measuring those makes them thrice as long.
long='tests/stateful tests/races'
pytest "$@" $long
rm -f .coverage .coverage.*
pytest --cov --cov-report= --ignore=tests/stateful --ignore=tests/races "$@"
# In `rolecall serve`, the fast lane has grpc work in another way than it does by itself.
GRPC_EXPERIMENTS=$(python -c 'from rolecall.cli.output import GRPC_EXPERIMENTS; print(GRPC_EXPERIMENTS)') \
  pytest -q -k 'not standard' tests/server/test_lanes.py tests/server/test_grpcio_traps.py tests/server/test_health.py
# What decides and what lets in has less room for the untested than the rest.
careful='*/rolecall/policy/*,*/rolecall/authorizer.py,*/rolecall/credentials.py,*/rolecall/callers.py,*/rolecall/storage/credentials.py'
coverage report --skip-covered --include="$careful" --fail-under=95
coverage report --skip-covered --omit="$careful,*/rolecall/v1/*" --fail-under=85
