#!/bin/bash
# ./run.sh SECONDS [TARGET…]: fuzzes each target for SECONDS, one after the other, and prints a table with a row for each.
# libFuzzer stops at a finding. It is started again until the time is over.
set -u
seconds=$1
shift
. "$(dirname "$0")/programs.sh"
log=$(mktemp)
echo "| target | executions | per second | edges | corpus | findings |"
echo "|---|--:|--:|--:|--:|--:|"
for target in $TARGETS; do
    mkdir -p "corpus/$target" "artifacts/$target"
    executions=0 findings=0 edges=0 start=$SECONDS
    while left=$((seconds - SECONDS + start)) && [ $left -gt 1 ]; do
        SEEDS=corpus/$target nice -n 19 "$PROGRAMS/$target" -max_total_time=$left -timeout=20 -rss_limit_mb=4096 \
            -dict=json.dict -artifact_prefix="artifacts/$target/" -print_final_stats=1 "corpus/$target" >"$log" 2>&1
        found=$(($? != 0))
        findings=$((findings + found))
        done=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
        executions=$((executions + ${done:-0}))
        covered=$(grep -o 'cov: [0-9]*' "$log" | tail -1 | cut -d' ' -f2)
        [ "${covered:-0}" -gt "$edges" ] && edges=$covered
        if [ $found = 1 ]; then
            grep -A 1 -E 'panicked at src|ERROR|SUMMARY|Test unit written' "$log" >&2
            # Without this number, the target failed before its first file.
            [ -n "$done" ] || { tail -5 "$log" >&2; break; }
        fi
    done
    files=$(find "corpus/$target" -type f | wc -l)
    echo "| $target | $executions | $((executions / (SECONDS - start + 1))) | $edges | $files | $findings |"
done
rm "$log"
