#!/bin/sh
# Generates the package rolecall/v1 from protos/ into the folder $1.
set -eu
into=$1/rolecall/v1
mkdir -p "$into"
python -m grpc_tools.protoc -I protos \
  --python_out="$1" --grpc_python_out="$1" --mypy_out="quiet:$1" --mypy_grpc_out="quiet:$1" \
  --include_source_info --descriptor_set_out="$into/api.binpb" protos/rolecall/v1/*.proto
printf '"""Generated from protos/ by `make protos`."""\n' >"$into/__init__.py"
