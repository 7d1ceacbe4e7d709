"""Compares Aquatint with llama.cpp, gguf-py and mlx-lm on GGUF files and MLX checkpoints that Aquatint wrote.
`cargo xtask clients` runs this script.

    python light_clients.py --aquatint PROGRAM --model DIR --out DIR --calibration FILE --samples N
        --text FILE --seq-len N --windows N [--device DEVICE] [--only NAME[,NAME...]]

Perplexity is defined as in `aquatint eval`: the whole text is tokenized and cut into windows of N tokens that do not
overlap. Each window predicts all its tokens except the first. The comparisons:

1. mlx-lm loads MLX checkpoints of 2, 3 and 4 bits. It computes in f32, and every linear layer must be a quantized one.
   The original is not compared: mlx-lm does not look for the base of the rotary embedding where transformers 5 stores it.
   Aquatint writes it where both find it.
2. llama.cpp loads GGUF files. It rounds the inputs of quantized layers to 8 bits, so its perplexity may differ by 3 %.
   It must find the same tokens in a piece of the text as transformers.
3. gguf-py dequantizes each GGUF file into a copy in F32. The copy and the original must mean the same weights: Aquatint
   reads both, and the KL divergence of their predictions must vanish.
4. llama.cpp loads the copy. It rounds nothing there, so the perplexities must agree.
5. Aquatint writes no GGUF files in F16, but reads them. gguf-py writes one from a file in Q8_0, and llama.cpp loads it.

The K types need widths that 256 divides. The model may have others, so a small random model is made for them and for F16.
The script prints a table. It exits with 1 if a comparison failed.
"""

import os

# The clients print messages on standard output. They are redirected to standard error, so that only the table is there.
TABLE = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)

# The script needs no network.
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import argparse
import json
import math
import multiprocessing
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer

# Greatest relative difference of two perplexities of the same weights when both programs compute with floats, and when
# llama.cpp rounds the inputs of quantized layers.
TOLERANCE = 0.005
ROUNDED_INPUTS = 0.03
# Greatest KL divergence, in nats per token, between two files of the same weights. A wrong bit of one code in one block of
# the random model makes it 1e-7.
SAME_WEIGHTS = 1e-9
# Characters of the text on which the tokenizers are compared.
PIECE = 400

RTN = ("--method", "rtn", "--alpha", "off")
# Rounding to nearest with 2 bits destroys a small model, so that its perplexity says little.
GPTQ = ("--method", "gptq", "--alpha", "off")
# Types that this version of gguf-py does not know.
UNKNOWN_TO_GGUF = ("Q2_0",)
K_TYPES = ("Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K")
TOKENIZER = Path(__file__).resolve().parents[1] / "tests/fixtures/tiny-llama"


class Bad(Exception):
    """A comparison that could not be made, as a sentence without a full stop."""


@dataclass
class Case:
    """A checkpoint to make and to compare: an MLX checkpoint ("mlx") or GGUF file ("gguf") of the given model, or a GGUF file
    of the random one ("random"); and the options of `aquatint quantize`."""

    name: str
    kind: str
    options: tuple


