#!/bin/sh
# The header compiles alone, without a warning, as C11 and as C++11, by every compiler here.
. "$(dirname "$0")/common.sh"

try() { # language, compiler, standard
  echo '#include "moenn.h"' |
    "$2" -x "$1" -std="$3" -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror \
      -I"$SOURCE_DIR/include" -fsyntax-only - || fail "$2 as $3"
  echo "$2: $3"
}

for cc in "$CC" gcc clang; do
  if have "$cc"; then try c "$cc" c11; fi
done
cxx_found=0
for cxx in g++ clang++; do
  if have "$cxx"; then
    try c++ "$cxx" c++11
    try c++ "$cxx" c++20
    cxx_found=1
  fi
done
[ $cxx_found -eq 1 ] || skip "C11 passed, but there is no C++ compiler"
