#!/usr/bin/env bash
# Installs what is missing, builds libmoenn in every way it is meant to build and runs all tests.
# The last lines say how each part went; the exit status is 0 when all of them passed.
set -euo pipefail
source "$(dirname "$0")/common.sh"

need_build
need g++ "a C++ compiler" has g++
need binutils "readelf, nm and strip" has readelf
need clang "clang" has clang
need libcmocka-dev "cmocka" pkg-config --exists cmocka
need abigail-tools "abidiff and abidw" has abidiff
need doxygen "doxygen" has doxygen
need python3 "python3" has python3
need python3-venv "python3 with venv" python3 -c "import ensurepip, venv"
need cargo "cargo and rustc" has cargo
need golang "go" has go
install_missing
newer_cmake
find_cublas

# The sanitizers' run time is a package of its own in newer releases of Debian and Ubuntu.
has_fuzzer() {
  echo 'int LLVMFuzzerTestOneInput(const char *data, long size) { return data && size < 0; }' |
    clang -x c -fsanitize=fuzzer,address - -o /dev/null
}
need "libclang-rt-$(clang -dumpversion | cut -d. -f1)-dev" "clang's sanitizers" has_fuzzer
install_missing

# The tests sync thousands of files, to fail at every point of saving: in memory that takes seconds.
memory_kib=$(df -Pk /dev/shm 2>/dev/null | awk 'NR == 2 { print $4 }')
if [ -z "${TMPDIR:-}" ] && [ -w /dev/shm ] && [ "${memory_kib:-0}" -ge 1000000 ]; then
  TMPDIR=$(mktemp -d /dev/shm/moenn-test.XXXXXX)
  export TMPDIR
  trap 'rm -rf "$TMPDIR"' EXIT
fi

results=$(mktemp)

# part NAME COMMAND...: runs it, and keeps how it went with CTest's own totals where there are any.
# Status 77 means skipped.
part() {
  local name=$1 log start=$SECONDS status=0 verdict=passed totals
  shift
  printf '\n==== %s\n' "$name"
  log=$(mktemp)
  "$@" 2>&1 | tee "$log" || status=$?
  if [ $status -eq 77 ]; then
    verdict=skipped
  elif [ $status -ne 0 ]; then
    verdict=FAILED
  fi
  totals=$(grep -E '^[0-9]+% tests passed' "$log" || true)
  rm -f "$log"
  totals=${totals:+: $totals}
  printf '%-8s %4d s  %s%s\n' $verdict $((SECONDS - start)) "$name" "$totals" >>"$results"
}

build_and_test() { # preset, options of configure and then, after --, of ctest
  local preset=$1 options=()
  shift
  while [ $# -gt 0 ] && [ "$1" != -- ]; do
    options+=("$1")
    shift
  done
  [ $# -gt 0 ] && shift
  # The thread sanitizer of older compilers does not know where newer kernels put things at random.
  local fixed_addresses=()
  if [ "$preset" = tsan ] && setarch "$(uname -m)" -R true 2>/dev/null; then
    fixed_addresses=(setarch "$(uname -m)" -R)
  fi
  configure "$preset" -DMOENN_TESTS=ON "${options[@]}" && cmake --build --preset "$preset" &&
    "${fixed_addresses[@]}" ctest --preset "$preset" --parallel "$CMAKE_BUILD_PARALLEL_LEVEL" "$@"
}

# Under sanitizers multiply-adds take ten to a hundred times as long: cases of no more than so many.
with_work() { # multiply-adds, what build_and_test takes
  export MOENN_TEST_WORK=$1
  shift
  build_and_test "$@"
}

# The release build's tests on one CPU path, skipped where the processor has not got it; those of
# operations take each path by themselves, and those of text none.
again() {
  MOENN_CPU=$1 build/release/tests/test_paths &&
    MOENN_CPU=$1 ctest --preset release --parallel "$CMAKE_BUILD_PARALLEL_LEVEL" \
      --label-regex "^(base|model|train|infer|format)\$"
}

bindings() { # languages: the script of each, with the release build's library
  local language
  export SOURCE_DIR=$root BUILD_DIR=$root/build/release
  for language in "$@"; do
    part "binding: $language" bash "bindings/$language/test.sh"
  done
}

conformance() { # against transformers and tokenizers, in a Python environment that stays in build/
  tests/conformance/install.sh && # what is there stays; otherwise says why
    ctest --preset release --parallel "$CMAKE_BUILD_PARALLEL_LEVEL" --label-regex '^conformance$'
}

fuzz_target() { # source, seconds: on a copy of its corpus
  local name=${1##*/fuzz_} work log status=0
  name=${name%.c} work=$(mktemp -d) log=$(mktemp)
  cp tests/fuzz/corpus/"$name"/* "$work"
  build/fuzz/tests/fuzz/"fuzz_$name" -max_total_time="$2" -verbosity=0 -print_final_stats=1 \
    -artifact_prefix=build/fuzz/ "$work" >"$log" 2>&1 || status=$?
  echo "fuzz_$name, $2 s"
  cat "$log"
  rm -rf "$work" "$log"
  return $status
}
export -f fuzz_target

fuzz() { # seconds for each target, as many at a time as there are processors
  configure fuzz -DMOENN_TESTS=ON && cmake --build --preset fuzz &&
    printf '%s\0' tests/fuzz/fuzz_*.c |
    xargs -0 -n 1 -P "$CMAKE_BUILD_PARALLEL_LEVEL" bash -c 'fuzz_target "$1" '"$1" fuzz
}

build_docs() {
  if ! printf '1.9.4\n%s\n' "$(doxygen --version)" | sort -VC; then
    echo "skipped: doxygen is $(doxygen --version), and 1.9.4 is needed"
    return 77
  fi
  cmake --build --preset release --target docs
}

build_clang() {
  configure clang -DMOENN_TESTS=OFF &&
    cmake --build --preset clang --target moenn moenn_static
}

tests/conformance/install.sh >/dev/null 2>&1 & # mostly waits for the network
part "gcc, release" build_and_test release -DMOENN_WERROR=ON "${cuda_options[@]}" \
  -- --label-exclude '^conformance$'
part "the same on AVX-512 without its bf16 products" again avx512
part "the same on AVX2 alone" again avx2
part "the same in plain C" again reference
part "gcc, address and undefined-behaviour sanitizers" with_work 1e8 asan -- --label-exclude "e2e"
part "gcc, thread sanitizer" with_work 1e7 tsan -- --tests-regex "^(ops|train|infer)|threads" \
  --label-exclude "^paths\$"
part "clang, release, no warnings" build_clang
part "clang, fuzzing for 5 s each" fuzz 5
part "reference without warnings" build_docs
wait
part "conformance with transformers and tokenizers" conformance
# Each takes one processor most of the time, and Python's as long as the others.
python_log=$(mktemp)
bindings python >"$python_log" 2>&1 &
bindings cpp go rust
wait $!
cat "$python_log"

printf '\n==== totals\n'
cat "$results"
parts=$(wc -l <"$results")
failures=$(grep -c ^FAILED "$results" || true)
rm -f "$results" "$python_log"
if [ "$failures" -gt 0 ]; then
  echo "$failures of $parts parts FAILED"
  exit 1
fi
echo "$parts parts, none failed, in $((SECONDS / 60)) min $((SECONDS % 60)) s"
