"""Compares Aquatint with transformers on a random model of every family, before and after quantization.
`cargo xtask families` runs this script.

    python families.py --aquatint PROGRAM --out DIR --device DEVICE [--only NAME[,NAME...]]

The models are the second shapes of the fixtures (tests/fixtures/families/make.py), except those in low precision, which
transformers does not read on a CPU. Each model writes its own texts: three quarters of the tokens are drawn by its odds,
the others at random, since some models are sure of every next token. The tokenizer knows one word per token. The steps
for each model:

1. transformers makes it. Both programs compute its perplexity.
2. Aquatint quantizes it to 8 and 3 bits with GPTQ and with round-to-nearest, both with the correction, as float weights.
3. Both programs read each result and compute its perplexity. transformers loads it as the class that its config.json
   names, which must be that of the original, and must miss no parameter and find none too many. Every tensor that was
   not quantized must be that of the original, to the bit; each that was quantized must not be.
4. Aquatint writes 8-bit GPTQ codes, too, and reads them back. Layers whose rows or columns do not fill 32-bit words must
   be refused.

Some models are taken once more with a quantized output matrix, which is tied to the embedding in the original.

The script prints one line for each model. It exits with 1 if one failed: if a check above fails, or if the logarithms of
two perplexities differ by more than 1e-5. transformers computes in float64.
"""

import os

os.environ.update(HF_HUB_OFFLINE="1", TORCHDYNAMO_DISABLE="1", TOKENIZERS_PARALLELISM="false")

import argparse
import contextlib
import json
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/fixtures/families"))

import make
from catalogue import FAMILIES

# Greatest difference of the logarithms of two perplexities of the same weights.
TOLERANCE = 1e-5
# Windows of each text, and the share of its tokens that are random.
WINDOWS = 32
RANDOM = 0.25
GRIDS = [(method, bits) for bits in (8, 3) for method in ("gptq", "rtn")]
# Fixtures whose output matrix is quantized in a run of its own: one in a wrapper, one not.
HEADS = ("gemma3-wrapper", "gemma")
# How Aquatint refuses a shape for the GPTQ format.
REFUSAL = "whole 32-bit words, as the GPTQ format stores codes"


class Bad(Exception):
    """A check that failed, as a sentence without a full stop."""


@dataclass
class Case:
    """One line of the table: a fixture, and whether its output matrix is quantized, too."""

    fixture: str
    head: bool = False

    @property
    def name(self):
        """The name of the line and of its folder."""
        return f"{self.fixture}-head" if self.head else self.fixture

    @property
    def options(self):
        """Options of `aquatint quantize`."""
        return ["--lm-head"] if self.head else []


@dataclass
class Aquatint:
    """The program and the device on which it computes."""

    program: str
    device: str

    def run(self, *arguments):
        """Runs a subcommand. Returns what it says on standard error if it fails, and otherwise None."""
        command = [self.program, *map(str, arguments), "--device", self.device]
        print("+", *command, file=sys.stderr, flush=True)
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, encoding="utf-8")
        print(done.stdout, done.stderr, sep="", end="", file=sys.stderr, flush=True)
        return done.stderr.strip() or f"exit code {done.returncode}" if done.returncode else None

    def perplexity(self, checkpoint, text):
        """The logarithm of the perplexity on a text in windows of the fixtures' length."""
        record = checkpoint.with_suffix(".eval.json")
        windows = ["--text", text, "--seq-len", make.TOKENS]
        if complaint := self.run("eval", checkpoint, *windows, "--json", record):
            raise Bad(f"aquatint eval of {checkpoint.name}: {complaint}")
        return json.loads(record.read_text(encoding="utf-8"))["nll"]

    def quantize(self, original, out, text, options):
        """Quantizes a checkpoint. Returns the names of the quantized layers, or a complaint in their place."""
        record = out.with_suffix(".run.json")
        windows = ["--calibration", text, "--sampling", "sequential", "--samples", WINDOWS, "--seq-len", make.TOKENS]
        files = ["--out", out, "--force", "--json", record]
        complaint = self.run("quantize", original, *files, *windows, "--group-size", "-1", *options)
        if complaint:
            return None, complaint
        layers = json.loads(record.read_text(encoding="utf-8"))["layers"]
        return [layer["name"] for layer in layers], None


