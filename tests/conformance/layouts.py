"""Ways in which a model lies in a folder: as transformers writes it, and as older programs did."""

import json
from pathlib import Path
from typing import Any

import peer
import torch
from safetensors.torch import load_file, save_file


def sharded(model: torch.nn.Module, folder: Path) -> None:
    peer.write(model, folder, max_shard_size="9KB")


def fused(model: torch.nn.Module, folder: Path) -> None:
    """All experts of a layer in one tensor, by the names that transformers has in memory."""
    peer.write(model, folder, save_original_format=False)


def older(model: torch.nn.Module, folder: Path) -> None:
    """As transformers 4 and before: theta and the scaling of RoPE are keys of their own, which
    layers have a window is not listed, masks, frequencies and a tied head lie beside the
    parameters, GPT-2's names have no prefix."""
    peer.write(model, folder)
    config = json.loads((folder / "config.json").read_text())
    drop_layer_types(config)
    rope = config.pop("rope_parameters", None)
    if rope:
        config["rope_theta"] = rope.pop("rope_theta")
        if "partial_rotary_factor" in rope:
            config["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
        kind = rope.pop("rope_type")
        config["rope_scaling"] = None if kind == "default" else {"type": kind} | rope
    config["torch_dtype"] = config.pop("dtype")
    (folder / "config.json").write_text(json.dumps(config))

    tensors = load_file(folder / "model.safetensors")
    for layer in range(config.get("num_hidden_layers", 0)):
        name = f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"
        tensors[name] = model.model.rotary_emb.inv_freq.clone()
    if config["model_type"] in ("deepseek_v3", "glm4_moe"):
        tensors |= further_layer(config["num_hidden_layers"], tensors)
    if config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = model.get_output_embeddings().weight.detach().clone()
    if config["model_type"] == "gpt2":
        tensors = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
        positions = config["n_positions"]
        for layer in range(config["n_layer"]):
            mask = torch.ones(positions, positions).tril().view(1, 1, positions, positions)
            tensors[f"h.{layer}.attn.bias"] = mask
            tensors[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def further_layer(layers: int, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As published: behind the last layer one that predicts the token after the next, which
    transformers does not use."""
    last, further = f"model.layers.{layers - 1}.", f"model.layers.{layers}."
    found = {further + name[len(last) :]: t for name, t in tensors.items() if name.startswith(last)}
    norm, embedding = tensors["model.norm.weight"], tensors["model.embed_tokens.weight"]
    for name in ("enorm", "hnorm", "shared_head.norm"):
        found[f"{further}{name}.weight"] = norm
    for name in ("embed_tokens", "shared_head.head"):
        found[f"{further}{name}.weight"] = embedding
    found[f"{further}eh_proj.weight"] = torch.zeros(len(norm), 2 * len(norm))
    return {name: tensor.clone() for name, tensor in found.items()}


def drop_layer_types(config: dict[str, Any]) -> None:
    """Takes the list of layers with windows out, unless it differs from what the other keys say."""
    listed = ("model_type", "layer_types")
    rest = {key: value for key, value in config.items() if key not in listed}
    derived = getattr(peer.configuration(config["model_type"], rest), "layer_types", None)
    if derived is not None and derived == config["layer_types"]:
        del config["layer_types"]


ALL = (sharded, fused, older)
