#!/usr/bin/env bash
# Checks moenn.hpp and its examples against the library in BUILD_DIR: with each C++ compiler here,
# without warnings, with the address sanitizer, against abi/api.json and against the example in C.
# Nothing is written to the source tree. Status 77: no C++ compiler here.
set -euo pipefail
: "${SOURCE_DIR:?the root of the repository}" "${BUILD_DIR:?a build folder that holds libmoenn.so}"
compilers=()
for compiler in g++ clang++; do
  if command -v $compiler >/dev/null; then compilers+=($compiler); else echo "no $compiler here"; fi
done
if [ ${#compilers[@]} -eq 0 ] || ! command -v python3 >/dev/null; then
  echo "skipped: no C++ compiler, or no python3, here"
  exit 77
fi
SOURCE_DIR=$(cd "$SOURCE_DIR" && pwd) BUILD_DIR=$(cd "$BUILD_DIR" && pwd)
here=$SOURCE_DIR/bindings/cpp
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export TMPDIR=$work ASAN_OPTIONS=allocator_may_return_null=1

python3 - "$SOURCE_DIR" <<'PYTHON'
import json, pathlib, re, sys
root = pathlib.Path(sys.argv[1])
api = json.loads((root / "abi/api.json").read_text())
source = re.sub(r"/\*.*?\*/", "", (root / "include/moenn.hpp").read_text(), flags=re.S)
words = set(re.findall(r"\w+", re.sub(r"//.*", "", source)))
names = [entry["name"] for kind in ("functions", "structs") for entry in api[kind]]
missing = [name for name in names if name not in words]
if missing or len(names) < 90:
    sys.exit("moenn.hpp lacks " + ", ".join(missing))
print(f"moenn.hpp has all {len(names)} functions and structs; enumerators are moenn.h's own")
PYTHON

warnings=(-Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror)
library=(-L"$BUILD_DIR" -Wl,-rpath,"$BUILD_DIR" -lmoenn -pthread)
sanitized="-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all -DMOENN_SANITIZED"
for compiler in "${compilers[@]}"; do
  for options in -O1 "$sanitized"; do
    # shellcheck disable=SC2086 # options are words
    $compiler -std=c++17 "${warnings[@]}" $options -I"$SOURCE_DIR/include" "$here/test_moenn.cpp" \
      "${library[@]}" \
      -o "$work/test_moenn"
    printf '%s %s: ' $compiler "${options%% -fno*}"
    "$work/test_moenn"
  done
  $compiler -std=c++20 "${warnings[@]}" -fsyntax-only -I"$SOURCE_DIR/include" "$here/test_moenn.cpp"
done

# The examples: the same losses, text and bits of the saved model as in C.
for name in train_tiny generate; do
  ${compilers[0]} -std=c++17 -O1 "${warnings[@]}" -I"$SOURCE_DIR/include" "$here/$name.cpp" \
    "${library[@]}" -o "$work/$name"
done
cc -O1 -I"$SOURCE_DIR/include" "$SOURCE_DIR"/examples/{train_tiny,stories}.c "${library[@]}" -lm \
  -o "$work/train_c"
cat "$SOURCE_DIR"/docs/*.md "$SOURCE_DIR"/*.md >"$work/text"
cd "$work"
./train_c text --steps 20 --seed 3 --out model | sed 's/  [0-9]* tokens.*//' >losses_c
mv model model_c
./train_tiny text --steps 20 --seed 3 --out model | sed 's/  [0-9]* tokens.*//' >losses_cpp
cmp losses_c losses_cpp
cmp model_c/model.safetensors model/model.safetensors
echo "train_tiny: the same losses and the same saved bits as in C after 20 steps"
./generate model 'The ' 40 >generated
[ "$(wc -c <generated)" -ge 40 ]
if ./generate nowhere 2>message; then exit 1; fi
grep -q nowhere message
