#!/usr/bin/env bash
# Builds and tests the Rust crates against the libmoenn.so in BUILD_DIR; writes outside the source
# tree only. Exit status 77: no toolchain.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
SOURCE_DIR=${SOURCE_DIR:-$(cd "$here/../.." && pwd)}
BUILD_DIR=$(cd "${BUILD_DIR:?a CMake build folder that holds libmoenn.so}" && pwd)

has() { command -v "$1" >/dev/null; }
if ! has cargo || ! has rustc; then
  echo "skipped: no cargo and rustc (Debian: cargo, rustc)"
  exit 77
fi
if ! printf '1.63\n%s\n' "$(rustc --version | cut -d' ' -f2)" | sort -VC; then
  echo "skipped: $(rustc --version), and 1.63 is needed"
  exit 77
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export CARGO_NET_OFFLINE=true CARGO_TARGET_DIR=$work/target TMPDIR=$work MOENN_DIR=$BUILD_DIR
cd "$here"
say() { printf -- '-- %s\n' "$*"; }
fail() { printf 'FAILED: %s\n' "$*" && exit 1; }

say "the crates have all of the header"
python3 check.py "$SOURCE_DIR/abi/api.json"
if has bindgen && [ "$(bindgen --version)" = "bindgen 0.60.1" ]; then
  ./generate.sh "$work/bindings.rs"
  squeeze() { tr -d '[:space:],' <"$1"; }
  diff <(squeeze moenn-sys/src/bindings.rs) <(squeeze "$work/bindings.rs") >/dev/null ||
    fail "moenn-sys/src/bindings.rs is not what bindgen makes of moenn.h: run generate.sh"
fi

say "linters, with $(rustc --version)"
if cargo fmt --version >/dev/null 2>&1; then
  cargo fmt -- --check
else
  say "cargo fmt is not there"
fi
if cargo clippy --version >/dev/null 2>&1; then
  cargo clippy --locked --workspace --all-targets -- -D warnings
else
  say "cargo clippy is not there: the compiler's warnings instead"
  RUSTFLAGS="-D warnings" cargo check --locked --workspace --all-targets
fi
RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps

say "tests"
cargo test --locked --workspace

say "examples"
cargo build --locked --release --examples
examples=$CARGO_TARGET_DIR/release/examples
cat "$SOURCE_DIR/LICENSE-APACHE" "$SOURCE_DIR/README.md" >"$work/text"
losses() { grep -ao '^\(step\|valid\|layer\).*' | sed 's/  *[0-9]* tokens.*//'; }
"$examples/train_tiny" "$work/text" --steps 6 --seed 3 --out "$work/rust" | tee "$work/rust.log"
"$examples/generate" "$work/rust" "The " 20 >"$work/generated"
[ "$(head -c 4 "$work/generated")" = "The " ] || fail "generate did not stream its prompt"
if [ -x "$BUILD_DIR/train_tiny" ]; then
  "$BUILD_DIR/train_tiny" "$work/text" --steps 6 --seed 3 --out "$work/c" >"$work/c.log"
  diff <(losses <"$work/c.log") <(losses <"$work/rust.log") ||
    fail "train_tiny prints other losses in C"
  cmp "$work/c/model.safetensors" "$work/rust/model.safetensors" ||
    fail "train_tiny trains another model in C"
  say "C and Rust print the same losses and save the same bytes"
else
  say "no train_tiny in BUILD_DIR to compare with"
fi

say "a crate of its own, which finds the library by MOENN_DIR"
mkdir "$work/outside"
cd "$work/outside"
cargo init --quiet --vcs none --name outside
cargo add --quiet --path "$here/moenn" 2>/dev/null ||
  echo "moenn = { path = \"$here/moenn\" }" >>Cargo.toml
sed -n '/^```rust$/,/^```$/{/^```/d;p}' "$here/moenn/README.md" >src/main.rs
LD_LIBRARY_PATH=$BUILD_DIR cargo run --quiet | tail -2

say "the same by pkg-config, and with nothing to find"
unset MOENN_DIR
mkdir "$work/pc"
printf 'Name: moenn\nDescription: test\nVersion: 0.1.0\nLibs: -L%s -lmoenn\n' "$BUILD_DIR" \
  >"$work/pc/moenn.pc"
if has pkg-config; then
  LD_LIBRARY_PATH=$BUILD_DIR PKG_CONFIG_PATH=$work/pc cargo run --quiet | tail -1
fi
if MOENN_DIR=$work/pc cargo build --quiet 2>"$work/reason"; then
  fail "a folder without libmoenn.so was taken"
fi
grep -q "there is no libmoenn.so in it" "$work/reason" ||
  fail "the reason is not said: $(cat "$work/reason")"
say "all passed"
