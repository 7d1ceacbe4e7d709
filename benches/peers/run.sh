#!/usr/bin/env bash
# Runs the plain PyTorch script and then aquatint on the same tokens with the same options, and prints a table of their times:
#
#     [VARIABLE=VALUE …] benches/peers/run.sh MODEL CALIBRATION EVALUATION OUT
#     [VARIABLE=VALUE …] benches/peers/run.sh --shape SHAPE OUT
#
# MODEL is a Hugging Face directory, the texts are plain text, and OUT is a directory for the records. SHAPE is a shape of
# bench-model: BLOCKS blocks (2) with random weights, on random tokens. A virtual environment for PyTorch is made below OUT, unless
# PYTHON names an interpreter with torch and transformers.
set -euo pipefail
shape= model= calibration= evaluation=
case $# in
    3) [[ $1 == --shape ]] && shape=$2 out=$3 ;;
    4) model=$1 calibration=$2 evaluation=$3 out=$4 ;;
esac
if [[ -z ${out-} ]]; then
    sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
: "${SAMPLES:=16}" "${SEQ_LEN:=512}" "${BITS:=3}" "${ALPHA:=0.5}" "${WINDOWS:=4}" "${BLOCKS:=2}" "${DEVICE:=cpu}" "${AQUATINT:=target/release/aquatint}"
mkdir -p "$out"
if [[ -z ${PYTHON-} ]]; then
    [[ -e $out/venv ]] || python3 -m venv "$out/venv"
    "$out/venv/bin/pip" install --quiet torch transformers safetensors
    PYTHON=$out/venv/bin/python
fi
common=(--samples "$SAMPLES" --seq-len "$SEQ_LEN" --bits "$BITS" --alpha "$ALPHA")
ours=(--asym --group-size=-1 --grid minmax --descent 0 --device "$DEVICE" --json "$out/aquatint.json")
[[ $DEVICE == cpu ]] && torch_device=cpu || torch_device=cuda
theirs=(--device "$torch_device" --json "$out/pytorch.json")
peer=$(dirname "$0")/pytorch.py
if [[ $shape ]]; then
    "$PYTHON" "$peer" --shape "$shape" --blocks "$BLOCKS" "${common[@]}" "${theirs[@]}"
    "$AQUATINT" bench-model --shape "$shape" --blocks "$BLOCKS" "${common[@]}" "${ours[@]}"
else
    common+=(--calibration "$calibration")
    "$PYTHON" "$peer" "$model" "${common[@]}" --evaluate "$evaluation" --windows "$WINDOWS" --eval-seq-len "$SEQ_LEN" "${theirs[@]}"
    rm -rf "$out/model"
    "$AQUATINT" quantize "$model" --out "$out/model" "${common[@]}" --sampling sequential \
        --evaluate "$evaluation" --evaluate-windows "$WINDOWS" "${ours[@]}"
    rm -rf "$out/model"
fi
python3 - "$out" <<'PYTHON'
import json, sys
peer, ours = (json.load(open(f"{sys.argv[1]}/{name}.json")) for name in ("pytorch", "aquatint"))
print(f"\n| | {peer['peer']} | aquatint | ratio |\n|---|--:|--:|--:|")
row = lambda name, a, b: print(f"| {name} | {a:.1f} | {b:.1f} | {a / b:.2f} |")
row("seconds in all", peer["seconds"], ours["total_seconds"])
for phase, name in (("forward", "forward"), ("statistics", "statistics"), ("correct", "correction"), ("round", "rounding")):
    row(f"seconds, {phase}", peer["phases"].get(phase, 0.0), ours["seconds"].get(name, 0.0) or float("nan"))
if "perplexity" in peer:
    print(f"| perplexity | {peer['perplexity']:.2f} | {ours['evaluations'][0]['perplexity']:.2f} | |")
PYTHON
