#!/usr/bin/env bash
# Runs the tests of operations on GPUs under compute-sanitizer, in parts, each on a core of its own:
#
#   tests/cuda/sanitize.sh BUILD [PATTERN...]
#
# BUILD is a build folder with the tests and the CUDA backend. A part is PROGRAM/TEST/KIND/SHARE;
# only those that match a pattern are run, first what the first pattern matches. KIND is bf16 or
# f16, -80 for the kernels of older GPUs behind it, or fp32. In the environment:
#
#   TOOL    racecheck (without it), memcheck, synccheck or initcheck
#   JOBS    parts side by side; without it one fewer than there are cores
#   GPUS    the numbers of those that take them by turns; without it all that nvidia-smi names
#   LIMIT   seconds after which all ends; what did not begin is named
#   LOGS    the folder of the parts' logs; without it BUILD/sanitize
#   LIST    not empty: the parts are named and not run
#
# and MOENN_TEST_WORK, a bound of multiply-adds in place of those that tests have below. A line says
# how each part went, the last one how all did. The exit status is 0 when all ran and nothing was
# found. racecheck takes cuBLASLt's kernels of 16 bits for faulty, so that plain.cu makes the
# products there; sampling makes two draws in place of thousands.
set -euo pipefail

build=$(cd "${1:?wants the folder of a build}" && pwd)
shift
export build TOOL=${TOOL:-racecheck} LIMIT=${LIMIT:-1000000} LOGS=${LOGS:-$build/sanitize}
export MOENN_PLUGIN_PATH=$build MOENN_TEST_DRAWS=${MOENN_TEST_DRAWS:-2}

# each PROGRAM TEST SHARES WORK KIND...: names the parts of a test, whose cases are cut into so many
# shares; those of more multiply-adds than WORK are left out.
each() {
  local program=$1 test=$2 shares=$3 work=$4 kind share
  shift 4
  for kind in "$@"; do
    for ((share = 0; share < shares; share++)); do
      echo "$program/$test/$kind/$share-$shares $work"
    done
  done
}

# Longest first.
parts() {
  local halves=(bf16 f16) kinds=(bf16 f16 bf16-80 f16-80) test
  each test_attention_bf16 test_cache_windows 43 1e8 "${kinds[@]}"
  each test_attention_bf16 test_windows 23 3e8 "${kinds[@]}"
  each test_attention_bf16 test_sinks 11 3e8 "${kinds[@]}"
  each test_experts_bf16 test_experts 23 2e8 "${kinds[@]}"
  each test_attention_bf16 test_cache 23 1e8 "${kinds[@]}"
  each test_attention_bf16 test_backward 11 3e8 "${kinds[@]}"
  each test_experts_bf16 test_route 29 1e8 "${kinds[@]}"
  for test in test_embed test_norm test_norm_groups test_rope test_column_sum test_kv_store; do
    each test_ops_bf16 $test 3 inf "${halves[@]}"
  done
  each test_ops_bf16 test_matmul 1 inf "${halves[@]}"
  each test_attention_bf16 test_many_heads 5 6e8 "${kinds[@]}"
  each test_attention_bf16 test_growing_scores 3 6e8 "${kinds[@]}"
  each test_attention_bf16 test_forward 7 4e8 "${kinds[@]}"
  each test_loss_bf16 test_head_loss 13 4e9 "${halves[@]}"
  each test_loss_bf16 test_sample 18 inf "${halves[@]}"
  for test in test_softmax test_grad_norm test_adamw test_fill; do
    each test_loss_bf16 $test 1 inf "${halves[@]}"
  done
  each test_experts_bf16 test_route_close 1 inf "${kinds[@]}"
  each test_experts_bf16 test_router_loss 1 inf bf16
  each test_glu_bf16 test_glu 5 inf "${halves[@]}"
  each test_glu_bf16 test_row_gate 2 inf "${halves[@]}"
  each test_glu_bf16 test_clip 1 inf "${halves[@]}"
  each test_sequences_bf16 '*' 1 inf "${kinds[@]}"
  each test_graph '*' 1 inf "${halves[@]}"
  for test in experts attention matmul optim loss route embed clip sequences norm column_sum \
    sparse_mixer rope glu copy_heads fill router_loss kv_store row_gate; do
    each test_$test '*' 1 inf fp32
  done
  each test_sample test_filters 5 inf fp32
  for test in test_greedy test_penalty_applies_once test_ties_keep_the_lower_ids \
    test_seed_and_counter test_logits_that_are_not_numbers; do
    each test_sample $test 1 inf fp32
  done
}

# chosen [PATTERN...]
chosen() {
  local pattern name work
  [ $# -gt 0 ] || set -- '*'
  for pattern in "$@"; do
    # shellcheck disable=SC2254 # it is a pattern
    while read -r name work; do case $name in $pattern) echo "$name $work" ;; esac done < <(parts)
  done | awk '!seen[$1]++'
}

