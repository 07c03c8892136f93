# Sourced by scripts that let a device meet a dealer and a server of this machine.
# $secure_router is the program, $scratch a directory of the script's own.

parties=()

# party NAME ARGS...: starts a party that listens; its address goes into $address.
party() {
    : >"$scratch/$1.out"
    "$secure_router" "${@:2}" --listen 127.0.0.1:0 >>"$scratch/$1.out" &
    parties+=($!)
    until address=$(sed -n 's/^listening on //p' "$scratch/$1.out") && [ -n "$address" ]; do
        kill -0 "$!" 2>/dev/null || { echo "the $1 did not start" >&2; return 1; }
        sleep 0.02
    done
}

# parties_start NAME: a dealer and a server that never ran, with the keys in $scratch/keys. The
# server's address goes into $address.
parties_start() {
    mkdir "$scratch/$1"
    party "$1/dealer" deal --keys "$scratch/keys/dealer.json" --store "$scratch/$1/dealer.redb"
    party "$1/server" serve --keys "$scratch/keys/server.json" --stock "$scratch/$1/stock.redb" --dealer "$address"
}

parties_end() {
    [ ${#parties[@]} -eq 0 ] || kill "${parties[@]}" 2>/dev/null || true
    [ ${#parties[@]} -eq 0 ] || wait "${parties[@]}" 2>/dev/null || true
    parties=()
}
