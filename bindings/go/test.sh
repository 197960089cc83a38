#!/usr/bin/env bash
# Checks the Go binding against the library in BUILD_DIR: formatting, vet, tests with and without
# the race detector, the examples against those in C, a program in a module of its own, and the cost
# of a call. Nothing is written to the source tree. Status 77: no Go here.
set -euo pipefail
: "${SOURCE_DIR:?the root of the repository}" "${BUILD_DIR:?a build folder that holds libmoenn.so}"
for tool in go cc pkg-config; do
  command -v $tool >/dev/null || { echo "skipped: no $tool here"; exit 77; }
done
if ! printf 'go1.19\n%s\n' "$(go env GOVERSION)" | sort -VC; then
  echo "skipped: Go is $(go env GOVERSION), and 1.19 is needed"
  exit 77
fi
SOURCE_DIR=$(cd "$SOURCE_DIR" && pwd) BUILD_DIR=$(cd "$BUILD_DIR" && pwd)
export SOURCE_DIR
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
[ -n "${HOME:-}" ] || export GOCACHE=$work/cache GOPATH=$work/path
export GOFLAGS=-mod=readonly GOTOOLCHAIN=local GOPROXY=off CGO_ENABLED=1

# The library as an installation lays it down, for pkg-config.
mkdir -p "$work/prefix/include" "$work/prefix/lib/pkgconfig"
cp "$SOURCE_DIR/include/moenn.h" "$work/prefix/include"
cp -d "$BUILD_DIR"/libmoenn.so* "$work/prefix/lib"
cat >"$work/prefix/lib/pkgconfig/moenn.pc" <<FILE
Name: moenn
Description: libmoenn
Version: 0
Cflags: -I$work/prefix/include
Libs: -L$work/prefix/lib -lmoenn
FILE
# Go's build cache does not see what pkg-config answers; a macro of this run's name keeps runs
# apart.
export CGO_CPPFLAGS=-DRUN_$(basename "$work" | tr -c '[:alnum:]\n' _)
export PKG_CONFIG_PATH=$work/prefix/lib/pkgconfig \
  LD_LIBRARY_PATH=$work/prefix/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}

cd "$SOURCE_DIR/bindings/go"
unformatted=$(gofmt -l .)
[ -z "$unformatted" ] || { echo "gofmt would change $unformatted"; exit 1; }
go vet ./...
GODEBUG=cgocheck=2 go test -count=1 ./... 2>&1 | grep -v 'no test files'
go test -race -count=1 .
echo "without pkg-config, by CGO_CFLAGS and CGO_LDFLAGS:"
PKG_CONFIG=false CGO_CFLAGS="-I$SOURCE_DIR/include" CGO_LDFLAGS="-L$BUILD_DIR" \
  go test -tags moenn_flags -count=1 -run 'TestComplete|TestVersion' .

# The examples: the same losses, text and bits of the saved model as in C.
go build -o "$work/" ./examples/...
cc -O1 -I"$SOURCE_DIR/include" "$SOURCE_DIR"/examples/{train_tiny,stories}.c -L"$BUILD_DIR" \
  -lmoenn -lm -o "$work/train_c"
cat "$SOURCE_DIR"/docs/*.md "$SOURCE_DIR"/*.md >"$work/text"
cd "$work"
./train_c text --steps 20 --seed 3 --out model | sed 's/  [0-9]* tokens.*//' >losses_c
mv model model_c
./train_tiny text --steps 20 --seed 3 --out model | sed 's/  [0-9]* tokens.*//' >losses_go
cmp losses_c losses_go
cmp model_c/model.safetensors model/model.safetensors
echo "train_tiny: the same losses and the same saved bits as in C after 20 steps"
./generate -max-tokens 40 -prompt 'The ' model >generated
[ "$(wc -c <generated)" -ge 40 ]
if ./generate nowhere 2>message; then exit 1; fi
grep -q 'nowhere' message
status=0
./train_tiny text --minutes 5 --out stopped >/dev/null & trained=$!
sleep 2 && kill -INT $trained && wait $trained || status=$?
[ $status -eq 130 ] && [ -s stopped/model.safetensors ]
echo "train_tiny: an interrupt saves the model"

# A program in a module of its own.
mkdir outside && cd outside
printf 'module outside\n\ngo 1.19\n\nrequire moenn v0.0.0\n\nreplace moenn => %s\n' \
  "$SOURCE_DIR/bindings/go" >go.mod
cat >main.go <<'GO'
package main

import (
	"errors"
	"fmt"

	"moenn"
)

func main() {
	device, err := moenn.OpenDevice("cpu", nil)
	if err != nil {
		panic(err)
	}
	defer device.Close()
	if _, err := moenn.Preset("nobody"); !errors.Is(err, moenn.ErrNotFound) {
		panic(err)
	}
	fmt.Println("outside the source tree: libmoenn", moenn.Version())
}
GO
go vet . && go run .

cd "$SOURCE_DIR/bindings/go"
cc -O1 -I"$SOURCE_DIR/include" testdata/step.c -L"$BUILD_DIR" -lmoenn -o "$work/step"
go test -run '^$' -bench . . | grep ns/op
"$work/step"
