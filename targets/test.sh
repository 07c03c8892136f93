#!/usr/bin/env bash
# Builds the firmware for the boards, scans it, and runs it in QEMU: by itself (selftest), and as
# the device of the real server (device).
#   targets/test.sh            every board
#   targets/test.sh BOARD...   these
set -euo pipefail
cd "$(dirname "$0")"
. ./toolchain.sh

[ $# -gt 0 ] || set -- $(boards)
out=${FIRMWARE_OUT:-$PWD/../target/firmware}
for board; do
    ./build.sh "$board" selftest
    ./build.sh "$board" device
    # For the test of what does not fit.
    [ "$board" != microbit ] || FIRMWARE_WORK=480 ./build.sh "$board" device
done
cargo test --locked -p secure-router-scan
for board; do
    cpu=$(board_field "$board" cpu)
    allow=(--allow scan/allow.txt)
    [ "$cpu" != Cortex-M3 ] || allow+=(--allow scan/cortex-m3.txt)
    for bin in selftest device; do
        cargo run --quiet --locked -p secure-router-scan -- "${allow[@]}" --cpu "$cpu" "$out/$board/$bin.elf"
    done
done
cargo build --locked -p secure-router-count
filters=()
for board; do filters+=("${board//-/_}::"); done
cargo test --locked -p secure-router-qemu -- "${filters[@]}" every_board

./measure.sh "$@" --count 2
# Words go in by a gate of their own.
./measure.sh "$1" --pool harness/pools/text/pool.safetensors --program micro --count 2 \
    --text "A warm and engaging picture, by one who knows how." --text "Dull"
# The check can fail: it finds a device that leaks.
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
if FIRMWARE_FEATURES=qemu,leak FIRMWARE_OUT=$scratch ./measure.sh "$1" --program micro --count 2 >"$scratch/log" 2>&1 ||
    ! grep -q 'instructions depend on the input' "$scratch/log"; then
    cat "$scratch/log" >&2
    echo "the constant-time check did not notice a leak" >&2
    exit 1
fi
cd ..
cargo test --locked -p secure-router-tests --test boards -- --include-ignored "${filters[@]}" every_board
