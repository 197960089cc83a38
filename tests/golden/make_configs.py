#!/usr/bin/env python3
"""Writes configs/*.json: what transformers writes as config.json for small models of every family,
what it means, and the tensors that such a model is saved with. Needs torch, transformers 5 and
safetensors.

    python make_configs.py [folder]

Each file has "written" (config.json as transformers 5 writes it), "older" (the same as transformers
4 spelt it), "means" (members of nn_model_config_t, taken from the model that transformers makes of
it, not from its keys) and "tensors" (name to shape).
"""
import json
import math
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from safetensors import safe_open

SIZES = dict(vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=3,
             num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64)
MOE = dict(num_experts_per_tok=2)
TWO_WIDTHS = dict(SIZES, moe_intermediate_size=12, **MOE)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=16, rope_theta=5000.0)
LONG = dict(rope_type="longrope", original_max_position_embeddings=16, rope_theta=1e4,
            short_factor=[1.0, 1.5], long_factor=[2.25, 64.1])
LATENT = dict(TWO_WIDTHS, num_key_value_heads=4, n_routed_experts=4, kv_lora_rank=8,
              qk_nope_head_dim=4, qk_rope_head_dim=2, v_head_dim=4, first_k_dense_replace=1)

# Family: class of the configuration, and settings of each case.
CASES = {
    "gpt2": ("GPT2Config", [dict(vocab_size=40, n_embd=16, n_layer=2, n_head=4, n_positions=32),
                            dict(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=32,
                                 n_inner=20, layer_norm_epsilon=1e-6)]),
    "llama": ("LlamaConfig", [
        SIZES,
        dict(SIZES, attention_bias=True, mlp_bias=True, tie_word_embeddings=True, head_dim=6),
        dict(SIZES, rope_parameters=dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0,
                                         high_freq_factor=4.0, rope_theta=5e5,
                                         original_max_position_embeddings=16)),
        dict(SIZES, rope_parameters=dict(rope_type="linear", factor=2.0, rope_theta=1e4)),
        dict(SIZES, rope_parameters=dict(rope_type="dynamic", factor=2.0, rope_theta=1e4)),
        dict(SIZES, rope_parameters=dict(YARN, beta_fast=24.0, beta_slow=2.0, truncate=False,
                                         attention_factor=1.25)),
        dict(SIZES, rope_parameters=dict(YARN, mscale=0.707, mscale_all_dim=1.0)),
        dict(SIZES, rope_parameters=dict(LONG, attention_factor=1.25, factor=8.0))]),
    "mistral": ("MistralConfig", [dict(SIZES, sliding_window=8), dict(SIZES, sliding_window=None)]),
    "mixtral": ("MixtralConfig", [
        dict(SIZES, num_local_experts=4, num_experts_per_tok=2, output_router_logits=True),
        dict(SIZES, num_local_experts=3, num_experts_per_tok=1, sliding_window=8, head_dim=6)]),
    "qwen2": ("Qwen2Config", [
        SIZES, dict(SIZES, use_sliding_window=True, sliding_window=8, max_window_layers=1),
        dict(SIZES, use_sliding_window=True, sliding_window=8, max_window_layers=0),
        dict(SIZES, use_sliding_window=True, sliding_window=8, max_window_layers=3),
        dict(SIZES, use_sliding_window=True, sliding_window=8, layer_types=[
            "sliding_attention", "full_attention", "sliding_attention"])]),
    "qwen3": ("Qwen3Config", [
        dict(SIZES, head_dim=6), dict(SIZES, attention_bias=True, use_sliding_window=True,
                                      sliding_window=8, max_window_layers=2, head_dim=4)]),
    "olmoe": ("OlmoeConfig", [
        dict(SIZES, num_experts=4, **MOE),
        dict(SIZES, num_experts=4, clip_qkv=2.5, norm_topk_prob=True, attention_bias=True,
             output_router_logits=True, **MOE)]),
    "qwen2_moe": ("Qwen2MoeConfig", [
        dict(TWO_WIDTHS, num_experts=4, shared_expert_intermediate_size=20),
        dict(TWO_WIDTHS, num_experts=4, shared_expert_intermediate_size=12, qkv_bias=False,
             norm_topk_prob=True, decoder_sparse_step=2),
        dict(TWO_WIDTHS, num_experts=4, shared_expert_intermediate_size=12, mlp_only_layers=[0, 2],
             use_sliding_window=True, sliding_window=8, max_window_layers=2)]),
    "qwen3_moe": ("Qwen3MoeConfig", [
        dict(TWO_WIDTHS, num_experts=4, head_dim=6, norm_topk_prob=True),
        dict(TWO_WIDTHS, num_experts=4, head_dim=4, mlp_only_layers=[1], attention_bias=True,
             use_sliding_window=True, sliding_window=8, output_router_logits=True)]),
    "granitemoe": ("GraniteMoeConfig", [
        dict(SIZES, num_local_experts=4, **MOE),
        dict(SIZES, num_local_experts=4, embedding_multiplier=12.0, residual_multiplier=0.22,
             attention_multiplier=0.015625, logits_scaling=6.0, tie_word_embeddings=True, **MOE)]),
    "gpt_oss": ("GptOssConfig", [
        dict(SIZES, num_local_experts=4, head_dim=6, sliding_window=8, **MOE),
        dict(SIZES, num_local_experts=4, head_dim=4, sliding_window=8, attention_bias=False,
             swiglu_limit=3.0, output_router_logits=True,
             layer_types=["full_attention", "sliding_attention", "sliding_attention"],
             rope_parameters=dict(rope_type="default", rope_theta=1e4), **MOE)]),
    "glm4_moe": ("Glm4MoeConfig", [
        dict(TWO_WIDTHS, n_routed_experts=4, head_dim=8, attention_bias=True, use_qk_norm=True),
        dict(TWO_WIDTHS, n_routed_experts=4, head_dim=8, n_group=2, topk_group=1,
             routed_scaling_factor=2.5, norm_topk_prob=False, n_shared_experts=2)]),
    "phimoe": ("PhimoeConfig", [
        dict(SIZES, num_local_experts=4, **MOE),
        dict(SIZES, num_local_experts=4, attention_bias=True, lm_head_bias=True,
             sliding_window=8, router_jitter_noise=0.02, **MOE),
        dict(SIZES, num_local_experts=4, input_jitter_noise=0.01,
             rope_parameters=dict(LONG, short_mscale=1.2, long_mscale=1.3), **MOE)]),
    "deepseek_v2": ("DeepseekV2Config", [
        dict(LATENT, q_lora_rank=None),
        dict(LATENT, q_lora_rank=6, topk_method="group_limited_greedy", n_group=2, topk_group=1,
             routed_scaling_factor=16.0, rope_parameters=dict(YARN, mscale=1.0,
                                                              mscale_all_dim=1.0))]),
    "deepseek_v3": ("DeepseekV3Config", [
        dict(LATENT, q_lora_rank=6, n_group=2, topk_group=1),
        dict(LATENT, q_lora_rank=None, n_group=1, topk_group=1, rope_interleave=False,
             norm_topk_prob=False)]),
}

