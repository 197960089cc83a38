#!/bin/sh
# Writes moenn-sys/src/bindings.rs, or the file given, from include/moenn.h. Needs bindgen.
set -eu
cd "$(dirname "$0")"
exec bindgen ../../include/moenn.h --output "${1:-moenn-sys/src/bindings.rs}" \
  --allowlist-function 'nn_.*' --allowlist-type 'nn_.*' --allowlist-var 'NN_.*' \
  --size_t-is-usize --with-derive-default --no-layout-tests --no-doc-comments \
  --default-macro-constant-type signed --no-prepend-enum-name --rust-target 1.47
