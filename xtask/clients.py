"""Compares the perplexities that `aquatint eval` recorded with those that transformers and GPTQModel compute on the CPU.
`cargo xtask clients` runs this script.

    python clients.py --text FILE --seq-len N --windows N CHECKPOINT=EVAL.json...

EVAL.json is the record that `aquatint eval CHECKPOINT --json EVAL.json` wrote for the same text, window length and number
of windows. Its top-level `perplexity` is read. Perplexity is defined as in `aquatint eval`: the whole text is tokenized and
cut into windows of N tokens that do not overlap. Each window predicts all its tokens except the first. The perplexity is
exp of the mean negative log-likelihood of all predicted tokens.

The script prints a table. It exits with 1 if a pair differs by more than 0.5 %, or if a checkpoint with a quantization
config was loaded without the client's quantized layers. Models run in f32. Half precision is many times slower on a CPU,
and its rounding errors are larger than the differences to be measured.
"""

import os

# GPTQModel prints messages on standard output. They are redirected to standard error, so that only the table is there.
TABLE = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)

# The script needs no network. Compiling kernels would take more time than it saves on a few windows.
os.environ.update(HF_HUB_OFFLINE="1", TORCHDYNAMO_DISABLE="1", TOKENIZERS_PARALLELISM="false")

import argparse
import json
import math
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

TOLERANCE = 0.005


def arguments():
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--seq-len", type=int, required=True)
    parser.add_argument("--windows", type=int, required=True)
    parser.add_argument("pairs", nargs="+", metavar="CHECKPOINT=EVAL.json")
    return parser.parse_args()


def token_windows(checkpoint, text, length, count):
    """Returns the first `count` windows of the tokenized text, [count, length]."""
    ids = AutoTokenizer.from_pretrained(checkpoint)(text).input_ids
    if len(ids) < count * length:
        sys.exit(f"the text has {len(ids)} tokens, {count} windows of {length} need {count * length}")
    return torch.tensor(ids[: count * length]).view(count, length)


@torch.inference_mode()
def perplexity(model, windows):
    """Returns exp of the mean negative log-likelihood of every token except the first of each window."""
    total = 0.0
    for window in windows:
        scores = model(input_ids=window[None], use_cache=False).logits[0, :-1].float()
        total += torch.nn.functional.cross_entropy(scores, window[1:], reduction="sum").item()
    return math.exp(total / (windows.shape[0] * (windows.shape[1] - 1)))


def quantized_layers(model):
    """Returns the name of the client's quantized layer, how many of the decoder's linear layers have that type, and how many
    linear layers there are."""
    decoder = [module for name, module in model.named_modules() if name.endswith("_proj")]
    kinds = {type(module).__name__ for module in decoder if type(module).__module__.startswith("gptqmodel")}
    count = sum(type(module).__name__ in kinds for module in decoder)
    return "+".join(sorted(kinds)) or "float", count, len(decoder)


def compare(checkpoint, record, options):
    """Returns one row of the table, and whether the checkpoint passed."""
    ours = json.loads(Path(record).read_text())["perplexity"]
    start = time.monotonic()
    # Without a device map, transformers may put a quantized model on a GPU.
    model = AutoModelForCausalLM.from_pretrained(checkpoint, device_map="cpu", dtype=torch.float32).eval()
    kind, quantized, linears = quantized_layers(model)
    text = options.text.read_text(encoding="utf-8")
    theirs = perplexity(model, token_windows(checkpoint, text, options.seq_len, options.windows))
    difference = theirs / ours - 1.0
    expected = linears if getattr(model.config, "quantization_config", None) else 0
    fine = abs(difference) <= TOLERANCE and quantized == expected
    seconds = time.monotonic() - start
    name = Path(checkpoint).name
    layers = f"{quantized}/{linears} {kind}" if expected else "float"
    row = f"{name:<22} {layers:<24} {ours:>10.3f} {theirs:>10.3f} {difference:>+8.3%} {seconds:>7.1f}"
    return f"{row}  {'ok' if fine else 'FAILED'}", fine


def main():
    """Compares every pair of the command line and returns the exit code."""
    options = arguments()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    rows = [compare(*pair.rsplit("=", 1), options) for pair in options.pairs]
    header = f"{'checkpoint':<22} {'client layers':<24} {'aquatint':>10} {'client':>10} {'apart':>8} {'seconds':>7}"
    bad = sum(not fine for _, fine in rows)
    verdict = f"{bad} of {len(rows)} checkpoints differ by more than {TOLERANCE:.1%} or were not loaded as quantized"
    print(header, *(row for row, _ in rows), *([verdict] if bad else []), sep="\n", file=TABLE, flush=True)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