FAMILIES = ("mixtral gpt2 llama mistral qwen2 qwen3 olmoe qwen2_moe qwen3_moe granitemoe gpt_oss "
            "deepseek_v2 deepseek_v3 glm4_moe phimoe").split()
BIAS_QKV, BIAS_O, BIAS_FFN, BIAS_ROUTER, BIAS_HEAD = 1, 2, 4, 8, 16
ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "llama3", "longrope")
ROPE_MEMBERS = {"factor": "rope_factor", "beta_fast": "rope_beta_fast",
                "beta_slow": "rope_beta_slow", "low_freq_factor": "rope_low_freq",
                "high_freq_factor": "rope_high_freq", "attention_factor": "rope_attention_factor",
                "mscale": "rope_mscale", "mscale_all_dim": "rope_mscale_all_dim",
                "short_mscale": "rope_short_mscale", "long_mscale": "rope_long_mscale",
                "short_factor": "rope_short_factors", "long_factor": "rope_long_factors"}


def words(layers):
    """The four words of a pattern of layers."""
    mask = sum(1 << layer for layer in layers)
    return [mask >> 64 * word & (1 << 64) - 1 for word in range(4)]


def rope(config, means):
    """Members that say how RoPE is made, from transformers' own parameters."""
    parameters = config.rope_parameters
    means["rope_theta"] = parameters["rope_theta"]
    means["rope_scaling"] = ROPE_TYPES.index(parameters["rope_type"])
    for key, member in ROPE_MEMBERS.items():
        if parameters.get(key) is not None:
            means[member] = parameters[key]
    if means["rope_scaling"] >= 3:
        means["rope_original_context"] = parameters["original_max_position_embeddings"]
        means["rope_no_truncate"] = int(not parameters.get("truncate", True))


