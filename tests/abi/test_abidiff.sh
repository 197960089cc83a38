#!/bin/sh
# The binary interface of today's sources contains that of the last release: abidiff against
# abi/moenn.abi. New functions are allowed, and structs that grow at their end (abi/growth.suppr).
. "$(dirname "$0")/common.sh"
have abidiff && have abidw || skip "abidiff is not installed (package abigail-tools)"

CC=$CC CMAKE=$CMAKE "$SOURCE_DIR/tools/abi-baseline.sh" "$work" "$BUILD_DIR/abi" \
  >"$work/log" 2>&1 ||
  { cat "$work/log"; fail "the interface of today's sources could not be written"; }
abidiff --no-added-syms --suppressions "$SOURCE_DIR/abi/growth.suppr" \
  "$SOURCE_DIR/abi/moenn.abi" "$work/moenn.abi" ||
  fail "the binary interface differs from abi/moenn.abi"
