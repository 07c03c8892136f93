#!/usr/bin/env bash
# Builds the examples for firmware authors: `minimal` (own UART, own input, no crates but the
# kernel's and cortex-m's) and `embassy` (async). Both are for an STM32F405.
#   targets/examples/build.sh [--clippy]     lints them instead
# FIRMWARE_TOOLCHAIN forces rustup, nightly or debian.
set -euo pipefail
cd "$(dirname "$0")"
. ../toolchain.sh

for example in minimal embassy; do
    (
        cd "$example"
        if [ "${1:-}" = --clippy ]; then
            firmware_cargo thumbv7em-none-eabihf clippy --quiet --locked --release -- -D warnings
        else
            firmware_cargo thumbv7em-none-eabihf build --quiet --locked --release
            echo "$(cd "${CARGO_TARGET_DIR:-target}" && pwd)/thumbv7em-none-eabihf/release/$example"
        fi
    )
done
lines=$(wc -l <minimal/src/main.rs)
[ "$lines" -le 60 ] || { echo "minimal has $lines lines" >&2; exit 1; }