def attention_means(model, config, means):
    layers = model.model.layers
    first = layers[0].self_attn
    means.update(heads=config.num_attention_heads, kv_heads=config.num_key_value_heads)
    rope(config, means)
    windows = [getattr(layer.self_attn, "sliding_window", None) for layer in layers]
    if model.config.model_type in ("mistral", "mixtral", "phimoe"):
        windows = [config.sliding_window] * len(layers)
    inside = [layer for layer, window in enumerate(windows) if window]
    if inside:
        means["window"] = windows[inside[0]]
        if len(inside) < len(layers):
            means["window_layers"] = words(inside)
    if hasattr(first, "kv_lora_rank"):
        means.update(kv_heads=config.num_attention_heads, q_rank=first.q_lora_rank or 0,
                     kv_rank=first.kv_lora_rank, rope_head_dim=first.qk_rope_head_dim,
                     head_dim=first.qk_head_dim, value_head_dim=first.v_head_dim)
        interleaved = config.model_type == "deepseek_v2" or config.rope_interleave
        means["rope_interleaved"] = int(interleaved)
        return
    means["head_dim"] = first.head_dim
    if first.q_proj.bias is not None:
        means["biases"] += BIAS_QKV
    if first.o_proj.bias is not None:
        means["biases"] += BIAS_O
    if getattr(first, "q_norm", None) is not None:
        means["qk_norm"] = 1 if first.q_norm.weight.numel() == first.head_dim else 2
    if getattr(config, "clip_qkv", None) is not None:
        means["qkv_clip"] = config.clip_qkv
    rotary = 2 * model.model.rotary_emb.inv_freq.numel()
    if rotary != first.head_dim:
        means["rotary_dim"] = rotary
    if not math.isclose(first.scaling, first.head_dim ** -0.5):
        means["attention_scale"] = first.scaling


def experts_means(model, config, means):
    layers = model.model.layers
    blocks = [getattr(layer, "mlp", None) or layer.block_sparse_moe for layer in layers]
    sparse = [layer for layer, block in enumerate(blocks) if hasattr(block, "experts")]
    if not sparse:
        means["ffn"] = config.intermediate_size
        if blocks[0].gate_proj.bias is not None:
            means["biases"] += BIAS_FFN
        return
    block = blocks[sparse[0]]
    fused = getattr(block.experts, "gate_up_proj")
    means.update(experts=fused.shape[0], ffn=fused.shape[1] // 2, top_k=config.num_experts_per_tok,
                 aux_loss=1)
    dense = [layer for layer in range(len(layers)) if layer not in sparse]
    if hasattr(config, "moe_intermediate_size"):
        means["dense_ffn"] = config.intermediate_size
    if config.model_type == "gpt_oss":
        means.update(ffn=fused.shape[2] // 2, ffn_kind=2, swiglu_limit=block.experts.limit,
                     attention_sinks=int(layers[0].self_attn.sinks.numel() > 0))
        means["biases"] += BIAS_FFN * int(block.experts.gate_up_proj_bias.numel() > 0)
        means["biases"] += BIAS_ROUTER * int(block.router.bias.numel() > 0)
    if dense:
        means["dense_layers"] = words(dense)
        assert blocks[dense[0]].gate_proj.weight.shape[0] == means["dense_ffn"]
    if config.output_router_logits:
        means["aux_loss_coef"] = config.router_aux_loss_coef
    shared = getattr(block, "shared_expert", None) or getattr(block, "shared_experts", None)
    if shared is not None:
        means["shared_ffn"] = shared.gate_proj.weight.shape[0]
        means["shared_gate"] = int(hasattr(block, "shared_expert_gate"))
    name = config.model_type
    if name in ("mixtral", "granitemoe", "gpt_oss"):
        means["router_norm"] = 0
    elif name in ("phimoe", "deepseek_v2"):
        means["router_norm"] = 1
    else:
        means["router_norm"] = int(not config.norm_topk_prob)
    means["router_score"] = {"phimoe": 2, "deepseek_v3": 1, "glm4_moe": 1}.get(name, 0)
    if name == "phimoe":
        means["router_eps"] = config.router_jitter_noise
    if name in ("deepseek_v3", "glm4_moe"):
        means.update(router_choice_bias=1, router_group_score=1)
    if name in ("deepseek_v2", "deepseek_v3", "glm4_moe"):
        if config.routed_scaling_factor != 1:
            means["router_scale"] = config.routed_scaling_factor
        grouped = name != "deepseek_v2" or config.topk_method == "group_limited_greedy"
        if grouped and config.n_group > 1:
            means.update(router_groups=config.n_group, router_top_groups=config.topk_group)


