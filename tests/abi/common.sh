# Sourced by the scripts of this folder: the environment that tests/CMakeLists.txt sets, and a
# temporary folder that goes away with the script.
set -eu
: "${SOURCE_DIR:?}" "${BUILD_DIR:?}" "${CC:=cc}" "${CMAKE:=cmake}"
header=$SOURCE_DIR/include/moenn.h
library=$BUILD_DIR/libmoenn.so
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fail() {
  echo "FAILED: $*" >&2
  exit 1
}

skip() {
  echo "skipped: $*"
  exit 77
}

have() { command -v "$1" >/dev/null 2>&1; }

# The header without comments, one declaration or member per line.
header_lines() {
  "$CC" -E -P "$header" | tr '\n' ' ' | sed 's/[;{}]/&\n/g'
}

# Names of the exported functions with their version node, sorted.
exported_symbols() {
  nm -D --defined-only --with-symbol-versions "$library" | awk '$2 == "T" { print $3 }' |
    LC_ALL=C sort
}
