#!/usr/bin/env bash
# Builds the firmware for one board and says where it is.
#   targets/build.sh BOARD [BIN]     BIN is selftest unless given
#   targets/build.sh BOARD --clippy  lints it instead
# The ELF goes to target/firmware/BOARD/BIN.elf under the repository's root (or to
# $FIRMWARE_OUT/BOARD/BIN.elf), since boards of one target overwrite each other's.
# FIRMWARE_WORK sets the words of work space, for less RAM or a larger pool; the ELF's name then
# ends in them. FIRMWARE_FEATURES adds features; without any, `qemu` is on. FIRMWARE_TOOLCHAIN
# forces rustup, nightly or debian.
set -euo pipefail
cd "$(dirname "$0")"
. ./toolchain.sh

[ $# -ge 1 ] || { sed -n '2,10p' "$0" >&2; exit 2; }
board=$1 bin=${2:-selftest}
target=$(board_field "$board" target)
out=${FIRMWARE_OUT:-../target/firmware}/$board
features=$board,${FIRMWARE_FEATURES-qemu}
options=(--locked --profile firmware -p secure-router-firmware --features "$features")

if [ "$bin" = --clippy ]; then
    firmware_cargo "$target" clippy "${options[@]}" -- -D warnings
    exit
fi
firmware_cargo "$target" build "${options[@]}" --bin "$bin"
mkdir -p "$out"
name=$bin${FIRMWARE_WORK:+-$FIRMWARE_WORK}.elf
# Moved into place whole, so that a run that has just started never sees half a file.
cp "${CARGO_TARGET_DIR:-target}/$target/firmware/$bin" "$out/$name.new"
mv "$out/$name.new" "$out/$name"
echo "$(cd "$out" && pwd)/$name"
