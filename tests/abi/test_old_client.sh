#!/bin/sh
# client.c, built against the header of every release in abi/, runs against today's library.
. "$(dirname "$0")/common.sh"

found=0
for old in "$SOURCE_DIR"/abi/moenn-*.h; do
  [ -e "$old" ] || fail "abi/ holds no header of a release"
  name=$(basename "$old" .h)
  mkdir "$work/$name"
  cp "$old" "$work/$name/moenn.h"
  "$CC" -std=c11 -Wall -Wextra -Werror -I"$work/$name" "$(dirname "$0")/client.c" \
    -o "$work/$name/client" -L"$BUILD_DIR" -lmoenn -Wl,-rpath,"$BUILD_DIR"
  "$work/$name/client" "$work/$name" || fail "a client of $name"
  found=$((found + 1))
done
echo "clients of $found releases ran"
