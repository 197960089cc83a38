#!/bin/sh
# run.sh SCRIPT [ARGUMENT...]: runs a script of the conformance suite with the Python that
# install.sh made, on the libmoenn.so of BUILD_DIR (build/release). Exit status 77: skipped, and the
# last line says why.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
SOURCE_DIR=${SOURCE_DIR:-$(cd "$here/../.." && pwd)}
BUILD_DIR=${BUILD_DIR:-$SOURCE_DIR/build/release}
environment=${MOENN_CONFORMANCE:-$SOURCE_DIR/build/conformance}
script=$1
shift

if ! cmp -s "$here/requirements.txt" "$environment/installed"; then
  echo "skipped: $environment has not what requirements.txt lists;" \
    "tests/conformance/install.sh installs it"
  exit 77
fi
[ -e "$BUILD_DIR/libmoenn.so" ] || { echo "$BUILD_DIR has no libmoenn.so" >&2; exit 1; }
export SOURCE_DIR BUILD_DIR
export MOENN_LIBRARY="$BUILD_DIR/libmoenn.so" PYTHONPATH="$SOURCE_DIR/bindings/python"
export PYTHONDONTWRITEBYTECODE=1
# Nothing is fetched, and a process of many keeps to one core.
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error OMP_NUM_THREADS=1
[ -e "$script" ] || script=$here/$script
exec "$environment/bin/python" "$script" "$@"
