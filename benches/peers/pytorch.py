#!/usr/bin/env python3
"""Runs GPTQ with quantization error propagation in plain PyTorch, for a comparison with aquatint's speed.

    benches/peers/pytorch.py MODEL --calibration TEXT [--samples N] [--seq-len N] [--bits B] [--alpha A|off]
                             [--evaluate TEXT --windows N --eval-seq-len N] [--device cpu|cuda]
    benches/peers/pytorch.py --shape llama-2-7b --blocks N [the same, without texts]

The script follows the public implementations of GPTQ and QEP (arXiv 2210.17323, 2504.09629). The model is a Hugging Face module.
Blocks run one window at a time with hooks on the linears of a group, once with the original weights and once with the weights
quantized so far. H and D are summed in f32. Weights are corrected by a Cholesky solve. They are rounded column by column in blocks
of 128, in descending order of activation, on one min-max grid per row. The same run with aquatint:

    aquatint quantize MODEL --out OUT --calibration TEXT --sampling sequential --samples N --seq-len N --bits B --asym \\
        --group-size -1 --alpha A --grid minmax --descent 0

With --shape the weights and the tokens are random, as in `aquatint bench-model --shape llama-2-7b --blocks N`.

Needs torch, transformers and safetensors; `benches/peers/run.sh` makes an environment for it.
"""

import argparse
import copy
import json
import math
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

GROUPS = [
    ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    ["self_attn.o_proj"],
    ["mlp.gate_proj", "mlp.up_proj"],
    ["mlp.down_proj"],
]
DAMPING = 0.01
SHAPES = {
    "llama-2-7b": dict(hidden_size=4096, intermediate_size=11008, num_attention_heads=32, num_key_value_heads=32, vocab_size=32000),
    "llama-3-8b": dict(hidden_size=4096, intermediate_size=14336, num_attention_heads=32, num_key_value_heads=8, vocab_size=128256),
    "llama-2-70b": dict(hidden_size=8192, intermediate_size=28672, num_attention_heads=64, num_key_value_heads=8, vocab_size=32000),
}


class Stop(Exception):
    pass


def windows(tokenizer, path, count, length):
    with open(path, encoding="utf-8") as file:
        ids = tokenizer(file.read(), return_tensors="pt", add_special_tokens=False).input_ids[0]
    if count * length > len(ids):
        raise SystemExit(f"{path}: found {len(ids)} tokens, expected {count * length}; use fewer or shorter windows")
    return ids[: count * length].reshape(count, length)


def random_model(args):
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPES[args.shape], num_hidden_layers=args.blocks, tie_word_embeddings=True)
    tokens = torch.randint(config.vocab_size, (args.samples, args.seq_len))
    return LlamaForCausalLM(config).float(), tokens


def real_model(args):
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    return model, windows(AutoTokenizer.from_pretrained(args.model), args.calibration, args.samples, args.seq_len)


def first_inputs(model, tokens, device):
    """Returns the inputs of the first block, one per window, and the other arguments of every block."""
    inputs, rest = [], {}

    def catch(module, args, kwargs):
        inputs.append(args[0] if args else kwargs["hidden_states"])
        rest.update({key: value for key, value in kwargs.items() if key != "hidden_states"})
        raise Stop

    handle = model.model.layers[0].register_forward_pre_hook(catch, with_kwargs=True)
    for window in tokens:
        try:
            model(window[None].to(device), use_cache=False)
        except Stop:
            pass
    handle.remove()
    return inputs, rest


def run_block(block, hidden, rest):
    output = block(hidden, **rest)
    return output[0] if isinstance(output, tuple) else output


def input_of(block, name, hidden, rest):
    """Returns the input of the linear `name` when the block's input is `hidden`."""
    caught = []

    def catch(module, args):
        caught.append(args[0])
        raise Stop

    handle = block.get_submodule(name).register_forward_pre_hook(catch)
    try:
        run_block(block, hidden, rest)
    except Stop:
        pass
    handle.remove()
    return caught[0].flatten(0, -2)


def minmax_grid(weight, bits):
    low = weight.amin(1, keepdim=True).clamp(max=0)
    high = weight.amax(1, keepdim=True).clamp(min=0)
    scale = ((high - low) / (2**bits - 1)).half().float().clamp(min=6e-8)
    return scale, torch.round(-low / scale).clamp(0, 2**bits - 1)


