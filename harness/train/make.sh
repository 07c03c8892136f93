#!/bin/sh
# Makes the pool of a task from nothing: make.sh TASK [SEED [DATA [OUT]]], TASK one of speech, sensor, image, text
# DATA (by default data/TASK) keeps what was fetched; OUT (harness/pools/TASK) gets the pool and its test file.
set -eu

[ $# -ge 1 ] && [ $# -le 4 ] || { echo "make.sh: usage: make.sh speech|sensor|image|text [SEED [DATA [OUT]]]" >&2; exit 1; }
here=$(cd "$(dirname "$0")" && pwd)
task=$1
seed=${2:-1}
data=${3:-data/$task}
out=${4:-$here/../pools/$task}

train() { cargo run --release --quiet --manifest-path "$here/Cargo.toml" -- "$@"; }

if [ ! -f "$data/train.safetensors" ]; then
    "$here/fetch.sh" "$task" "$data"
fi
train split --task "$task" --data "$data" --out "$out"
train train --task "$task" --data "$data" --out "$out" --seed "$seed"
