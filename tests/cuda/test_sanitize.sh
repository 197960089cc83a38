#!/bin/sh
# sanitize.sh without a GPU: its parts name every test of operations, and it says of each what a
# program under compute-sanitizer's name, made here, reports.
set -eu
: "${SOURCE_DIR:?}"
script=$SOURCE_DIR/tests/cuda/sanitize.sh
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fail() {
  echo "FAILED: $*" >&2
  exit 1
}

mkdir -p "$work/bin" "$work/build/tests"
touch "$work/build/libmoenn_cuda.so" "$work/build/tests/libplain_products.so"
export PATH="$work/bin:$PATH" LOGS="$work/logs" JOBS=2 GPUS="4 6" TOOL=memcheck

LIST=1 "$script" "$work/build" >"$work/parts"
for source in "$SOURCE_DIR"/tests/ops/test_*.c "$SOURCE_DIR"/tests/cuda/test_*.c; do
  program=$(basename "$source" .c)
  case $program in # about CPUs; whole models, errors and copies on a GPU
  test_backend | test_exp | test_threads) continue ;;
  test_against_cpu | test_bytes_gpu | test_copies | test_errors) continue ;;
  test_steps | test_threads_gpu) continue ;;
  esac
  tests=$(grep -oE 'cmocka_unit_test\w*\(\w+' "$source" | sed 's/.*(//')
  [ -n "$tests" ] || fail "no test was found in $source"
  for test in $tests; do
    grep -qE "^$program/(\*|$test)/" "$work/parts" || fail "$program/$test is in no part"
  done
done

cat >"$work/bin/compute-sanitizer" <<'END'
#!/bin/sh
echo "$MOENN_PLUGIN_PATH, ${MOENN_TEST_ONLY:-} ${MOENN_TEST_SHARE:-} ${MOENN_CUDA_CAPABILITY:-}: $*"
echo "on GPU ${CUDA_VISIBLE_DEVICES:-}"
case $FAKE in
absent) echo "no GPU" && exit 77 ;;
report) [ -z "${MOENN_TEST_HALF:-}" ] || errors=3 ;;
esac
for _ in $(seq "${errors:-0}"); do
  echo "========= Invalid __shared__ write of size 16 bytes"
  echo "=========     at void kernel<float>(int)+0x30"
done
[ "$FAKE" = nothing ] || echo "[  PASSED  ] 2 test(s)."
echo "========= ERROR SUMMARY: ${errors:-0} errors"
END
chmod +x "$work/bin/compute-sanitizer"

# run FAKE STATUS TEXT...: the script must end with STATUS and say each TEXT of the six parts.
run() {
  FAKE=$1 status=$2 got=0
  export FAKE
  shift 2
  "$script" "$work/build" 'test_row_gate/*' 'test_glu_bf16/test_row_gate/*' \
    'test_sequences_bf16/*/f16-80/*' >"$work/out" 2>&1 || got=$?
  [ $got -eq "$status" ] || { cat "$work/out"; fail "$FAKE gave $got instead of $status"; }
  for text in "$@"; do
    grep -qE "$text" "$work/out" || { cat "$work/out"; fail "$FAKE did not say '$text'"; }
  done
}

run clean 0 '^test_row_gate.all.fp32.0-1 .* s  clean$' 'memcheck: 6 parts, 6 run, 6 clean, '
wants() { # FILE TEXT: a part's log must hold it
  grep -qF "$2" "$LOGS/$1.log" || { cat "$LOGS/$1.log"; fail "$1 was not run as '$2'"; }
}
wants test_glu_bf16.test_row_gate.f16.1-2 "$work/build, test_row_gate 1/2 : --tool memcheck "
wants test_sequences_bf16.all.f16-80.0-1 ",   80: --tool memcheck "
for gpu in 4 6; do
  grep -q "^on GPU $gpu\$" "$LOGS"/test_*.log || fail "GPU $gpu took no part"
done
run report 1 '^test_row_gate.all.fp32.0-1 .* s  clean$' ' 3 Invalid __shared__ write of size ' \
  ' 3 void kernel<float>\(int\)$' \
  'STATUS 0, ERROR SUMMARY: 3 errors' 'memcheck: 6 parts, 6 run, 1 clean, '
run nothing 1 'NOTHING RAN' 'memcheck: 6 parts, 6 run, 0 clean, '
run absent 1 'no GPU'
! grep -q 'test_row_gate' "$work/out" || { cat "$work/out"; fail "it went on without a GPU"; }
if "$script" "$work/build" 'no such part' >"$work/out" 2>&1; then fail "it ran no part"; fi
