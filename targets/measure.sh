#!/usr/bin/env bash
# Prints one table: what the firmware takes on each board with the real server and real inputs, in
# bytes and guest instructions.
#   targets/measure.sh [BOARD...] [--count INPUTS] [--program NAME]
# Ends with status 1 if the instructions depend on the input or the keys: that is the constant-time
# check. Needs a QEMU that takes the plugin of count/.
set -euo pipefail
cd "$(dirname "$0")"

cargo build --quiet --locked -p secure-router-count
plugin=$(cd "${CARGO_TARGET_DIR:-target}" && pwd)/debug/libsecure_router_count.so
cd ..
exec cargo run --quiet --locked --release -p secure-router -- measure --plugin "$plugin" "$@"
