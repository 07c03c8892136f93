#!/usr/bin/env bash
# Installs what the firmware needs. Run it again at any time: what is there is left alone.
#   targets/setup.sh            QEMU for Cortex-M and a way to build for it
#   targets/setup.sh --linux    also cross compilers, libc and qemu-user for the ARM Linux devices
#   targets/setup.sh --rustup   the Rust targets by `rustup target add`, not by Debian's packages
# As root on Debian, packages are installed with apt and Debian's own toolchain builds for the
# boards. Elsewhere rustup is asked for the targets, and missing programs are named.
set -euo pipefail
cd "$(dirname "$0")"
. ./toolchain.sh

linux='' rustup=''
for option; do
    case $option in
        --linux) linux=1 ;;
        --rustup) rustup=1 ;;
        *) sed -n '2,7p' "$0" >&2; exit 2 ;;
    esac
done

apt=''
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt=1
    export DEBIAN_FRONTEND=noninteractive
fi

need=()
want() { # want COMMAND PACKAGE...: the packages, unless the command is there
    command -v "$1" >/dev/null || need+=("${@:2}")
}
want qemu-system-arm qemu-system-arm
command -v arm-none-eabi-objdump >/dev/null || want llvm-objdump binutils-arm-none-eabi
if [ -n "$linux" ]; then
    want qemu-arm qemu-user
    want arm-linux-gnueabihf-gcc gcc-arm-linux-gnueabihf libc6-dev-armhf-cross
    want aarch64-linux-gnu-gcc gcc-aarch64-linux-gnu libc6-dev-arm64-cross
fi

missing=()
for target in $(firmware_targets); do
    toolchain_for "$target" >/dev/null 2>&1 || missing+=("$target")
done

if [ -n "$apt" ] && [ $((${#need[@]} + ${#missing[@]})) -gt 0 ]; then
    apt-get update -qq
    if [ ${#missing[@]} -gt 0 ] && [ -z "$rustup" ] && apt-cache show rustc-web >/dev/null 2>&1; then
        need+=(rustc-web cargo-web rust-web-src rust-web-clippy lld)
        missing=()
    fi
fi
if [ ${#missing[@]} -gt 0 ]; then
    if ! timeout -k 5 300 rustup target add "${missing[@]}"; then
        echo "rustup has no ${missing[*]} for this toolchain" >&2
        exit 1
    fi
fi
if [ ${#need[@]} -gt 0 ]; then
    if [ -z "$apt" ]; then
        echo "please install: ${need[*]}" >&2
        exit 1
    fi
    apt-get install -y -qq --no-install-recommends "${need[@]}" >/dev/null
fi

for target in $(firmware_targets); do
    echo "$target: $(toolchain_for "$target")"
done
qemu-system-arm --version | head -1
