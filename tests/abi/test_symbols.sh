#!/bin/sh
# The shared object exports exactly what abi/symbols.txt lists and what the header declares.
. "$(dirname "$0")/common.sh"

exported_symbols >"$work/exported"
diff -u "$SOURCE_DIR/abi/symbols.txt" "$work/exported" ||
  fail "exported symbols (+) are not those of abi/symbols.txt (-)"

header_lines | grep -oE '\bnn_[a-z0-9_]+ *\(' | tr -d ' (' | LC_ALL=C sort -u >"$work/declared"
sed 's/@@.*//' "$work/exported" | LC_ALL=C sort >"$work/names"
diff -u "$work/declared" "$work/names" ||
  fail "exported functions (+) are not those that moenn.h declares (-)"

# Nothing but functions and the version node: no data.
other=$(nm -D --defined-only "$library" | awk '$2 != "T" && $2 != "A"')
[ -z "$other" ] || fail "exported, but not a function: $other"
echo "$(wc -l <"$work/names") functions"
