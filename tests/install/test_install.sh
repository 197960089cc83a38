#!/bin/sh
# Installs into a temporary prefix and builds consumer/ against it: pkg-config and find_package,
# shared and static. The prefix is moved before it is used: nothing in it may know its own place.
set -eu
: "${SOURCE_DIR:?}" "${BUILD_DIR:?}" "${CC:=cc}" "${CMAKE:=cmake}"
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fail() {
  echo "FAILED: $*" >&2
  exit 1
}

"$CMAKE" --install "$BUILD_DIR" --prefix "$work/first" >"$work/log" ||
  { cat "$work/log"; fail "install"; }
mv "$work/first" "$work/prefix"
prefix=$work/prefix

one() { # the only file of that name in the prefix
  found=$(find "$prefix" -name "$1")
  [ -n "$found" ] || fail "$1 was not installed"
  echo "$found"
}
for name in moenn.h libmoenn.a libmoenn.so moenn.pc moennConfig.cmake LICENSE-MIT LICENSE-APACHE; do
  one "$name" >/dev/null
done
libdir=$(dirname "$(one libmoenn.so)")
soname=$(readelf -d "$libdir/libmoenn.so" | sed -n 's/.*(SONAME).*\[\(.*\)\]/\1/p')
[ -e "$libdir/$soname" ] || fail "there is no $soname"
if grep -rlIF -e "$SOURCE_DIR" -e "$work/first" "$prefix"; then
  fail "the files above hold paths"
fi

version=$(sed -n 's/^#define NN_VERSION_[A-Z]* //p' "$SOURCE_DIR/include/moenn.h" | tr '\n' . |
  sed 's/\.$//')
run() { # a program says its version
  output=$(LD_LIBRARY_PATH=$libdir "$1") || fail "$1 does not run"
  [ "$output" = "libmoenn $version" ] || fail "$1 prints '$output'"
  echo "$(basename "$1"): $output"
}

PKG_CONFIG_PATH=$(dirname "$(one moenn.pc)")
export PKG_CONFIG_PATH
# shellcheck disable=SC2046 # flags are words
"$CC" -std=c11 "$here/consumer/main.c" $(pkg-config --cflags --libs moenn) -o "$work/pc_shared"
run "$work/pc_shared"

if echo 'int main(void) { return 0; }' | "$CC" -static -x c - -ljansson -lpcre2-8 -lutf8proc \
  -o "$work/probe" 2>/dev/null; then
  # shellcheck disable=SC2046
  "$CC" -std=c11 -static "$here/consumer/main.c" $(pkg-config --static --cflags --libs moenn) \
    -o "$work/pc_static"
  run "$work/pc_static"
else
  echo "static pkg-config link left out: this system has no static libc or package"
fi

"$CMAKE" -S "$here/consumer" -B "$work/consumer" -DCMAKE_PREFIX_PATH="$prefix" \
  -DCMAKE_C_COMPILER="$CC" >"$work/log" &&
  "$CMAKE" --build "$work/consumer" >>"$work/log" ||
  { cat "$work/log"; fail "find_package"; }
run "$work/consumer/with_shared"
run "$work/consumer/with_static"
if readelf -d "$work/consumer/with_static" | grep -q libmoenn; then
  fail "moenn::moenn_static links the shared library"
fi
