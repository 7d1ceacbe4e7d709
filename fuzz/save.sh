#!/bin/bash
# ./save.sh [TARGET…]: copies 30 small files of corpus/TARGET to corpus-saved/TARGET. Together they cover most of the code that the
# corpus covers. Files there with a name, not a hash, are kept.
set -eu
. "$(dirname "$0")/programs.sh"
for target in $TARGETS; do
    small=$(mktemp -d)
    few=$(mktemp -d)
    find "corpus/$target" -type f -size -8k -regextype egrep -regex '.*/[0-9a-f]{40}' -exec cp -t "$small" {} +
    nice -n 19 "$PROGRAMS/$target" -set_cover_merge=1 -use_counters=0 "$few" "$small" >"$few.log" 2>&1
    saved=corpus-saved/$target
    mkdir -p "$saved"
    find "$saved" -type f -regextype egrep -regex '.*/[0-9a-f]{40}' -delete
    # libFuzzer writes the file with the most new coverage first.
    ls -tr "$few" | head -30 | sed "s|^|$few/|" | xargs cp -t "$saved"
    echo "$target: $(find "$saved" -type f | wc -l) files, $(cat "$saved"/* | wc -c) bytes"
    rm -r "$few" "$few.log" "$small"
done
