#!/bin/sh
# Installs what the conformance suite compares with into build/conformance, or into the environment
# that MOENN_CONFORMANCE names. What is installed already stays, so a second run takes a second.
# Exit status 77: it cannot be installed here, and the last line says why.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
environment=${MOENN_CONFORMANCE:-$here/../../build/conformance}

skip() {
  echo "skipped: $*"
  exit 77
}

cmp -s "$here/requirements.txt" "$environment/installed" && exit 0
mkdir -p "$environment"
python3 -m venv "$environment" >"$environment/log" 2>&1 ||
  skip "python3 has no venv (package python3-venv)"
echo "installing torch, transformers and others into $environment"
"$environment/bin/python" -m pip install --quiet --disable-pip-version-check \
  -r "$here/requirements.txt" >"$environment/log" 2>&1 ||
  skip "pip cannot install $here/requirements.txt: $(grep '^ERROR' "$environment/log" | head -1)"
cp "$here/requirements.txt" "$environment/installed"