def arguments():
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--aquatint", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--only", type=lambda names: names.split(","))
    return parser.parse_args()


def cases(only):
    """All lines of the table, or those of the fixtures `only`."""
    names = [name for name, family in FAMILIES.items() if family.storage is None]
    if unknown := sorted(set(only or ()) - set(names)):
        raise Bad(f"there is no model {unknown[0]}, only {', '.join(names)}")
    chosen = [Case(name) for name in names] + [Case(name, head=True) for name in HEADS]
    return [case for case in chosen if not only or case.fixture in only]


def load(checkpoint, family):
    """The model of a checkpoint, as the class that its config.json names. It must use every tensor and miss none."""
    architecture = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))["architectures"][0]
    model, found = getattr(transformers, architecture).from_pretrained(
        checkpoint, attn_implementation=family.attention, dtype=torch.float32, output_loading_info=True,
    )
    buffers = {name for name, _ in model.named_buffers()}
    tied = set(model.all_tied_weights_keys)
    wrong = {
        "misses": set(found["missing_keys"]) - buffers - tied,
        "does not know": set(found["unexpected_keys"]),
        "cannot take": {str(key) for key in found["mismatched_keys"]},
    }
    for verb, keys in wrong.items():
        if keys:
            raise Bad(f"{architecture} {verb} {sorted(keys)[0]} and {len(keys) - 1} more tensors of {checkpoint.name}")
    return model.eval()


@torch.no_grad()
def written(model, seed):
    """Windows of tokens that the model writes itself, [WINDOWS, TOKENS]. The first token of each is random."""
    generator = torch.Generator().manual_seed(seed)
    vocabulary = model.config.get_text_config().vocab_size
    tokens = torch.randint(vocabulary, (WINDOWS, 1), generator=generator)
    for _ in range(make.TOKENS - 1):
        odds = (1 - RANDOM) * make.logits(model, tokens)[:, -1].softmax(-1) + RANDOM / vocabulary
        tokens = torch.cat([tokens, torch.multinomial(odds, 1, generator=generator)], dim=1)
    return tokens


def perplexity(model, windows):
    """The logarithm of the perplexity. Each window predicts all its tokens except the first."""
    scores = make.logits(model, windows)[:, :-1]
    return torch.nn.functional.cross_entropy(scores.flatten(0, 1), windows[:, 1:].flatten()).item()


def write_tokenizer(folder, vocabulary):
    """Writes a tokenizer.json that knows the words t0, t1 and so on between spaces."""
    words = {f"t{token}": token for token in range(vocabulary)}
    model = {"type": "WordLevel", "vocab": words, "unk_token": "t0"}
    tokenizer = {"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "WhitespaceSplit"}, "model": model}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")


def write_text(file, windows):
    """Writes windows of tokens as a text, one after the other."""
    file.write_text(" ".join(f"t{token}" for token in windows.flatten().tolist()), encoding="utf-8")


def check_tensors(original, result, layers, head):
    """Fails unless the files hold the same tensors, and only the weights of `layers` differ. With `head` an untied output
    matrix is one of the layers. Returns whether 8-bit codes of all layers fill whole words."""
    before, after = load_file(original / "model.safetensors"), load_file(result / "model.safetensors")
    weights = {f"{layer}.weight" for layer in layers}
    untied = {name for name in weights - set(before) if head and name.endswith("lm_head.weight")}
    if set(after) != set(before) | untied:
        odd = sorted(set(after) ^ (set(before) | untied))
        raise Bad(f"{result.name} should have the tensors of the original, but not so {odd[0]}")
    for name, tensor in before.items():
        if torch.equal(tensor, after[name]) == (name in weights):
            raise Bad(f"{name} of {result.name} should {'not ' if name in weights else ''}be that of the original")
    return all(side % 4 == 0 for name in weights for side in after[name].shape)


def compare(ours, theirs, what):
    """The difference of the logarithms of two perplexities. It must not be above TOLERANCE."""
    if not abs(ours - theirs) <= TOLERANCE:
        raise Bad(f"{what}: the logarithms of the perplexities are {ours:.7f} and {theirs:.7f}")
    return abs(ours - theirs)


