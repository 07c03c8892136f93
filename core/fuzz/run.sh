#!/usr/bin/env bash
# Fuzzes every target for SECONDS each (60 if not given), from the seeds in corpus/. Fails on a finding, which stays in artifacts/.
#   core/fuzz/run.sh 600
#   core/fuzz/run.sh 600 device server     only these
# Any toolchain will do: coverage is a pass of LLVM that rustc has. The kernel has no unsafe code, so there is nothing for an
# address sanitizer to see; overflows and debug assertions are checked. libFuzzer needs a C++ compiler: installed on Debian when run as root.
set -euo pipefail
cd "$(dirname "$0")"
seconds=${1:-60}
shift || true
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(spec control handshake channel device server)

if ! command -v c++ >/dev/null; then
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || { echo "core/fuzz/run.sh: libFuzzer needs a C++ compiler" >&2; exit 1; }
  apt-get update -qq && apt-get install -y -qq --no-install-recommends g++
fi

coverage="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters"
coverage="$coverage -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares"
host=$(rustc -vV | sed -n 's/^host: //p')
# With a target named, build scripts are not instrumented.
RUSTFLAGS="$coverage -Ccodegen-units=1 -Cdebug-assertions -Coverflow-checks --cfg fuzzing" \
  cargo build --locked --quiet --release --target "$host" --target-dir target "${targets[@]/#/--bin=}"

found=$(mktemp -d)
trap 'rm -rf "$found"' EXIT
for target in "${targets[@]}"; do
  mkdir -p "$found/$target" artifacts
  printf '\n== %s, %s s\n' "$target" "$seconds"
  "target/$host/release/$target" "$found/$target" "corpus/$target" -artifact_prefix="artifacts/$target-" \
    -max_total_time="$seconds" -rss_limit_mb=2048 -max_len=4096 -timeout=20 -print_final_stats=1 -verbosity=0
done
echo "no findings"
