#!/usr/bin/env bash
# Writes what a release's binary interface is: symbols.txt (exported symbols), moenn.abi (their
# types, by libabigail) and moenn-<major>.<minor>.h (its header).
#   tools/abi-baseline.sh [FOLDER [BUILD_FOLDER]]
# FOLDER is abi/ by default: run it so when a release is made, or when a break before 1.0 has its
# line in CHANGELOG.md.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
folder=${1:-$root/abi}
build=${2:-$root/build/abi}
header=$root/include/moenn.h

for tool in abidw nm; do
  command -v $tool >/dev/null ||
    { echo "$tool is missing (packages abigail-tools, binutils)" >&2; exit 1; }
done

# Types come from debug information; what is optimised does not matter to them.
"${CMAKE:-cmake}" -S "$root" -B "$build" -DCMAKE_BUILD_TYPE=Debug -DMOENN_TESTS=OFF \
  -DCMAKE_C_FLAGS_DEBUG="-O0 -g -ffile-prefix-map=$root/=" ${CC:+-DCMAKE_C_COMPILER="$CC"}
"${CMAKE:-cmake}" --build "$build" --target moenn

# Nothing of the machine that wrote it: no paths, lines, libraries or architecture. Older versions
# look at exported functions alone without being asked.
options=(--headers-dir "$root/include" --drop-private-types --drop-undefined-syms --no-corpus-path
  --no-comp-dir-path --no-show-locs --no-elf-needed --no-architecture --type-id-style hash)
if abidw --help 2>&1 | grep -q exported-interfaces-only; then
  options+=(--exported-interfaces-only)
fi
abidw "${options[@]}" --out-file "$folder/moenn.abi" "$build/libmoenn.so"
if grep -qF "$root" "$folder/moenn.abi"; then
  echo "$folder/moenn.abi holds a path of this machine" >&2
  exit 1
fi

nm -D --defined-only --with-symbol-versions "$build/libmoenn.so" |
  awk '$2 == "T" { print $3 }' | LC_ALL=C sort >"$folder/symbols.txt"

version() { sed -n "s/^#define NN_VERSION_$1 //p" "$header"; }
cp "$header" "$folder/moenn-$(version MAJOR).$(version MINOR).h"
