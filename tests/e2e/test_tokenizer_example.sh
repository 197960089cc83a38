#!/bin/sh
# The example that learns a tokenizer, from outside: both kinds, what it writes, and what it
# refuses.
set -u
: "${SOURCE_DIR:?}" "${BUILD_DIR:?}"
example="$BUILD_DIR/train_tokenizer"
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
cat "$SOURCE_DIR"/README.md "$SOURCE_DIR"/LICENSE-APACHE >text
mkdir folder

fail() {
  echo "FAILED: $*"
  exit 1
}

"$example" unigram.json text >out || fail "unigram"
grep -Eq '^[0-9]+ ids in unigram.json$' out || fail "no line about ids: $(cat out)"
"$example" --bpe folder text text >out || fail "bpe"
grep -q '^Once upon a time' out || fail "no sentence: $(cat out)"
for file in unigram.json folder/tokenizer.json folder/tokenizer_config.json; do
  python3 -c 'import json, sys; json.load(open(sys.argv[1], encoding="utf-8"))' "$file" ||
    fail "$file is no JSON"
done
"$example" again.json text >out || fail "again"
cmp unigram.json again.json || fail "the same text gives another tokenizer"

"$example" unigram.json 2>err && fail "no text was given"
[ $? -eq 2 ] || fail "the exit code for wrong use"
"$example" --bep unigram.json text 2>err && fail "an unknown option was taken"
"$example" --help >out || fail "help"
grep -q '^usage: train_tokenizer' out || fail "no usage: $(cat out)"
"$example" unigram.json absent 2>err && fail "the text is absent"
grep -q absent err || fail "the message does not say what is absent: $(cat err)"
echo passed
