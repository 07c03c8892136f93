#!/usr/bin/env bash
# The desktop device on ARM Linux: builds it, lets it answer real inputs under qemu-user against
# the server of this machine, and compares its answers with those of this machine's own device.
#   targets/linux.sh [armv7|aarch64] [INPUTS]    armv7 and 3 unless given
# Needs `targets/setup.sh --linux`. FIRMWARE_TOOLCHAIN forces rustup, nightly or debian.
set -euo pipefail
cd "$(dirname "$0")/.."
. targets/toolchain.sh
. targets/parties.sh

case ${1:-armv7} in
    armv7) target=armv7-unknown-linux-gnueabihf tools=arm-linux-gnueabihf emulator=qemu-arm ;;
    aarch64) target=aarch64-unknown-linux-gnu tools=aarch64-linux-gnu emulator=qemu-aarch64 ;;
    *) sed -n '2,6p' "$0" >&2; exit 2 ;;
esac
count=${2:-3}
for program in "$emulator" "$tools-gcc"; do
    command -v "$program" >/dev/null || { echo "no $program: run targets/setup.sh --linux" >&2; exit 1; }
done

linker=CARGO_TARGET_${target//-/_}_LINKER
(
    export "${linker^^}=$tools-gcc" CARGO_PROFILE_RELEASE_PANIC=abort CARGO_PROFILE_RELEASE_DEBUG=0 CARGO_PROFILE_RELEASE_OPT_LEVEL=1
    BUILD_STD=std,panic_abort firmware_cargo "$target" build --quiet --locked --release -p secure-router
)
cargo build --quiet --locked --release -p secure-router
built=${CARGO_TARGET_DIR:-target}
secure_router=$built/release/secure-router
arm=("$emulator" -L "/usr/$tools" "$built/$target/release/secure-router")

scratch=$(mktemp -d)
trap 'parties_end; rm -rf "$scratch"' EXIT
"$secure_router" provision --directory "$scratch/keys" --device desktop >/dev/null

# answers NAME COMMAND...: what a device says to the inputs, asked of the router and of every model,
# without the time it took. Both devices have the same keys and never ran, and so their masks are
# the same: every class, choice and number of bytes must be. (Only a test may use masks twice.)
answers() {
    local name=$1 options programs=() program
    shift
    parties_start "$name"
    options=(--server "$address" --keys "$scratch/keys/device-desktop.json" --counters "$scratch/$name/counters")
    timeout -k 5 600 "$@" prepare "${options[@]}" --count 1 >"$scratch/$name/prepared"
    while read -r program; do programs+=(--program "$program"); done < <(sed -n 's/: 1 inferences.*//p' "$scratch/$name/prepared")
    timeout -k 5 600 "$@" device "${options[@]}" --count "$count" --step 200 --json "${programs[@]}" |
        sed 's/,"latency_ms":[^,}]*//' >"$scratch/$name/answers"
    parties_end
    [ "$(wc -l <"$scratch/$name/answers")" = $((count * ${#programs[@]} / 2)) ] && [ -s "$scratch/$name/answers" ] ||
        { echo "$name: answers are missing" >&2; return 1; }
}
answers native "$secure_router"
answers arm "${arm[@]}"
cat "$scratch/arm/answers"
diff -u "$scratch/native/answers" "$scratch/arm/answers" || { echo "$target answers otherwise than this machine" >&2; exit 1; }
echo "$target: $(wc -l <"$scratch/arm/answers") answers, the same as this machine's"
