#!/bin/sh
# The example from outside: its output and exit codes, bad options and data, the same losses on
# every run and thread count, Ctrl-C, and what cannot be written. Texts are short where the stories
# make no difference: less to validate.
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
for help in --help -h; do
  run 0 $help
  says out 'usage: train_tiny'
done
for bad in --bogus --steps --minutes --out '--steps 0' '--steps 1.5' '--steps x' '--steps 3x' \
  '--steps -1' '--minutes 0' '--minutes -1' '--minutes nan' '--minutes inf' '--seed -1' \
  '--seed 0.5' '--threads 0' '--threads 1025' 'one two' '--minutes 1 --steps 1'; do
  # shellcheck disable=SC2086 # the words of a case are separate arguments
  run 2 $bad
  [ -s out ] && problem "train_tiny $bad prints to standard output"
  [ -s err ] || problem "train_tiny $bad says nothing"
done
run 2 --steps 0
says err '--steps is 0; it takes a whole number from 1 to'
run 2 --minutes 1 --steps 1
says err '--minutes or --steps, not both'

echo "- data"
run 1 absent.txt
says err 'NN_ERR_NOT_FOUND: absent.txt'
run 1 .
says err 'NN_ERR_IO'
repeat() { printf "%$1s" '' | tr ' ' x; } # so many bytes
for bytes in 0 2 284; do
  repeat $bytes >short.txt
  run 1 short.txt
  says err "short.txt: has $bytes bytes and needs 285"
done
repeat 285 >just.txt
run 0 just.txt --steps 1 --out just
says out '^validation loss'

echo "- a run"
run 0 --steps 4 --threads 2 --seed 5 --out first
for line in '^step    4  loss [0-9]\.[0-9]{4}  [0-9]+ tokens/s  [0-9]+ MB  0 s left$' \
  '^validation loss [0-9]\.[0-9]{4} nats per byte$' '^true entropy +0\.[0-9]{4}' \
  '^layer 0: entropy of expert use [01]\.[0-9]{3}' \
  '^saved in first; reloaded, it gives the same logits, bit for bit$'; do
  says out "$line"
done
[ -s first/config.json ] && [ -s first/model.safetensors ] || problem "first is no model's folder"
[ "$(grep -c '^step' out)" -eq 4 ] || problem "4 steps should print 4 lines"

echo "- a text, the same on every run and thread count"
head -c 8000 "$SOURCE_DIR/include/moenn.h" >text.txt
run 0 text.txt --steps 2 --threads 2 --seed 5 --out text
says out '^validation loss [0-9]\.[0-9]{4} nats per byte$'
grep -q 'true entropy' out && problem "the entropy of a text is not known"
results out >expected
for threads in 2 1 3; do
  run 0 text.txt --steps 2 --threads $threads --seed 5 --out again
  results out | cmp -s - expected || { problem "another run, on $threads threads"; cat out; }
  cmp -s text/model.safetensors again/model.safetensors ||
    problem "other weights on $threads threads"
done
run 0 text.txt --steps 2 --seed 6 --out other
results out | cmp -s - expected && problem "another seed gives the same run"

echo "- a budget of time"
before=$(date +%s)
run 0 text.txt --minutes 0.02 --out timed
[ $(($(date +%s) - before)) -lt 60 ] || problem "1.2 s of training take more than a minute"

echo "- a folder that cannot be written"
: >file
run 1 text.txt --out file/model
says err 'file/model'
grep -q '^step' out && problem "it trained before it found that out"

echo "- output that goes nowhere"
if [ -c /dev/full ]; then
  for arguments in --help 'text.txt --steps 1 --out full'; do
    # shellcheck disable=SC2086 # the words of a case are separate arguments
    "$example" $arguments >/dev/full 2>err
    got=$?
    [ $got -eq 1 ] || problem "train_tiny $arguments into a full disk gave $got instead of 1"
  done
  says err 'not all of the output could be written'
fi

echo "- Ctrl-C"
"$example" text.txt --minutes 5 --out stopped >out 2>err &
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
grep -q '^validation loss [0-9]' out && problem "Ctrl-C did not skip what was left"
[ -s stopped/config.json ] && [ -s stopped/model.safetensors ] || problem "nothing was saved"

[ $failures -eq 0 ] && echo "all is well"
exit $failures