CASES = [
    *(
        Case(f"mlx-{bits}bit-group{group}", "mlx", (*("--format", "mlx", "--bits", bits, "--group-size", group), *method))
        for bits, method in ((4, RTN), (3, RTN), (2, GPTQ))
        for group in (64, 32)
    ),
    *(Case(kind, "gguf", ("--type", kind, *RTN)) for kind in ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")),
    Case("Q2_0", "gguf", ("--type", "Q2_0", *GPTQ)),
    *(Case(kind, "random", ("--type", kind, *RTN)) for kind in K_TYPES),
    Case("F16", "random", ("--type", "Q8_0", *RTN)),
]


@dataclass
class Row:
    """A row of the table. `apart` is what was compared, and `fine` whether it was small enough."""

    client: str
    case: str
    ours: float
    theirs: float
    apart: str
    fine: bool

    def __str__(self):
        verdict = "ok" if self.fine else "FAILED"
        return f"{self.client:<18} {self.case:<18} {self.ours:>11.4f} {self.theirs:>11.4f} {self.apart:>11}  {verdict}"


def perplexities(client, case, ours, theirs, tolerance):
    """The row that compares two perplexities."""
    difference = theirs / ours - 1.0
    return Row(client, case, ours, theirs, f"{difference:+.3%}", abs(difference) <= tolerance)


def arguments():
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for option in ("aquatint", "model", "out", "calibration", "text"):
        parser.add_argument(f"--{option}", type=Path, required=True)
    for option in ("samples", "seq-len", "windows"):
        parser.add_argument(f"--{option}", type=int, required=True)
    parser.add_argument("--device")
    parser.add_argument("--only", help="names of cases, such as Q4_0,mlx-4bit-group64")
    options = parser.parse_args()
    names = [case.name for case in CASES]
    for name in options.only.split(",") if options.only else []:
        if name not in names:
            parser.error(f"there is no case {name}; the cases are {', '.join(names)}")
    return options


class Aquatint:
    """The program, and the options that are the same in all its runs."""

    def __init__(self, options):
        self.program = options.aquatint
        self.device = ["--device", options.device] if options.device else []
        windows = ["--seq-len", options.seq_len]
        self.calibration = ["--calibration", options.calibration, "--samples", options.samples, *windows]
        self.text = ["--text", options.text, "--windows", options.windows, *windows]

    def run(self, *arguments):
        """Runs a subcommand."""
        command = [self.program, *arguments, *self.device]
        command = [str(argument) for argument in command]
        print("+", *command, file=sys.stderr, flush=True)
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, encoding="utf-8")
        print(done.stdout, done.stderr, sep="", end="", file=sys.stderr, flush=True)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise Bad(f"aquatint {arguments[0]}: {lines[-1]}")

    def quantize(self, model, out, options):
        """Quantizes a checkpoint."""
        self.run("quantize", model, "--out", out, "--force", *self.calibration, *options)

    def evaluate(self, checkpoint, against=()):
        """The record of `aquatint eval`."""
        record = checkpoint.parent / f"{checkpoint.name}.eval.json"
        self.run("eval", checkpoint, *self.text, *against, "--json", record)
        return json.loads(record.read_text(encoding="utf-8"))


def token_windows(tokenizer, options):
    """Returns the first windows of the tokenized text, [windows, seq_len]."""
    ids = tokenizer(options.text.read_text(encoding="utf-8")).input_ids
    count, length = options.windows, options.seq_len
    if len(ids) < count * length:
        sys.exit(f"the text has {len(ids)} tokens, {count} windows of {length} need {count * length}")
    return np.array(ids[: count * length]).reshape(count, length)


def apart(function, *arguments):
    """Calls a function in a process of its own, which gives all memory back and may crash."""
    print(f"+ {function.__name__} {arguments[0]}", file=sys.stderr, flush=True)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool:
            raise Bad(f"{function.__name__}: the client crashed") from None
        except Bad:
            raise
        except Exception as error:
            raise Bad(f"{function.__name__}: {type(error).__name__}: {error}") from error


def mlx_perplexity(checkpoint, windows):
    """mlx-lm's perplexity of a checkpoint, on the CPU."""
    import mlx.core as mx
    from mlx import nn
    from mlx.utils import tree_map
    from mlx_lm import load

    mx.set_default_device(mx.cpu)
    model, _ = load(str(checkpoint))
    # Codes are integers and stay as they are.
    widen = lambda x: x.astype(mx.float32) if mx.issubdtype(x.dtype, mx.floating) else x
    model.update(tree_map(widen, model.parameters()))
    linears = [module for name, module in model.named_modules() if name.endswith("_proj")]
    quantized = sum(isinstance(module, nn.QuantizedLinear) for module in linears)
    if quantized != len(linears):
        raise Bad(f"mlx-lm has quantized {quantized} of {len(linears)} layers")
    total = 0.0
    for window in windows.tolist():
        scores = model(mx.array([window]))[0, :-1].astype(mx.float32)
        total += nn.losses.cross_entropy(scores, mx.array(window[1:]), reduction="sum").item()
    return math.exp(total / windows[:, 1:].size)


