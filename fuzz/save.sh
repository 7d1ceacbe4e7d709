#!/bin/bash
# ./save.sh [TARGET…]: of corpus/TARGET, the few files that reach every edge it reaches, to corpus-saved/TARGET, none above 8 kB.
# What has a name there stays.
set -eu
cd "$(dirname "$0")"
for target in ${*:-$(cargo +nightly fuzz list)}; do
    few=$(mktemp -d)
    small=$(mktemp -d)
    find "corpus/$target" -type f -size -8k ! -name 'seed-*' -exec cp -t "$small" {} +
    cargo +nightly fuzz run "$target" "$few" "$small" -- -set_cover_merge=1 -use_counters=0
    mkdir -p "corpus-saved/$target"
    # libFuzzer names files by their hash.
    find "corpus-saved/$target" -type f -regextype egrep -regex '.*/[0-9a-f]{40}' -delete
    find "$few" -type f -exec cp -t "corpus-saved/$target" {} +
    rm -r "$few" "$small"
done
