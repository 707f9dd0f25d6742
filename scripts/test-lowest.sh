#!/bin/sh
# Runs what depends on grpcio's private names on the lowest grpcio that pyproject.toml promises.
set -eu
lowest=$(sed -n 's/.*"grpcio-tools==\(.*\)",/\1/p' pyproject.toml)
folder=build/grpcio-$lowest
if [ ! -d "$folder" ]; then
  pip install --quiet --disable-pip-version-check --no-deps --target "$folder.new" "grpcio==$lowest" \
    "grpcio-health-checking==$lowest" "grpcio-reflection==$lowest" "grpcio-status==$lowest"
  mv "$folder.new" "$folder"
fi
export PYTHONPATH="$folder"
python -c "import grpc, sys; sys.exit(grpc.__version__ != '$lowest')"
exec pytest -q tests/server/test_transports.py tests/server/test_grpcio_traps.py tests/server/test_health.py "$@"
