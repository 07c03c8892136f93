#!/usr/bin/env bash
# Builds the selftest for the boards, scans it, and runs it in QEMU.
#   targets/test.sh            every board
#   targets/test.sh BOARD...   these
set -euo pipefail
cd "$(dirname "$0")"
. ./toolchain.sh

[ $# -gt 0 ] || set -- $(boards)
for board; do ./build.sh "$board" selftest; done
cargo test --locked -p secure-router-scan
for board; do
    cargo run --quiet --locked -p secure-router-scan -- --allow scan/allow.txt \
        --cpu "$(board_field "$board" cpu)" "${FIRMWARE_OUT:-../target/firmware}/$board/selftest.elf"
done
cargo build --locked -p secure-router-count
filters=()
for board; do filters+=("${board//-/_}::"); done
cargo test --locked -p secure-router-qemu -- "${filters[@]}" every_board
