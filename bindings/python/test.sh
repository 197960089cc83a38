#!/bin/sh
# Builds and runs all of the Python binding's tests, outside the source tree. SOURCE_DIR is the
# repository, BUILD_DIR a build folder with libmoenn.so. Exit status 77: skipped, and the last line
# says why.
set -eu
: "${SOURCE_DIR:?}" "${BUILD_DIR:?}"
here=$SOURCE_DIR/bindings/python
library=$BUILD_DIR/libmoenn.so
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PYTHONDONTWRITEBYTECODE=1
unset PYTHONPATH MOENN_LIBRARY

skip() {
  echo "skipped: $*"
  exit 77
}

part() { printf -- '-- %s\n' "$*"; }

python3 -c 'import sys; sys.exit(sys.version_info < (3, 9))' 2>/dev/null ||
  skip "no python3 of 3.9 or newer"
python3 -m venv "$work/venv" >/dev/null 2>&1 || skip "python3 has no venv (package python3-venv)"
[ -e "$library" ] || { echo "$BUILD_DIR has no libmoenn.so" >&2; exit 1; }
python=$work/venv/bin/python
"$python" -m pip install --quiet --disable-pip-version-check numpy mypy >"$work/pip" 2>&1 ||
  skip "pip cannot install numpy and mypy: $(grep -v '^WARNING' "$work/pip" | head -1)"
touch "$work/before"

part "raw layer"
"$python" "$here/raw.py" --check

part "types"
"$python" -m mypy --strict --cache-dir="$work/mypy" "$here/moenn" "$here/bench.py"
for example in "$here"/examples/*.py; do
  MYPYPATH=$here "$python" -m mypy --strict --cache-dir="$work/mypy" "$example"
done

part "tests"
export SOURCE_DIR BUILD_DIR
(cd "$work" && MOENN_LIBRARY=$library PYTHONPATH=$here \
  "$python" -W error -m unittest discover -s "$here/tests")

part "overhead"
MOENN_LIBRARY=$library PYTHONPATH=$here env -u BUILD_DIR "$python" \
  "$here/bench.py" --steps 5

part "wheel, in an environment of its own"
python3 -m venv "$work/clean"
"$work/clean/bin/pip" --quiet --disable-pip-version-check install "$here" \
  --config-settings=cmake.define.MOENN_CUDA=OFF
mkdir "$work/elsewhere"
cp "$here/examples/train_tiny.py" "$here/examples/generate.py" "$work/elsewhere"
(
  cd "$work/elsewhere"
  python=$work/clean/bin/python
  "$python" -c 'import moenn, sys; from pathlib import Path; home = Path(moenn.__file__).parent
assert Path(sys.prefix) in home.parents
assert (home / "libmoenn.so").exists() and (home / "py.typed").exists()'
  cat "$SOURCE_DIR"/README.md "$SOURCE_DIR"/docs/*.md >text
  "$python" train_tiny.py text --steps 4 --out model | tail -1
  "$python" generate.py model --prompt "A model" --tokens 20 >/dev/null
)

left=$(find "$here" -newer "$work/before" ! -type d)
[ -z "$left" ] || { echo "left in the source tree: $left" >&2; exit 1; }
