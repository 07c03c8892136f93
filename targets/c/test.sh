#!/usr/bin/env bash
# Builds the static library and the example in C, lets it answer real inputs in QEMU (mps2-an386,
# Cortex-M4F) against the server of this machine, and compares its answers with those of this
# machine's own device. Also: the header is up to date, and misuse of the functions is an error.
#   targets/c/test.sh [INPUTS]      3 unless given
# Needs QEMU (targets/setup.sh) and arm-none-eabi-gcc or clang; as root on Debian it installs the
# former. CC and FIRMWARE_TOOLCHAIN choose compilers.
set -euo pipefail
cd "$(dirname "$0")"
. ../parties.sh
count=${1:-3}

if [ -z "${CC:-}" ]; then
    if ! command -v arm-none-eabi-gcc >/dev/null && ! command -v clang >/dev/null &&
        [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends gcc-arm-none-eabi >/dev/null
    fi
    if command -v arm-none-eabi-gcc >/dev/null; then
        CC=arm-none-eabi-gcc
    elif command -v clang >/dev/null; then
        CC="clang --target=thumbv7em-none-eabihf"
    else
        echo "please install arm-none-eabi-gcc, or clang and lld" >&2
        exit 1
    fi
fi

link=()
[[ $CC != *clang* ]] || link=(-fuse-ld=lld)

scratch=$(mktemp -d)
trap 'parties_end; rm -rf "$scratch"' EXIT
library=$(./build.sh)
$CC -mcpu=cortex-m4 -mthumb -mfloat-abi=hard -mfpu=fpv4-sp-d16 -Os -std=c11 -ffreestanding -nostdlib \
    -ffunction-sections -fdata-sections -Wall -Wextra -Werror -I include -T example/mps2-an386.ld \
    -Wl,--gc-sections,-z,noexecstack "${link[@]}" -o "$scratch/example.elf" example/*.c "$library"
# The header stands for itself, in C and in C++.
$CC -fsyntax-only -std=c99 -Wall -Wextra -Werror -ffreestanding -x c include/secure_router.h
$CC -fsyntax-only -std=c++11 -Wall -Wextra -Werror -ffreestanding -x c++ include/secure_router.h
cargo test --quiet --locked
out=${FIRMWARE_OUT:-../../target/firmware}/c
mkdir -p "$out"
cp "$scratch/example.elf" "$out/example.elf"

cd ../..
cargo build --quiet --locked --release -p secure-router
secure_router=${CARGO_TARGET_DIR:-target}/release/secure-router
board=$scratch/board
mkdir "$board"
"$secure_router" provision --directory "$scratch/keys" --device c --firmware "$board/device.key" >/dev/null

# This machine's device. The board has the same keys, meets a server of its own and never ran
# either: its masks are the same, and so must be its choices and classes. (Only a test may use masks
# twice.)
parties_start native
device=(--server "$address" --keys "$scratch/keys/device-c.json" --counters "$scratch/native/counters")
timeout -k 5 300 "$secure_router" prepare "${device[@]}" --count 1 >"$scratch/prepared"
programs=()
while read -r program; do programs+=(--program "$program"); done < <(sed -n 's/: 1 inferences.*//p' "$scratch/prepared")
timeout -k 5 300 "$secure_router" device "${device[@]}" --count "$count" --step 200 --link 11520,0 --json "${programs[@]}" |
    sed 's/.*"program":"\([^"]*\)","model":"\([^"]*\)","class":\([0-9]*\).*/\1 \2 \3/' >"$scratch/expected"
parties_end

# What a board has in flash, its generator and its sensor, as files.
bytes() { printf "$(sed 's/../\\x&/g')"; } # hexadecimal digits to bytes
head -c 32 /dev/urandom >"$board/entropy.bin"
: >"$board/counters.log"
# A safetensors file: the length of its header in 8 bytes, the header, the data. The inputs are
# signed bytes.
test_split=harness/pools/speech/test.safetensors
header=$(od -An -t u8 -N 8 "$test_split" | tr -d ' ')
about=$(head -c $((8 + header)) "$test_split" | tail -c +9 | sed 's/.*"inputs":{\([^}]*\)}.*/\1/')
values=$(sed 's/.*"shape":\[[0-9]*,\([0-9]*\)\].*/\1/' <<<"$about")
begin=$(sed 's/.*"data_offsets":\[\([0-9]*\),.*/\1/' <<<"$about")
for ((i = 0; i < count; i++)); do
    head -c $((8 + header + begin + (i * 200 + 1) * values)) "$test_split" | tail -c "$values" |
        od -An -v -t d1 -w1 | awk '{ printf "%02x%s", $1 < 0 ? $1 + 256 : $1, $1 < 0 ? "ff" : "00" }' | bytes
done >"$board/inputs.bin"

parties_start qemu
(
    cd "$board"
    timeout -k 5 300 qemu-system-arm -machine mps2-an386 -display none -monitor none \
        -chardev "socket,id=line,host=${address%:*},port=${address##*:},nodelay=on" -serial chardev:line \
        -semihosting-config enable=on,target=native -kernel "$scratch/example.elf"
)
parties_end
cat "$board/answers.txt"
[ -s "$scratch/expected" ]
# The desktop asks program by program, the example input by input.
diff -u <(sort "$scratch/expected") <(sort "$board/answers.txt") || { echo "the example in C answers otherwise than this machine" >&2; exit 1; }
[ "$(wc -c <"$board/counters.log")" -gt 0 ]
echo "mps2-an386 in C: $(wc -l <"$board/answers.txt") answers, the same as this machine's"