def llama_server(file, length):
    """Loads a GGUF file in llama.cpp, so that it rounds nothing but the inputs of quantized layers."""
    import xllamacpp as x

    params = x.CommonParams()
    params.model.path = str(file)
    params.n_ctx = -(-(length + 1) // 256) * 256
    params.n_parallel, params.n_gpu_layers = 1, 0
    params.warmup = params.fit_params = False
    # Threads wait for each other at every operation, which takes minutes where other programs keep the cores busy.
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_type_k = params.cache_type_v = x.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = x.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    # Kernels on repacked weights would be other kernels than those that most machines run.
    params.no_extra_bufts = True
    params.swa_full, params.verbosity = True, 0
    return x.Server(params)


def llama_predict(server, prompt, bias=()):
    """Returns the next token after a prompt (a text or tokens) with its log-probability, and the number of tokens in it."""
    request = {"prompt": prompt, "n_predict": 1, "n_probs": 1, "temperature": 0.0, "top_k": 0, "cache_prompt": True}
    answer = server.handle_completions({**request, "logit_bias": [list(pair) for pair in bias]})
    answer = json.loads(answer) if isinstance(answer, str) else answer
    if "choices" not in answer:
        raise Bad(f"llama.cpp answered {str(answer)[:200]}")
    token = answer["choices"][0]["logprobs"]["content"][0]
    return token["id"], token["logprob"], answer["usage"]["prompt_tokens"]


def llama_perplexity(file, windows, piece, piece_ids):
    """llama.cpp's perplexity of a GGUF file. It must split the piece of text into the tokens `piece_ids`."""
    server = llama_server(file, max(windows.shape[1], len(piece_ids)))
    (token, odds, count), (same, same_odds, _) = (llama_predict(server, prompt) for prompt in (piece, piece_ids))
    if count != len(piece_ids) or token != same or abs(odds - same_odds) > 1e-2:
        raise Bad(f"llama.cpp finds {count} tokens in a piece of the text, transformers {len(piece_ids)} or others")
    total = 0.0
    for window in windows.tolist():
        for end in range(1, len(window)):
            # The server returns the odds of the token that it chose. A bias makes it choose the right one. The odds are
            # those without the bias.
            token, odds, _ = llama_predict(server, window[:end], [(window[end], 1e5)])
            if token != window[end]:
                raise Bad(f"llama.cpp chose token {token} in place of {window[end]}")
            total -= odds
    return math.exp(total / windows[:, 1:].size)


def write_copy(file, copy, matrices=np.float32):
    """Dequantizes a GGUF file with gguf-py into a copy with its matrices in F32 or another type, and the vectors in F32."""
    import gguf

    reader = gguf.GGUFReader(file)
    keys = dict(reader.fields)
    writer = gguf.GGUFWriter(copy, keys.pop("general.architecture").contents())
    # The reader's own names of numbers in the header.
    for name in [name for name in keys if name.startswith("GGUF.")]:
        del keys[name]
    for name, field in keys.items():
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, sub_type=inner)
    for tensor in reader.tensors:
        numbers = gguf.dequantize(tensor.data, tensor.tensor_type)
        if list(numbers.shape) != [int(size) for size in reversed(tensor.shape)]:
            raise Bad(f"gguf-py reads {tensor.name} as {numbers.shape}, but its shape is {tensor.shape}")
        kind = matrices if numbers.ndim > 1 else np.float32
        writer.add_tensor(tensor.name, np.ascontiguousarray(numbers, dtype=kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_random_model(out):
    """Writes a random LLaMA whose widths 256 divides, with the tokenizer of the bundled model."""
    from safetensors.numpy import save_file

    width, hidden, layers, heads, kv_heads, size = 256, 512, 2, 4, 2, 64
    config = json.loads((TOKENIZER / "config.json").read_text(encoding="utf-8"))
    config.update(hidden_size=width, intermediate_size=hidden, num_hidden_layers=layers, head_dim=size, dtype="float32")
    config.update(num_attention_heads=heads, num_key_value_heads=kv_heads, tie_word_embeddings=False)
    shapes = {
        "self_attn.q_proj": (heads * size, width),
        "self_attn.k_proj": (kv_heads * size, width),
        "self_attn.v_proj": (kv_heads * size, width),
        "self_attn.o_proj": (width, heads * size),
        "mlp.gate_proj": (hidden, width),
        "mlp.up_proj": (hidden, width),
        "mlp.down_proj": (width, hidden),
    }
    shapes = {f"model.layers.{layer}.{name}": shape for layer in range(layers) for name, shape in shapes.items()}
    shapes |= {name: (config["vocab_size"], width) for name in ("model.embed_tokens", "lm_head")}
    random = np.random.default_rng(0)
    tensors = {
        f"{name}.weight": (random.standard_normal(shape) / math.sqrt(shape[1])).astype(np.float32)
        for name, shape in shapes.items()
    }
    norms = [f"model.layers.{layer}.{name}_layernorm" for layer in range(layers) for name in ("input", "post_attention")]
    for name in (*norms, "model.norm"):
        tensors[f"{name}.weight"] = random.uniform(0.5, 1.5, width).astype(np.float32)
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(TOKENIZER / name, out / name)


class Comparison:
    """The comparisons of one model."""

    def __init__(self, model, aquatint, options):
        self.model, self.aquatint, self.out = model, aquatint, options.out
        tokenizer = AutoTokenizer.from_pretrained(model)
        self.windows = token_windows(tokenizer, options)
        self.piece = options.text.read_text(encoding="utf-8")[:PIECE]
        self.piece_ids = tokenizer(self.piece).input_ids

    def rows(self, case):
        """Makes the checkpoint of a case and yields its rows."""
        if case.kind == "mlx":
            yield self.mlx(case)
            return
        file = self.out / f"{case.name}.gguf"
        copy = file.with_suffix(".copy.gguf")
        self.aquatint.quantize(self.model, file, case.options)
        if case.name == "F16":
            apart(write_copy, file, copy, np.float16)
            ours = self.aquatint.evaluate(copy)["perplexity"]
            yield perplexities("llama.cpp", case.name, ours, self.llama(copy), TOLERANCE)
            return
        if case.name in UNKNOWN_TO_GGUF:
            ours = self.aquatint.evaluate(file)["perplexity"]
        else:
            apart(write_copy, file, copy)
            record = self.aquatint.evaluate(file, ["--against", copy])
            ours, (theirs, kl) = record["perplexity"], (record["against"][key] for key in ("perplexity", "kl"))
            yield Row("gguf-py", case.name, ours, theirs, f"KL {abs(kl):.1e}", abs(kl) <= SAME_WEIGHTS)
            yield perplexities("llama.cpp, copy", case.name, ours, self.llama(copy), TOLERANCE)
            copy.unlink()
        yield perplexities("llama.cpp", case.name, ours, self.llama(file), ROUNDED_INPUTS)

    def mlx(self, case):
        """Makes an MLX checkpoint. Returns its row."""
        checkpoint = self.out / case.name
        self.aquatint.quantize(self.model, checkpoint, case.options)
        ours = self.aquatint.evaluate(checkpoint)["perplexity"]
        return perplexities("mlx-lm", case.name, ours, apart(mlx_perplexity, checkpoint, self.windows), TOLERANCE)

    def llama(self, file):
        """llama.cpp's perplexity of a GGUF file."""
        return apart(llama_perplexity, file, self.windows, self.piece, self.piece_ids)


def main():
    """Compares every case and returns the exit code."""
    options = arguments()
    cases = [case for case in CASES if not options.only or case.name in options.only.split(",")]
    random = options.out / "random-llama"
    write_random_model(random)
    aquatint = Aquatint(options)
    given, made = (Comparison(model, aquatint, options) for model in (options.model, random))
    rows, bad = [], 0
    for case in cases:
        try:
            for row in (made if case.kind == "random" else given).rows(case):
                rows.append(row)
                print(row, file=sys.stderr, flush=True)
                bad += not row.fine
        except Bad as complaint:
            bad += 1
            rows.append(f"{case.name}: FAILED: {complaint}")
            print(rows[-1], file=sys.stderr, flush=True)
    header = f"{'client':<18} {'checkpoint':<18} {'aquatint':>11} {'client':>11} {'apart':>11}"
    print(header, *rows, *([f"{bad} comparisons failed"] if bad else []), sep="\n", file=TABLE, flush=True)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
