#!/bin/sh
# What a task's pool reaches whatever the seed: seeds.sh TASK OUT [SEEDS], by default seeds 1 to 5
# Trains a pool of each seed into OUT/SEED, runs the protocol on the whole test split with it, and sums up in
# OUT/report.html and OUT/report.json. What is there already is not made again.
set -eu

[ $# -ge 2 ] && [ $# -le 3 ] || { echo "seeds.sh: usage: seeds.sh speech|sensor|image|text OUT [\"1 2 3 4 5\"]" >&2; exit 1; }
here=$(cd "$(dirname "$0")" && pwd)
task=$1
out=$2
seeds=${3:-1 2 3 4 5}
# Beside each pool's own.
case $task in
    speech) lambdas=8,24,96 ;;
    sensor) lambdas=4 ;;
    image) lambdas=0 ;;
    *) lambdas= ;;
esac

report() { cargo run --release --quiet --manifest-path "$here/../Cargo.toml" -- report "$@"; }

files=
for seed in $seeds; do
    dir=$out/$seed
    [ -f "$dir/pool.safetensors" ] || "$here/make.sh" "$task" "$seed" "data/$task" "$dir"
    # shellcheck disable=SC2086 # none is no word
    [ -f "$dir/report.json" ] || report --pool "$dir" --all --lambdas $lambdas --json "$dir/report.json" --html "$dir/report.html"
    files="$files $dir/report.json"
done
# shellcheck disable=SC2086 # a list of files
report --merge $files --json "$out/report.json" --html "$out/report.html"
