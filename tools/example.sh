#!/usr/bin/env bash
# Installs what is missing, builds libmoenn into build/release and runs the example with the
# arguments given: tools/example.sh --help
set -euo pipefail
source "$(dirname "$0")/common.sh"
caller=$OLDPWD

need_build
install_missing
newer_cmake
log=$(mktemp)
trap 'rm -f "$log"' EXIT
echo "building libmoenn and examples/train_tiny.c in build/release"
if ! { configure release -DMOENN_TESTS=OFF &&
    cmake --build --preset release --target train_tiny; } >"$log" 2>&1
then
  cat "$log" >&2
  exit 1
fi
rm -f "$log"

cd "$caller"
exec "$root/build/release/train_tiny" "$@"