def gptq(weight, hessian, bits):
    weight = weight.clone()
    n = weight.shape[1]
    dead = hessian.diagonal() == 0
    hessian = hessian.clone()
    hessian.diagonal()[dead] = 1
    weight[:, dead] = 0
    scale, zero = minmax_grid(weight, bits)
    order = torch.argsort(hessian.diagonal(), descending=True)
    weight, hessian = weight[:, order], hessian[order][:, order]
    hessian.diagonal().add_(DAMPING * hessian.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    factor = torch.linalg.cholesky(inverse, upper=True)
    rounded = torch.zeros_like(weight)
    for start in range(0, n, 128):
        end = min(start + 128, n)
        block = weight[:, start:end].clone()
        errors = torch.zeros_like(block)
        local = factor[start:end, start:end]
        for i in range(end - start):
            column = block[:, i : i + 1]
            code = torch.round(column / scale + zero).clamp(0, 2**bits - 1)
            value = scale * (code - zero)
            rounded[:, start + i : start + i + 1] = value
            error = (column - value) / local[i, i]
            block[:, i:] -= error @ local[i : i + 1, i:]
            errors[:, i : i + 1] = error
        weight[:, end:] -= errors @ factor[start:end, end:]
    return rounded[:, torch.argsort(order)]


@torch.no_grad()
def quantize(model, tokens, args, times):
    def clock(name, since):
        if args.device == "cuda":
            torch.cuda.synchronize()
        times[name] = times.get(name, 0.0) + time.perf_counter() - since
        return time.perf_counter()

    exact, rest = first_inputs(model, tokens, args.device)
    approximate = [hidden.clone() for hidden in exact]
    for index, block in enumerate(model.model.layers):
        original = copy.deepcopy(block) if args.alpha else block
        for names in GROUPS:
            n = block.get_submodule(names[0]).weight.shape[1]
            hessian = torch.zeros(n, n, device=args.device)
            correlation = torch.zeros(n, n, device=args.device)
            for x_in, xh_in in zip(exact, approximate):
                since = time.perf_counter()
                xh = input_of(block, names[0], xh_in, rest)
                x = input_of(original, names[0], x_in, rest) if args.alpha else xh
                since = clock("forward", since)
                hessian += xh.T @ xh
                if args.alpha:
                    correlation += (x - xh).T @ xh
                clock("statistics", since)
            since = time.perf_counter()
            if args.alpha:
                damped = hessian + DAMPING * hessian.diagonal().mean() * torch.eye(n, device=args.device)
                factor = torch.linalg.cholesky(damped)
            for name in names:
                linear = block.get_submodule(name)
                weight = linear.weight.data
                if args.alpha:
                    weight = weight + args.alpha * torch.cholesky_solve((weight @ correlation).T, factor).T
                    since = clock("correct", since)
                linear.weight.data = gptq(weight, hessian, args.bits)
                since = clock("round", since)
        since = time.perf_counter()
        if args.alpha:
            exact = [run_block(original, hidden, rest) for hidden in exact]
        approximate = [run_block(block, hidden, rest) for hidden in approximate]
        clock("forward", since)
        print(f"block {index + 1} of {len(model.model.layers)}", flush=True)


@torch.no_grad()
def perplexity(model, tokens, device):
    total, count = 0.0, 0
    for window in tokens:
        logits = model(window[None].to(device), use_cache=False).logits[0, :-1].float()
        total += torch.nn.functional.cross_entropy(logits, window[1:].to(device), reduction="sum").item()
        count += len(window) - 1
    return math.exp(total / count)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?")
    parser.add_argument("--shape", choices=SHAPES)
    parser.add_argument("--blocks", type=int, default=1)
    parser.add_argument("--calibration")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--bits", type=int, default=3)
    parser.add_argument("--alpha", type=lambda text: 0.0 if text == "off" else float(text), default=0.5)
    parser.add_argument("--evaluate")
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--eval-seq-len", type=int, default=512)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json")
    args = parser.parse_args()
    if bool(args.shape) == bool(args.model) or bool(args.model) != bool(args.calibration):
        parser.error("give a MODEL with --calibration, or a --shape without")
    torch.backends.cuda.matmul.allow_tf32 = False
    model, tokens = random_model(args) if args.shape else real_model(args)
    model = model.to(args.device).eval()
    times = {}
    since = time.perf_counter()
    quantize(model, tokens, args, times)
    seconds = time.perf_counter() - since
    record = {"peer": f"torch {torch.__version__}", "threads": torch.get_num_threads(), "seconds": seconds, "phases": times}
    if args.evaluate:
        text = windows(AutoTokenizer.from_pretrained(args.model), args.evaluate, args.windows, args.eval_seq_len)
        record["perplexity"] = perplexity(model, text, args.device)
    print(json.dumps(record, indent=2))
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(record, file, indent=2)


if __name__ == "__main__":
    main()
