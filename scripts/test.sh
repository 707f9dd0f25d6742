#!/bin/sh
# Runs all tests; with CI=true under coverage too, which must reach its minimum.
set -eu
# A worker that has finished takes over tests of another one.
set -- --dist worksteal "$@"
if [ "${CI:-}" != true ]; then
  # Two workers per core, as each waits for servers and databases a third of its time.
  exec pytest -n "$((2 * $(getconf _NPROCESSORS_ONLN)))" "$@"
fi
set -- -n auto "$@"
# State machines and races repeat thousands of times what other tests cover; coverage would make them take 3 times as long.
long='tests/stateful tests/races'
pytest "$@" $long
rm -f .coverage .coverage.*
pytest --cov --cov-report= --ignore=tests/stateful --ignore=tests/races "$@"
# `rolecall serve` sets GRPC_EXPERIMENTS, with which grpc polls in another way than by default.
GRPC_EXPERIMENTS=$(python -c 'from rolecall.server.transport.tuning import GRPC_EXPERIMENTS; print(GRPC_EXPERIMENTS)') \
  pytest -q -k 'not standard' tests/server/test_transports.py tests/server/test_grpcio_traps.py tests/server/test_health.py
# Decisions and authentication must be covered better than the rest.
critical='*/rolecall/policy/*,*/rolecall/identity/*,*/rolecall/credentials/*,*/rolecall/services/authorization.py,*/rolecall/storage/credentials.py'
coverage report --skip-covered --include="$critical" --fail-under=95
coverage report --skip-covered --omit="$critical,*/rolecall/v1/*" --fail-under=85
