# Sourced by example.sh and test.sh: finds what is missing, installs it on Debian and Ubuntu, says
# it elsewhere, and configures a preset.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
export CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc 2>/dev/null || echo 2)}
missing_packages=()
missing_things=()

# need PACKAGE THING CHECK...: CHECK succeeds where THING is there; the Debian package PACKAGE
# brings it.
need() {
  local package=$1 thing=$2
  shift 2
  "$@" >/dev/null 2>&1 && return
  missing_packages+=("$package")
  missing_things+=("$thing")
}

has() { command -v "$1"; }

has_header() {
  if has cc >/dev/null; then echo "#include <$1>" | cc -E -; else test -e "/usr/include/$1"; fi
}

# Installs the missing packages, or says what is missing and stops.
install_missing() {
  [ ${#missing_packages[@]} -gt 0 ] || return 0
  echo "missing: $(printf '%s; ' "${missing_things[@]}" | sed 's/; $//')"
  if ! has apt-get >/dev/null; then
    echo "No apt-get here: install them by this system's own means, and run the command again." >&2
    exit 1
  fi
  local as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    if ! has sudo >/dev/null; then
      echo "Neither root nor sudo here. Run as root: apt-get install ${missing_packages[*]}" >&2
      exit 1
    fi
    as_root=(sudo)
  fi
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends "${missing_packages[@]}"
  missing_packages=()
  missing_things=()
}

# What building the library takes.
need_build() {
  need gcc "a C compiler, as cc" has cc
  need libc6-dev "the C library's headers (stdio.h)" has_header stdio.h
  need cmake "cmake 3.25 or newer" has cmake
  need ninja-build "ninja" has ninja
  need pkg-config "pkg-config" has pkg-config
  need libjansson-dev "jansson (jansson.h)" has_header jansson.h
  need libpcre2-dev "PCRE2 (pcre2.h, pcre2posix.h)" has_header pcre2posix.h
  need libutf8proc-dev "utf8proc (utf8proc.h)" has_header utf8proc.h
}

# Older systems package an older CMake: then one from PyPI, inside build/.
newer_cmake() {
  [ -x build/cmake/bin/cmake ] && PATH=$root/build/cmake/bin:$PATH
  local found
  found=$(cmake --version | sed -n '1s/[^0-9]*//p')
  printf '3.25\n%s\n' "$found" | sort -VC && return
  echo "cmake is $found, and 3.25 is needed: installing one in build/cmake"
  need python3-venv "python3 with venv" python3 -c "import ensurepip, venv"
  install_missing
  python3 -m venv build/cmake
  build/cmake/bin/pip --quiet install "cmake>=3.25"
  PATH=$root/build/cmake/bin:$PATH
}

# Where there is an nvcc without cuBLASLt, that comes from PyPI, inside build/; cuda_options is then
# what configure takes to find it.
cuda_options=()
find_cublas() {
  has nvcc >/dev/null || return 0
  local release folder
  if echo '#include <cublasLt.h>' | nvcc -x cu -E - >/dev/null 2>&1; then return 0; fi
  release=$(nvcc --version | sed -n 's/.*release \([0-9.]*\),.*/\1/p')
  folder=$(echo build/cublas/lib/python3*/site-packages/nvidia/cu13)
  if [ ! -e "$folder/include/cublasLt.h" ]; then
    echo "nvcc $release has no cuBLASLt beside it: installing one in build/cublas"
    need python3-venv "python3 with venv" python3 -c "import ensurepip, venv"
    install_missing
    python3 -m venv build/cublas
    build/cublas/bin/pip --quiet install --no-deps "nvidia-cublas==$release.*" || return 0
    folder=$(echo build/cublas/lib/python3*/site-packages/nvidia/cu13)
  fi
  cuda_options=("-DMOENN_CUBLAS=$root/$folder")
}

# configure PRESET [OPTION...]; a build folder keeps the generator it was made with.
configure() {
  local preset=$1 generator=(-G Ninja)
  shift
  [ -e "build/$preset/CMakeCache.txt" ] && generator=()
  cmake --preset "$preset" "${generator[@]}" "$@"
}