# What a log reports and the kernels that it tells of, each with a count, and the test's message.
reports_in() {
  { grep -oE '^=+ [A-Z][^0-9(]*' "$1" | grep -vE 'COMPUTE|SUMMARY|Target' || true; } |
    sed -E 's/^=+ //' | sort | uniq -c | sort -rn | head -4
  { grep -oE '(access at|= +at) [^+]*\+0x' "$1" || true; } |
    sed -E 's/^.*\bat +//; s/\+0x$//' | sort | uniq -c | sort -rn | head -8
  grep -m 1 '^ERROR: ' "$1" || true
}

# one PART WORK
one() {
  local program test kind share name=${1//\//.} log status=0 summary verdict began=$SECONDS
  local left=$((LIMIT - ($(date +%s) - BEGAN))) with=() cores gpus
  IFS=/ read -r program test kind share <<<"$1"
  name=${name//\*/all} log=$LOGS/${name}.log
  [ $left -ge 10 ] || { printf '%-60s not begun\n' "$name"; return; }
  [ "$test" = '*' ] || with+=("MOENN_TEST_ONLY=$test")
  [ "${share#*-}" = 1 ] || with+=("MOENN_TEST_SHARE=${share/-//}")
  [ "$2" = inf ] || with+=("MOENN_TEST_WORK=${MOENN_TEST_WORK:-$2}")
  case $kind in *-80) with+=(MOENN_CUDA_CAPABILITY=80) ;; esac
  case $kind in
  fp32) with+=(MOENN_TEST_DEVICE=cuda:0) ;;
  *)
    with+=("MOENN_TEST_HALF=${kind%-80}")
    [ "$TOOL" != racecheck ] || with+=("LD_PRELOAD=$build/tests/libplain_products.so")
    ;;
  esac
  read -ra cores <<<"$CORES"
  read -ra gpus <<<"$GPUS"
  with+=("CUDA_VISIBLE_DEVICES=${gpus[SLOT % ${#gpus[@]}]}")
  env "${with[@]}" timeout -k 5 $left taskset -c "${cores[SLOT % ${#cores[@]}]}" \
    compute-sanitizer --tool "$TOOL" --print-limit 1000 "$build/tests/$program" \
    >"$log" 2>&1 &
  trap 'kill $!' INT TERM # timeout has a process group of its own and hands signals on
  wait $! || status=$?
  summary=$(grep -oE '(ERROR|RACECHECK) SUMMARY: .*' "$log" | tail -1 || true)
  case "$status $summary" in
  '0 '*'SUMMARY: 0 '*)
    verdict=clean
    grep -qE 'PASSED  \] [1-9]' "$log" || verdict='NOTHING RAN'
    ;;
  124* | 137*) verdict='CUT SHORT' ;;
  *) verdict="STATUS $status, $summary" ;;
  esac
  [ "$verdict" = clean ] || verdict+=$'\n'$(reports_in "$log")
  printf '%-60s %4d s  %s\n' "$name" $((SECONDS - began)) "$verdict" # at once, among others' lines
}
export -f one reports_in

# The processors that this shell may use, one each line.
processors() {
  local first last
  taskset -cp $$ | sed 's/.*: //; s/,/\n/g' |
    while IFS=- read -r first last; do seq "$first" "${last:-$first}"; done
}

names=$(chosen "$@")
[ -n "$names" ] || { echo "no part is named so; LIST=1 names all" >&2; exit 1; }
if [ -n "${LIST:-}" ]; then
  cut -d ' ' -f 1 <<<"$names"
  exit
fi
for file in libmoenn_cuda.so tests/libplain_products.so; do
  [ -e "$build/$file" ] || { echo "$build has no $file" >&2; exit 1; }
done
mkdir -p "$LOGS"
BEGAN=$(date +%s) CORES=$(processors | xargs)
known() { nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null; }
[ -n "${GPUS:-}" ] || GPUS=$(known | xargs) || GPUS=0
export BEGAN CORES GPUS
# Where not even this one runs, its output says why, before all parts do.
MOENN_TEST_DEVICE=cuda:0 compute-sanitizer --tool "$TOOL" "$build/tests/test_fill" \
  >"$LOGS/first.log" 2>&1 || { cat "$LOGS/first.log" >&2; exit 1; }
count=$(wc -w <<<"$CORES")
xargs -L 1 --process-slot-var=SLOT -P "${JOBS:-$((count > 1 ? count - 1 : 1))}" \
  bash -c 'one "$@"' _ <<<"$names" | tee "$LOGS/summary.txt"
ran=$(grep -c ' s  ' "$LOGS/summary.txt" || true)
clean=$(grep -c ' s  clean$' "$LOGS/summary.txt" || true)
all=$(wc -l <<<"$names")
echo "$TOOL: $all parts, $ran run, $clean clean, $(($(date +%s) - BEGAN)) s"
[ "$clean" -eq "$all" ]
