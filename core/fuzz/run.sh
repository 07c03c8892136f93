#!/usr/bin/env bash
# Fuzzes every target for SECONDS each (60 if not given), from the seeds in corpus/. Fails on a finding.
#   core/fuzz/run.sh 600
#   core/fuzz/run.sh 600 device server     only these
# Needs a nightly toolchain and cargo-fuzz; says so and succeeds where one is missing.
set -euo pipefail
cd "$(dirname "$0")"
seconds=${1:-60}
shift || true

skip() { echo "fuzzing skipped: $*"; exit 0; }
rustup toolchain list 2>/dev/null | grep -q '^nightly' || skip "no nightly toolchain (rustup toolchain install nightly)"
cargo +nightly fuzz --version >/dev/null 2>&1 || skip "no cargo-fuzz (cargo install cargo-fuzz)"

targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(spec control handshake channel device server)
found=$(mktemp -d)
trap 'rm -rf "$found"' EXIT
for target in "${targets[@]}"; do
  mkdir "$found/$target"
  printf '\n== %s, %s s\n' "$target" "$seconds"
  cargo +nightly fuzz run --fuzz-dir . "$target" "$found/$target" "corpus/$target" -- \
    -max_total_time="$seconds" -rss_limit_mb=2048 -max_len=4096 -timeout=20 -print_final_stats=1 -verbosity=0
done
echo "no findings"
