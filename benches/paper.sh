#!/usr/bin/env bash
# Runs the experiments of the QEP paper (arXiv 2504.09629) on a model of any size:
#
#     [VARIABLE=VALUE …] benches/paper.sh MODEL OUT [--quick]
#
# MODEL is a Hugging Face directory. Each experiment writes a directory or a CSV file below OUT. OUT/paper.html reports all of them.
# If it was stopped, start it again with the same variables, and it continues. --quick uses sizes for two CPU cores.
set -euo pipefail

if [[ $# -lt 2 || $# -gt 3 || ${3:---quick} != --quick ]]; then
    sed -n '2,7s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
model=$1 out=$2

# Files. Colons separate several evaluation texts or tasks. Empty variables stand for the bundled texts, no tasks, no other domain.
CALIBRATION=${CALIBRATION-}
OTHER_CALIBRATION=${OTHER_CALIBRATION-}
EVALUATION=${EVALUATION-}
TASKS=${TASKS-}

# Sizes.
if [[ ${3-} == --quick ]]; then
    : "${METHODS:=rtn,gptq}" "${BITS:=3,2}" "${GROUP_SIZES:=-1}" "${SEEDS:=0}" "${BLOCKS:=10}"
    : "${SAMPLES:=16}" "${SAMPLE_COUNTS:=8 16 32}" "${SEQ_LEN:=256}" "${EVAL_SEQ_LEN:=512}" "${LONGER:=256,512,1024}" "${WINDOWS:=8}"
else
    : "${METHODS:=rtn,gptq}" "${BITS:=4,3,2}" "${GROUP_SIZES:=-1,64}" "${SEEDS:=0,1,2}" "${BLOCKS:=10}"
    : "${SAMPLES:=128}" "${SAMPLE_COUNTS:=32 128 512}" "${SEQ_LEN:=512}" "${EVAL_SEQ_LEN:=1024}" "${LONGER:=512,1024,2048}" "${WINDOWS:=}"
fi
# The ablations and the error growth use one of the table's settings.
: "${ABLATION_BITS:=3}" "${ABLATION_GROUP_SIZE:=-1}" "${DEVICE:=auto}" "${TOGETHER:=4}" "${AQUATINT:=target/release/aquatint}"

calibration=(--device "$DEVICE" --seq-len "$SEQ_LEN")
other=("${calibration[@]}" --calibration "$OTHER_CALIBRATION")
[[ -z $CALIBRATION ]] || calibration+=(--calibration "$CALIBRATION")
evaluation=(--together "$TOGETHER")
[[ -z $WINDOWS ]] || evaluation+=(--windows "$WINDOWS")
while IFS= read -rd : text; do evaluation+=(--text "$text"); done <<<"${EVALUATION:+$EVALUATION:}"
table=(--methods "$METHODS" --bits "$BITS" --group-sizes "$GROUP_SIZES" --alphas off,auto)
while IFS= read -rd : task; do table+=(--tasks "$task"); done <<<"${TASKS:+$TASKS:}"
ablation=(--methods gptq --bits "$ABLATION_BITS" --group-sizes "$ABLATION_GROUP_SIZE")
strengths=(--alphas off,0.5,1,auto --seeds "$SEEDS")
documents=()

# sweep NAME OPTION…: runs a sweep into the directory NAME, and adds its record to the report.
sweep() {
    printf '\n== %s\n' "$1"
    "$AQUATINT" sweep "$model" --out "$out/$1" "${evaluation[@]}" "${@:2}"
    cp "$out/$1/sweep.json" "$out/$1.json"
    documents+=("$out/$1.json")
}

mkdir -p "$out"

# The tables of perplexity and accuracy: every method, with and without propagation.
sweep table "${calibration[@]}" "${table[@]}" --samples "$SAMPLES" --eval-seq-len "$EVAL_SEQ_LEN"

# Figure 2: how the error of the first blocks grows through the model.
growth=$out/error-growth
if [[ ! -e $growth.json ]]; then
    printf '\n== error growth, the first %s blocks quantized\n' "$BLOCKS"
    "$AQUATINT" error-growth "$model" --blocks "$BLOCKS" --bits "$ABLATION_BITS" --group-size "$ABLATION_GROUP_SIZE" \
        "${calibration[@]}" --samples "$SAMPLES" --csv "$growth.csv" --json "$growth.json"
fi
documents+=("$growth.json")

# The ablations: propagation strength, amount and domain of the calibration text, and sequences longer than the calibration windows.
sweep alpha "${calibration[@]}" "${ablation[@]}" "${strengths[@]}" --samples "$SAMPLES" --eval-seq-len "$EVAL_SEQ_LEN"
for samples in $SAMPLE_COUNTS; do
    sweep "samples-$samples" "${calibration[@]}" "${ablation[@]}" --alphas off,auto --samples "$samples" --eval-seq-len "$EVAL_SEQ_LEN"
done
if [[ -n $OTHER_CALIBRATION ]]; then
    sweep other-domain "${other[@]}" "${ablation[@]}" "${strengths[@]}" --samples "$SAMPLES" --eval-seq-len "$EVAL_SEQ_LEN"
fi
sweep longer "${calibration[@]}" "${ablation[@]}" --alphas off,auto --samples "$SAMPLES" --eval-seq-len "$LONGER"

"$AQUATINT" report "${documents[@]}" --title "Experiments of the QEP paper" --out "$out/paper.html"
