#!/usr/bin/env bash
# Prints one table: what the firmware takes on each board, in bytes and guest instructions.
#   targets/measure.sh             every board
#   targets/measure.sh BOARD...    these
# Ends with status 1 if two inputs of one shape, or two runs, take different numbers of
# instructions: that is the constant-time check. Where this QEMU takes no plugin, instructions
# come from SysTick under -icount, to within a tick, and are marked with ~ (COUNTER=icount does the
# same anywhere).
set -euo pipefail
cd "$(dirname "$0")"
. ./toolchain.sh

[ $# -gt 0 ] || set -- $(boards)
bin=selftest
root=$(cd .. && pwd)
out=${FIRMWARE_OUT:-$root/target/firmware}
size=$(command -v arm-none-eabi-size || command -v llvm-size || command -v size)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

cargo build --quiet --locked -p secure-router-count
plugin=$(cd "${CARGO_TARGET_DIR:-target}" && pwd)/debug/libsecure_router_count.so
if [ -z "${COUNTER:-}" ]; then
    # Without a machine QEMU only loads the plugin, if it can, and takes the monitor's word.
    COUNTER=icount
    echo quit | timeout -k 2 20 qemu-system-arm -machine none -display none -serial none \
        -monitor stdio -plugin "$plugin,out=/dev/null" >/dev/null 2>&1 && COUNTER=plugin
fi

# run BOARD FOLDER: runs the firmware there; leaves what it says in `figures` and the spans, as
# `offline N` and `online N`, in `spans`.
run() {
    local folder=$2 machine options clock
    machine=$(board_field "$1" machine)
    mkdir -p "$folder"
    case $COUNTER in
        plugin) options=(-plugin "$plugin,out=$folder/spans") ;;
        icount) options=(-icount "shift=0") ;;
    esac
    # In its folder, since the firmware opens files by the names it is given.
    (
        cd "$folder"
        timeout -k 5 300 qemu-system-arm -machine "$machine" -display none -monitor none \
            -serial null "${options[@]}" -kernel "$out/$1/$bin.elf" -semihosting-config \
            enable=on,target=native,arg=firmware,arg=mode=measure,arg=out=figures
    ) </dev/null >"$folder/console" 2>&1 || { cat "$folder/console" >&2; return 1; }
    if [ "$COUNTER" = icount ]; then
        # An instruction a nanosecond. Where a span starts between two ticks is chance.
        clock=$(board_field "$1" qemu-clock)
        clock=${clock:-$(board_field "$1" clock)}
        awk -v clock="$clock" '/-ticks/ {
            sub("-ticks", "", $1)
            if (!($1 in first)) first[$1] = $2
            if (($2 - first[$1])^2 <= 1) $2 = first[$1]
            printf "%s ~%d\n", $1, $2 * 1e9 / clock
        }' "$folder/figures" >"$folder/spans"
    fi
}

# phase FILE NAME: the span's count, or the different ones.
phase() {
    sed -n "s/^$2 //p" "$1" | sort -u | paste -sd/
}

status=0
row='%-14s %-11s %9s %11s %11s %12s %12s\n'
table=$(printf "$row" board CPU flash 'static RAM' 'peak stack' offline online)
for board; do
    ./build.sh "$board" "$bin" >"$scratch/build" 2>&1 || { cat "$scratch/build" >&2; exit 1; }
    run "$board" "$scratch/$board.1"
    run "$board" "$scratch/$board.2"
    spans=$scratch/$board.1/spans
    offline=$(phase "$spans" offline) online=$(phase "$spans" online)
    if [[ $offline$online == */* ]]; then
        echo "$board: the count depends on the input" >&2
        status=1
    fi
    if ! cmp -s <(grep -v total "$spans") <(grep -v total "$scratch/$board.2/spans"); then
        echo "$board: two runs differ" >&2
        status=1
    fi
    read -r text data bss _ < <("$size" "$out/$board/$bin.elf" | tail -1)
    stack=$(sed -n 's/^stack //p' "$scratch/$board.1/figures")
    table+=$'\n'$(printf "$row" "$board" "$(board_field "$board" cpu)" $((text + data)) \
        $((data + bss)) "$stack" "$offline" "$online")
done
echo "$table"
exit $status
