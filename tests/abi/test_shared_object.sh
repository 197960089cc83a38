#!/bin/sh
# The stripped shared object is small, needs few libraries, and imports nothing that ends the
# process, prints, or starts another one.
. "$(dirname "$0")/common.sh"

strip -o "$work/stripped" "$library"
bytes=$(wc -c <"$work/stripped")
[ "$bytes" -le 1250000 ] || fail "stripped: $bytes bytes, more than 1.25 MB"

# libpthread was a library of its own before glibc 2.34.
readelf -d "$library" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' >"$work/needed"
known='libc|libm|libpthread|libjansson|libpcre2-8|libutf8proc|ld-linux[a-z0-9-]*'
others=$(grep -vE "^($known)\.so\." "$work/needed" || true)
[ -z "$others" ] || fail "needs $others"

soname=$(readelf -d "$library" | sed -n 's/.*(SONAME).*\[\(.*\)\]/\1/p')
abi=$(sed -n 's/^#define NN_ABI_VERSION //p' "$header")
[ "$soname" = "libmoenn.so.$abi" ] || fail "SONAME is $soname"

nm -D --undefined-only "$library" | awk '{ sub(/@.*/, "", $2); print $2 }' >"$work/imported"
banned='_?_?exit|_Exit|quick_exit|abort|__assert_fail|system|popen|execv.*|fork'
banned="$banned|v?printf|v?fprintf|v?dprintf|__v?(f|d)?printf_chk|puts|putchar|perror|psignal"
found=$(grep -xE "$banned" "$work/imported" || true)
[ -z "$found" ] || fail "imports $found"

if readelf -lW "$library" | grep GNU_STACK | grep -q E; then fail "has an executable stack"; fi
readelf -d "$library" | grep -q BIND_NOW || fail "is not linked with -z now"
echo "$bytes bytes stripped, $soname, needs $(tr '\n' ' ' <"$work/needed")"