def packed(case, aquatint, folder, fits, floats):
    """Writes 8-bit GPTQ codes and reads them back. Returns the cell of the table. `fits`: whether the shape fills the
    words. `floats`: the logarithm of the perplexity of the same run as float weights."""
    out = folder / "gptq-8bit-packed"
    options = ["--bits", 8, "--format", "gptq", *case.options]
    _, complaint = aquatint.quantize(folder / "original", out, folder / "calibration.txt", options)
    if complaint is None and fits:
        ours = aquatint.perplexity(out, folder / "evaluation.txt")
        compare(ours, floats, "GPTQ codes and floats")
        return f"{math.exp(ours):.4f}"
    if complaint is None or fits or REFUSAL not in complaint:
        raise Bad(f"GPTQ codes: {complaint or 'a shape that does not fill words was not refused'}")
    return "refused"


def examine(case, aquatint, folder, row):
    """Runs all steps for one model. Appends the cells of its line to `row`, so that those before a failure are shown."""
    family, original = FAMILIES[case.fixture], folder / "original"
    folder.mkdir(parents=True, exist_ok=True)
    make.write(case.fixture, original, second=True)
    model = load(original, family)
    architecture = type(model)
    row.append(f"{architecture.__name__:<39}")
    write_tokenizer(original, model.config.get_text_config().vocab_size)
    calibration, evaluation = (written(model, 2 * family.seed + part) for part in (0, 1))
    write_text(folder / "calibration.txt", calibration)
    write_text(folder / "evaluation.txt", evaluation)
    ours = aquatint.perplexity(original, folder / "evaluation.txt")
    apart = compare(ours, perplexity(model, evaluation), "the original")
    row.append(f"{math.exp(ours):>9.4f} {apart:>7.1e}")

    floats = {}
    for method, bits in GRIDS:
        out = folder / f"{method}-{bits}bit"
        options = ["--method", method, "--bits", bits, "--format", "float", *case.options]
        layers, complaint = aquatint.quantize(original, out, folder / "calibration.txt", options)
        if complaint:
            raise Bad(f"{out.name}: {complaint}")
        fits = check_tensors(original, out, layers, case.head)
        ours = aquatint.perplexity(out, folder / "evaluation.txt")
        model = load(out, family)
        if type(model) is not architecture:
            raise Bad(f"{out.name} is a {type(model).__name__}")
        theirs = perplexity(model, evaluation)
        compare(ours, theirs, out.name)
        floats[method, bits] = ours
        row.append(f"{math.exp(ours):>9.4f} {math.exp(theirs):>9.4f}")
    row.append(f"{packed(case, aquatint, folder, fits, floats['gptq', 8]):>9}")


def line(case, options):
    """The line of one model, and whether it passed."""
    row, verdict = [f"{case.name:<22}"], "ok"
    try:
        # make.py prints on standard output, which is for the table.
        with contextlib.redirect_stdout(sys.stderr):
            examine(case, Aquatint(options.aquatint, options.device), options.out / case.name, row)
    except (Bad, AssertionError) as complaint:
        verdict = f"FAILED: {complaint}"
    return f"{'  '.join(row)}  {verdict}", verdict == "ok"


def main():
    """Prints the table and returns the exit code."""
    options = arguments()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # The models are too small to be worth a second thread.
    torch.set_num_threads(1)
    try:
        chosen = cases(options.only)
    except Bad as complaint:
        print(complaint)
        return 2
    grids = "  ".join(f"{f'{method} {bits}: ours, theirs':>19}" for method, bits in GRIDS)
    print(f"{'model':<22}  {'architecture':<39}  {'original':>9} {'apart':>7}  {grids}  {'packed 8':>9}", flush=True)
    failed = 0
    for case in chosen:
        text, fine = line(case, options)
        failed += not fine
        print(text, flush=True)
    print("packed 8: 8-bit GPTQ codes, read back by Aquatint; refused if rows or columns are no multiples of 4")
    if failed:
        print(f"{failed} of {len(chosen)} models failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
