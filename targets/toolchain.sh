# Sourced by the scripts here: which boards there are, and which toolchain builds for a target.

boards() {
    local file
    for file in boards/*.toml; do basename "$file" .toml; done
}

# board_field BOARD KEY: a value from the board's file.
board_field() {
    [ -f "boards/$1.toml" ] || { echo "no board $1; there are: $(boards | tr '\n' ' ')" >&2; return 1; }
    sed -n "s/^$2 *= *\"\(.*\)\"/\1/p" "boards/$1.toml"
}

firmware_targets() {
    sed -n 's/^target *= *"\(.*\)"/\1/p' boards/*.toml | sort -u
}

has_libcore() { # has_libcore TARGET RUSTC...: the compiler comes with this target's libcore
    compgen -G "$("${@:2}" --print target-libdir --target "$1" 2>/dev/null)/libcore-*.rlib" >/dev/null
}

# Prints how to build for a target, the first of:
#   rustup   the toolchain in PATH has the target
#   nightly  a rustup nightly with rust-src builds libcore
#   debian   Debian's own rustc and library source build libcore
# FIRMWARE_TOOLCHAIN forces one. Nothing is downloaded here: setup.sh does that.
toolchain_for() {
    if [ -n "${FIRMWARE_TOOLCHAIN:-}" ]; then
        echo "$FIRMWARE_TOOLCHAIN"
    elif has_libcore "$1" rustc; then
        echo rustup
    elif sources "$(rustc +nightly --print sysroot 2>/dev/null)"; then
        echo nightly
    elif [ -x /usr/bin/cargo ] && sources "$(/usr/bin/rustc --print sysroot 2>/dev/null)"; then
        echo debian
    else
        {
            echo "no libcore for $1: run targets/setup.sh, or one of"
            echo "  rustup target add $1"
            echo "  rustup toolchain install nightly --component rust-src"
        } >&2
        return 1
    fi
}

sources() { # sources SYSROOT: libcore's source is there
    [ -n "$1" ] && [ -e "$1/lib/rustlib/src/rust/library/core/Cargo.toml" ]
}

# firmware_cargo TARGET CARGO-ARGS...: cargo with the toolchain chosen for the target. BUILD_STD
# names the parts of the library to build where the toolchain comes without, core unless set.
firmware_cargo() {
    local target=$1 chosen linker
    shift
    chosen=$(toolchain_for "$target")
    linker=CARGO_TARGET_${target//[-.]/_}_LINKER
    case $chosen in
        rustup) cargo "$1" --target "$target" "${@:2}" ;;
        nightly) cargo +nightly "$1" --target "$target" -Zbuild-std=${BUILD_STD:-core} "${@:2}" ;;
        # Debian ships no rust-lld. The variables hold for this one command, so that host
        # builds stay on the stable toolchain.
        debian)
            [[ $target == *linux* ]] || local -x "${linker^^}=ld.lld"
            env PATH="/usr/bin:$PATH" RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1 \
                /usr/bin/cargo "$1" --target "$target" -Zbuild-std=${BUILD_STD:-core} "${@:2}"
            ;;
        *) echo "FIRMWARE_TOOLCHAIN=$chosen is not rustup, nightly or debian" >&2; return 1 ;;
    esac
}
