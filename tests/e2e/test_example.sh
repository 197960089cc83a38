#!/bin/sh
# The example from outside: its output and exit codes, bad options and data, the same losses on
# every run and thread count, Ctrl-C, and what cannot be written.
set -u
: "${SOURCE_DIR:?}" "${BUILD_DIR:?}"
example="$BUILD_DIR/train_tiny"
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
failures=0

problem() {
  echo "FAILED: $*"
  failures=$((failures + 1))
}

# run CODE ARGUMENTS...: the example must exit with CODE; its output is in out and err.
run() {
  code=$1
  shift
  "$example" "$@" >out 2>err
  got=$?
  [ $got -eq "$code" ] || { problem "train_tiny $* gave $got instead of $code"; cat out err; }
}

# says FILE PATTERN
says() { grep -Eq -- "$2" "$1" || { problem "no line matches: $2"; cat "$1"; }; }

# What must be the same on every run: all but speed, time and the folder.
results() { sed -E 's/ +[0-9]+ tokens.*//; s/^saved in [^;]*//' "$1"; }

echo "- options"
run 0 --help
says out 'usage: train_tiny'
for bad in --bogus --steps --minutes --out '--steps 0' '--steps 1.5' '--steps x' '--steps 3x' \
  '--steps -1' '--minutes 0' '--minutes -1' '--minutes nan' '--minutes inf' '--seed -1' \
  '--seed 0.5' '--threads 0' '--threads 1025' 'one two'; do
  # shellcheck disable=SC2086 # the words of a case are separate arguments
  run 2 $bad
  [ -s out ] && problem "train_tiny $bad prints to standard output"
  [ -s err ] || problem "train_tiny $bad says nothing"
done
run 2 --steps 0
says err '--steps is 0; it takes a whole number from 1 to'

echo "- data"
run 1 absent.txt
says err 'NN_ERR_NOT_FOUND: absent.txt'
run 1 .
says err 'NN_ERR_IO'
: >empty.txt
run 1 empty.txt
says err 'NN_ERR_ARGUMENT: empty.txt'
printf 'too short to hold one window' >short.txt
run 1 short.txt
says err 'NN_ERR_ARGUMENT: short.txt'

echo "- a run"
run 0 --steps 4 --threads 2 --seed 5 --out first
results out >expected
for line in '^step    4  loss [0-9]\.[0-9]{4}  [0-9]+ tokens/s  [0-9]+ MB  0 s left$' \
  '^validation loss [0-9]\.[0-9]{4} nats per byte$' '^true entropy +0\.[0-9]{4}' \
  '^layer 0: entropy of expert use [01]\.[0-9]{3}' \
  '^saved in first; reloaded, it gives the same logits, bit for bit$'; do
  says out "$line"
done
[ -s first/config.json ] && [ -s first/model.safetensors ] || problem "first is no model's folder"
[ "$(grep -c '^step' out)" -eq 4 ] || problem "4 steps should print 4 lines"

echo "- the same on every run and thread count"
for threads in 2 1 3; do
  run 0 --steps 4 --threads $threads --seed 5 --out again
  results out | cmp -s - expected || { problem "another run, on $threads threads"; cat out; }
  cmp -s first/model.safetensors again/model.safetensors ||
    problem "other weights on $threads threads"
done
run 0 --steps 4 --seed 6 --out other
results out | cmp -s - expected && problem "another seed gives the same run"

echo "- a text"
run 0 "$SOURCE_DIR/include/moenn.h" --steps 2 --out text
says out '^validation loss [0-9]\.[0-9]{4} nats per byte$'
grep -q 'true entropy' out && problem "the entropy of a text is not known"

echo "- a budget of time"
before=$(date +%s)
run 0 --minutes 0.02 --out timed
[ $(($(date +%s) - before)) -lt 60 ] || problem "1.2 s of training take more than a minute"

echo "- a folder that cannot be written"
: >file
run 1 --steps 1 --out file/model
says err 'file/model'

echo "- Ctrl-C"
"$example" --minutes 5 --out stopped >out 2>err &
pid=$!
waited=0
until grep -q '^step' out || [ $waited -ge 100 ]; do
  sleep 0.2
  waited=$((waited + 1))
done
kill -INT $pid
wait $pid
got=$?
[ $got -eq 130 ] || problem "Ctrl-C gave $got instead of 130"
says out '^saved in stopped; reloaded, it gives the same logits, bit for bit$'
grep -q 'true entropy' out && problem "Ctrl-C did not skip what was left"
[ -s stopped/config.json ] && [ -s stopped/model.safetensors ] || problem "nothing was saved"

[ $failures -eq 0 ] && echo "all is well"
exit $failures