def meaning(model, config):
    means = dict(family=FAMILIES.index(config.model_type), vocab_size=config.vocab_size,
                 init_std=config.initializer_range, tied_head=int(config.tie_word_embeddings),
                 biases=0)
    if config.model_type == "gpt2":
        means.update(norm=1, position=1, ffn_kind=1, context=config.n_positions,
                     layers=config.n_layer, hidden=config.n_embd, heads=config.n_head,
                     kv_heads=config.n_head, head_dim=config.n_embd // config.n_head,
                     ffn=model.transformer.h[0].mlp.c_fc.nf, biases=7,
                     norm_eps=config.layer_norm_epsilon)
        return means
    means.update(norm=int(hasattr(model.model.norm, "bias")),
                 context=config.max_position_embeddings,
                 layers=len(model.model.layers), hidden=config.hidden_size,
                 norm_eps=config.rms_norm_eps)
    attention_means(model, config, means)
    experts_means(model, config, means)
    if getattr(model.lm_head, "bias", None) is not None:
        means["biases"] += BIAS_HEAD
    if config.model_type == "granitemoe":
        for member, factor in (("embedding_scale", config.embedding_multiplier),
                               ("residual_scale", config.residual_multiplier),
                               ("logit_scale", 1 / config.logits_scaling)):
            if factor != 1:
                means[member] = factor
    return means


def older(written):
    """As transformers 4 spelt it."""
    config = dict(written)
    parameters = dict(config.pop("rope_parameters", {}))
    if parameters:
        config["rope_theta"] = parameters.pop("rope_theta")
        if "partial_rotary_factor" in parameters:
            config["partial_rotary_factor"] = parameters.pop("partial_rotary_factor")
        kind = parameters.pop("rope_type")
        config["rope_scaling"] = None if kind == "default" else dict(parameters, type=kind)
    if "dtype" in config:
        config["torch_dtype"] = config.pop("dtype")
    if config["model_type"] == "qwen3_moe":
        config["num_experts"] = config.pop("num_local_experts")
    return config


def main():
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "configs")
    folder.mkdir(exist_ok=True)
    for family, (name, cases) in CASES.items():
        for number, settings in enumerate(cases):
            torch.manual_seed(1)
            config = getattr(transformers, name)(**settings)
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            with tempfile.TemporaryDirectory() as saved:
                model.save_pretrained(saved)
                written = json.loads((Path(saved) / "config.json").read_text())
                with safe_open(Path(saved) / "model.safetensors", "pt") as file:
                    tensors = {key: list(file.get_slice(key).get_shape()) for key in file.keys()}
            entry = {"written": written, "older": older(written),
                     "means": meaning(model, model.config), "tensors": tensors}
            lines = [f"{json.dumps(key)}: {json.dumps(value, sort_keys=True)}"
                     for key, value in entry.items()]
            (folder / f"{family}-{number}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
            print(family, number)


if __name__ == "__main__":
    main()
