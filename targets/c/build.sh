#!/usr/bin/env bash
# Builds the static library for a target and says where it is.
#   targets/c/build.sh [TARGET]      thumbv7em-none-eabihf unless given
# FIRMWARE_TOOLCHAIN forces rustup, nightly or debian.
set -euo pipefail
cd "$(dirname "$0")"
. ../toolchain.sh

target=${1:-thumbv7em-none-eabihf}
firmware_cargo "$target" build --quiet --locked --release
echo "$(cd "${CARGO_TARGET_DIR:-target}" && pwd)/$target/release/libsecure_router.a"
