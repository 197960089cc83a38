#!/bin/sh
# layout.c compiles, and pins every struct, every member and every enumerator of the header.
. "$(dirname "$0")/common.sh"
pins=$(dirname "$0")/layout.c

if ! echo '_Static_assert(sizeof(void *) == 8, "");' |
    "$CC" -x c -std=c11 -fsyntax-only - 2>/dev/null; then
  skip "the pinned layout is that of 64-bit systems"
fi
"$CC" -std=c11 -Wall -Wextra -Wpedantic -Werror -I"$SOURCE_DIR/include" -fsyntax-only "$pins" ||
  fail "the header does not have the pinned layout"

# "SIZE(struct,", "PIN(struct, type, member," or "PIN_ARRAY(struct, type, member, count," of each
# struct, "IS(name," of each enumerator.
header_lines | awk '
  /^ *typedef struct nn_[a-z0-9_]+ *\{/ { inside = 1; count = 0; next }
  /^ *enum *\{/ { listing = 1; next }
  listing && /\}/ {
    listing = 0
    entries = split($0, entry, ",")
    for (i = 1; i <= entries; i++) {
      sub(/ *=.*/, "", entry[i]); gsub(/[ }]/, "", entry[i])
      if (entry[i] != "") print "IS(" entry[i] ","
    }
    next
  }
  inside && /^ *\}/ { next }
  inside && /^ *nn_[a-z0-9_]+ *;/ {
    gsub(/[ ;]/, "")
    print "SIZE(" $0 ","
    for (i = 0; i < count; i++)
      print (size[i] ? "PIN_ARRAY(" : "PIN(") $0 ", " type[i] ", " member[i] "," \
        (size[i] ? " " size[i] "," : "")
    inside = 0
    next
  }
  inside {
    gsub(/^ +|[ ;]+$/, "")
    size[count] = 0
    if (sub(/\]$/, "")) {
      size[count] = $0
      sub(/.*\[/, "", size[count])
      sub(/\[.*/, "")
    }
    type[count] = member[count] = $0
    sub(/ *[a-z0-9_]+$/, "", type[count])
    sub(/.*[ *]/, "", member[count])
    count++
  }
' >"$work/wanted"
[ -s "$work/wanted" ] || fail "nothing was found in the header"

missing=0
while IFS= read -r pin; do
  grep -qF "$pin" "$pins" || { echo "not pinned: $pin"; missing=$((missing + 1)); }
done <"$work/wanted"
[ "$missing" -eq 0 ] || fail "$missing things of the header are not pinned in layout.c"
echo "$(wc -l <"$work/wanted") pins"
