#!/usr/bin/env bash
# aquatint beside the plain PyTorch script, on the same tokens with the same options, one after the other:
#
#     [VARIABLE=VALUE …] benches/peers/run.sh MODEL CALIBRATION EVALUATION OUT
#
# MODEL is a Hugging Face directory, the texts are plain text, OUT a directory for the records. Makes a virtual environment for
# PyTorch below OUT unless PYTHON names an interpreter that has torch and transformers.
set -euo pipefail
if [[ $# -ne 4 ]]; then
    sed -n '2,6s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
model=$1 calibration=$2 evaluation=$3 out=$4
: "${SAMPLES:=16}" "${SEQ_LEN:=512}" "${BITS:=3}" "${ALPHA:=0.5}" "${WINDOWS:=4}" "${DEVICE:=cpu}" "${AQUATINT:=target/release/aquatint}"
mkdir -p "$out"
if [[ -z ${PYTHON-} ]]; then
    [[ -e $out/venv ]] || python3 -m venv "$out/venv"
    "$out/venv/bin/pip" install --quiet torch transformers safetensors
    PYTHON=$out/venv/bin/python
fi
common=(--samples "$SAMPLES" --seq-len "$SEQ_LEN" --bits "$BITS" --alpha "$ALPHA" --calibration "$calibration")
[[ $DEVICE == cpu ]] && torch_device=cpu || torch_device=cuda
"$PYTHON" "$(dirname "$0")/pytorch.py" "$model" "${common[@]}" --evaluate "$evaluation" --windows "$WINDOWS" \
    --eval-seq-len "$SEQ_LEN" --device "$torch_device" --json "$out/pytorch.json"
rm -rf "$out/model"
"$AQUATINT" quantize "$model" --out "$out/model" "${common[@]}" --sampling sequential --asym --group-size=-1 --grid minmax --descent 0 \
    --evaluate "$evaluation" --evaluate-windows "$WINDOWS" --device "$DEVICE" --json "$out/aquatint.json"
rm -rf "$out/model"
python3 - "$out" <<'PYTHON'
import json, sys
peer, ours = (json.load(open(f"{sys.argv[1]}/{name}.json")) for name in ("pytorch", "aquatint"))
print(f"\n| | {peer['peer']} | aquatint | ratio |\n|---|--:|--:|--:|")
row = lambda name, a, b: print(f"| {name} | {a:.1f} | {b:.1f} | {a / b:.2f} |")
row("seconds in all", peer["seconds"], ours["total_seconds"])
for phase, name in (("forward", "forward"), ("statistics", "statistics"), ("correct", "correction"), ("round", "rounding")):
    row(f"seconds, {phase}", peer["phases"].get(phase, 0.0), ours["seconds"].get(name, 0.0) or float("nan"))
print(f"| perplexity | {peer['perplexity']:.2f} | {ours['evaluations'][0]['perplexity']:.2f} | |")
PYTHON
