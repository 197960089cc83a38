"""The models that the suite compares: one line for each, as keys of its config.json.

The name is that of the model type and of the variant. A line gives what differs from BASE and from
its family's entry in FAMILIES; every model is small, and random (see peer.py). The first line of a
family is what the quick run takes."""

import zlib
from dataclasses import dataclass
from typing import Any

# Of every family but gpt2, which has its own names. Odd numbers of heads, of widths and of tokens
# on purpose: nothing here is a multiple of a vector's length.
BASE = dict(
    vocab_size=61,
    hidden_size=30,
    intermediate_size=44,
    num_hidden_layers=2,
    num_attention_heads=3,
    num_key_value_heads=1,
    max_position_embeddings=64,
    bos_token_id=1,
    eos_token_id=2,
)
MIXTURE = dict(BASE, intermediate_size=22, output_router_logits=True, router_aux_loss_coef=0.02)

# What each family's models have in common.
FAMILIES = {
    "gpt2": dict(
        vocab_size=61,
        n_embd=30,
        n_layer=2,
        n_head=3,
        n_positions=64,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "llama": BASE,
    "mistral": dict(BASE, sliding_window=None),
    "mixtral": dict(MIXTURE, num_local_experts=5, num_experts_per_tok=2),
    "qwen2": BASE,
    "qwen3": dict(BASE, head_dim=14),
    "olmoe": dict(MIXTURE, num_experts=5, num_experts_per_tok=2, pad_token_id=None),
    "qwen2_moe": dict(
        MIXTURE,
        intermediate_size=44,
        moe_intermediate_size=22,
        shared_expert_intermediate_size=26,
        num_experts=5,
        num_experts_per_tok=2,
    ),
    "qwen3_moe": dict(
        MIXTURE,
        intermediate_size=44,
        moe_intermediate_size=22,
        head_dim=14,
        num_experts=5,
        num_experts_per_tok=2,
    ),
    "granitemoe": dict(
        BASE,
        intermediate_size=22,
        num_local_experts=5,
        num_experts_per_tok=2,
        embedding_multiplier=2.5,
        residual_multiplier=0.6,
        attention_multiplier=0.2,
        logits_scaling=1.7,
    ),
    "gpt_oss": dict(
        MIXTURE,
        num_local_experts=5,
        num_experts_per_tok=2,
        head_dim=14,
        sliding_window=6,
        rope_parameters=dict(
            rope_type="yarn",
            rope_theta=150000.0,
            factor=4.0,
            beta_fast=32.0,
            beta_slow=1.0,
            truncate=False,
            original_max_position_embeddings=16,
        ),
    ),
    "deepseek_v2": dict(
        BASE,
        num_key_value_heads=3,
        moe_intermediate_size=22,
        n_routed_experts=6,
        n_shared_experts=2,
        num_experts_per_tok=2,
        first_k_dense_replace=1,
        q_lora_rank=20,
        kv_lora_rank=12,
        qk_nope_head_dim=10,
        qk_rope_head_dim=6,
        v_head_dim=14,
    ),
    "deepseek_v3": dict(
        BASE,
        num_key_value_heads=3,
        moe_intermediate_size=22,
        n_routed_experts=8,
        n_shared_experts=1,
        num_experts_per_tok=2,
        n_group=4,
        topk_group=2,
        first_k_dense_replace=1,
        q_lora_rank=20,
        kv_lora_rank=12,
        qk_nope_head_dim=10,
        qk_rope_head_dim=6,
        v_head_dim=14,
    ),
    "glm4_moe": dict(
        BASE,
        moe_intermediate_size=22,
        head_dim=12,
        partial_rotary_factor=0.5,
        n_routed_experts=8,
        n_shared_experts=1,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        attention_bias=True,
    ),
    "phimoe": dict(
        MIXTURE,
        head_dim=14,
        num_local_experts=5,
        num_experts_per_tok=2,
        attention_bias=True,
        lm_head_bias=True,
        router_jitter_noise=0.01,
    ),
}


@dataclass(frozen=True)
class Case:
    """A model to compare, and the shape of its batch. idle: its keys change nothing, on purpose."""

    name: str
    keys: dict[str, Any]
    batch: int = 3
    length: int = 19
    idle: bool = False

    @property
    def model_type(self) -> str:
        return self.name.split()[0]

    @property
    def seed(self) -> int:
        return zlib.crc32(self.name.encode())

    @property
    def config(self) -> dict[str, Any]:
        return dict(FAMILIES[self.model_type], **self.keys)


def long_rope(original: int, pairs: int, **keys: Any) -> dict[str, Any]:
    """A batch and a greedy text are longer than an original context of 6, none than one of 48."""
    return rope("longrope", original_max_position_embeddings=original,
                short_factor=[1.0 + 0.15 * i for i in range(pairs)],
                long_factor=[1.3 + 0.7 * i * i for i in range(pairs)], **keys)


def rope(kind: str = "default", theta: float = 10000.0, **keys: Any) -> dict[str, Any]:
    return dict(rope_parameters=dict(rope_type=kind, rope_theta=theta, **keys))


# fmt: off
CASES = [
    Case("gpt2", {}),
    Case("gpt2 one head, inner width 37", dict(n_head=1, n_embd=21, n_inner=37, n_layer=1)),
    Case("gpt2 whole context", dict(n_positions=40), length=40),
    Case("gpt2 five layers of eight heads", dict(n_layer=5, n_head=8, n_embd=32), batch=1),
    Case("gpt2 other epsilon", dict(layer_norm_epsilon=1e-3)),

    Case("llama", {}),
    Case("llama as many kv heads", dict(num_key_value_heads=3)),
    Case("llama heads in pairs", dict(num_attention_heads=6, num_key_value_heads=3, head_dim=8)),
    Case("llama narrow heads", dict(head_dim=6)),
    Case("llama tied head", dict(tie_word_embeddings=True)),
    Case("llama attention biases", dict(attention_bias=True)),
    Case("llama FFN biases", dict(mlp_bias=True)),
    Case("llama all biases, tied", dict(attention_bias=True, mlp_bias=True,
                                        tie_word_embeddings=True)),
    Case("llama other theta", rope(theta=500000.0)),
    Case("llama linear", rope("linear", factor=4.0)),
    Case("llama dynamic", rope("dynamic", factor=2.0), idle=True),  # counts beyond the context
    Case("llama dynamic, wide heads",
         dict(head_dim=24, **rope("dynamic", theta=5e4, factor=4.0))),
    Case("llama yarn", rope("yarn", factor=4.0, original_max_position_embeddings=16)),
    Case("llama yarn, all keys",
         dict(head_dim=24, **rope("yarn", theta=1e5, factor=8.0, beta_fast=16.0, beta_slow=2.0,
                                  mscale=0.8, mscale_all_dim=0.5,
                                  original_max_position_embeddings=32))),
    Case("llama yarn, attention factor",
         rope("yarn", factor=4.0, attention_factor=1.3, original_max_position_embeddings=16)),
    Case("llama yarn, not truncated",
         rope("yarn", factor=4.0, truncate=False, original_max_position_embeddings=16)),
    Case("llama llama3",
         dict(head_dim=24, **rope("llama3", theta=5e5, factor=8.0, low_freq_factor=1.0,
                                  high_freq_factor=4.0, original_max_position_embeddings=32))),
    Case("llama llama3, narrow band",
         rope("llama3", factor=32.0, low_freq_factor=0.5, high_freq_factor=2.0,
              original_max_position_embeddings=16)),
    Case("llama longrope", long_rope(48, 5)),
    Case("llama longrope, long", long_rope(6, 5)),
    Case("llama longrope, long, attention factor, wide heads",
         dict(head_dim=24, **long_rope(6, 12, theta=5e4, attention_factor=1.4, factor=3.0))),
    Case("llama longrope, factor", long_rope(48, 5, factor=3.0)),
    Case("llama five layers", dict(num_hidden_layers=5), batch=1),

    Case("mistral", dict(head_dim=14)),
    Case("mistral window", dict(sliding_window=6)),
    Case("mistral window of two keys", dict(sliding_window=2)),
    Case("mistral window as long as the sequence", dict(sliding_window=19), idle=True),
    Case("mistral window, as many kv heads", dict(sliding_window=5, num_key_value_heads=3)),
    Case("mistral window, long",
         dict(sliding_window=33, max_position_embeddings=128), batch=1, length=90),
    Case("mistral tied head", dict(tie_word_embeddings=True)),

    Case("mixtral", {}),
    Case("mixtral window", dict(sliding_window=7)),
    Case("mixtral yarn",
         dict(head_dim=12, **rope("yarn", factor=4.0, original_max_position_embeddings=16))),
    Case("mixtral one expert", dict(num_local_experts=1, num_experts_per_tok=1)),
    Case("mixtral one expert of three", dict(num_experts_per_tok=1, num_local_experts=3)),
    Case("mixtral all experts", dict(num_local_experts=3, num_experts_per_tok=3)),
    Case("mixtral many experts", dict(num_local_experts=40, num_experts_per_tok=7), batch=1),
    Case("mixtral as many kv heads", dict(num_key_value_heads=3)),
    Case("mixtral heads in threes",
         dict(num_attention_heads=6, num_key_value_heads=2, head_dim=14)),
    Case("mixtral narrow heads", dict(num_attention_heads=5, num_key_value_heads=5, head_dim=2)),
    Case("mixtral wide heads, other theta", dict(head_dim=48, **rope(theta=5e4))),
    Case("mixtral tied head", dict(tie_word_embeddings=True)),
    Case("mixtral without auxiliary loss", dict(output_router_logits=False)),
    Case("mixtral other epsilon", dict(rms_norm_eps=1e-2)),
    Case("mixtral one layer, long", dict(num_hidden_layers=1, max_position_embeddings=128),
         batch=1, length=90),

    Case("qwen2", {}),
    Case("qwen2 as many kv heads", dict(num_key_value_heads=3)),
    Case("qwen2 tied head", dict(tie_word_embeddings=True)),
    Case("qwen2 window of every layer",
         dict(use_sliding_window=True, sliding_window=6, max_window_layers=0)),
    Case("qwen2 window of the upper layers",
         dict(use_sliding_window=True, sliding_window=6, max_window_layers=2, num_hidden_layers=4)),
    Case("qwen2 window switched off", dict(use_sliding_window=False, sliding_window=6),
         idle=True),
    Case("qwen2 window by a list of layers",
         dict(use_sliding_window=True, sliding_window=6, num_hidden_layers=3,
              layer_types=["sliding_attention", "full_attention", "sliding_attention"])),
    Case("qwen2 yarn", rope("yarn", theta=1e6, factor=4.0, original_max_position_embeddings=16)),

    Case("qwen3", {}),
    Case("qwen3 as many kv heads", dict(num_key_value_heads=3)),
    Case("qwen3 heads in pairs", dict(num_attention_heads=4, num_key_value_heads=2)),
    Case("qwen3 attention biases", dict(attention_bias=True)),
    Case("qwen3 tied head", dict(tie_word_embeddings=True)),
    Case("qwen3 window of the upper layers",
         dict(use_sliding_window=True, sliding_window=6, max_window_layers=1, num_hidden_layers=3)),
    Case("qwen3 yarn", rope("yarn", theta=1e6, factor=4.0, original_max_position_embeddings=16)),

    Case("olmoe", {}),
    Case("olmoe weights that sum to one", dict(norm_topk_prob=True)),
    # Far out, where few values are: one at the edge has a gradient or none as it was rounded.
    Case("olmoe clipped", dict(clip_qkv=2.0)),
    Case("olmoe as many kv heads", dict(num_key_value_heads=3)),
    Case("olmoe attention biases, clipped", dict(attention_bias=True, clip_qkv=2.0)),
    Case("olmoe tied head", dict(tie_word_embeddings=True)),
    Case("olmoe one expert", dict(num_experts=1, num_experts_per_tok=1)),
    Case("olmoe one expert for a token", dict(num_experts_per_tok=1)),
    Case("olmoe many experts", dict(num_experts=40, num_experts_per_tok=7), batch=1),
    Case("olmoe without auxiliary loss", dict(output_router_logits=False)),

    Case("qwen2_moe", {}),
    Case("qwen2_moe weights that sum to one", dict(norm_topk_prob=True)),
    Case("qwen2_moe every second layer dense", dict(decoder_sparse_step=2, num_hidden_layers=4)),
    Case("qwen2_moe dense layers by a list", dict(mlp_only_layers=[0, 2], num_hidden_layers=4)),
    Case("qwen2_moe dense layers both ways",
         dict(mlp_only_layers=[1], decoder_sparse_step=2, num_hidden_layers=4)),
    Case("qwen2_moe without biases", dict(qkv_bias=False)),
    Case("qwen2_moe tied head", dict(tie_word_embeddings=True)),
    Case("qwen2_moe one expert for a token", dict(num_experts_per_tok=1)),
    Case("qwen2_moe many experts", dict(num_experts=40, num_experts_per_tok=7), batch=1),
    Case("qwen2_moe as many kv heads", dict(num_key_value_heads=3)),
    Case("qwen2_moe window", dict(use_sliding_window=True, sliding_window=6, max_window_layers=2,
                                  num_hidden_layers=3)),

    Case("qwen3_moe", dict(norm_topk_prob=True)),
    Case("qwen3_moe weights as they are", {}),
    Case("qwen3_moe every second layer dense", dict(decoder_sparse_step=2, num_hidden_layers=4)),
    Case("qwen3_moe dense layers by a list", dict(mlp_only_layers=[0, 2], num_hidden_layers=4)),
    Case("qwen3_moe attention biases", dict(attention_bias=True)),
    Case("qwen3_moe tied head", dict(tie_word_embeddings=True)),
    Case("qwen3_moe one expert for a token", dict(num_experts_per_tok=1)),
    Case("qwen3_moe many experts", dict(num_experts=40, num_experts_per_tok=7), batch=1),
    Case("qwen3_moe as many kv heads", dict(num_key_value_heads=3)),
    Case("qwen3_moe window", dict(use_sliding_window=True, sliding_window=6)),
    Case("qwen3_moe yarn", rope("yarn", factor=4.0, original_max_position_embeddings=16)),

    Case("granitemoe", {}),
    Case("granitemoe tied head", dict(tie_word_embeddings=True)),
    Case("granitemoe attention biases", dict(attention_bias=True)),
    Case("granitemoe as many kv heads", dict(num_key_value_heads=3)),
    Case("granitemoe plain",
         dict(embedding_multiplier=1.0, residual_multiplier=1.0, logits_scaling=1.0)),
    Case("granitemoe many experts", dict(num_local_experts=40, num_experts_per_tok=7), batch=1),

    Case("gpt_oss", {}),
    Case("gpt_oss as many kv heads", dict(num_key_value_heads=3)),
    Case("gpt_oss tight limit", dict(swiglu_limit=0.5)),
    Case("gpt_oss one expert for a token", dict(num_experts_per_tok=1)),
    Case("gpt_oss window of every layer", dict(layer_types=["sliding_attention"] * 2)),

    Case("glm4_moe", {}),
    Case("glm4_moe norms of heads, no biases", dict(use_qk_norm=True, attention_bias=False)),
    Case("glm4_moe groups", dict(n_group=4, topk_group=2)),
    Case("glm4_moe scaled, not summing to one",
         dict(routed_scaling_factor=2.5, norm_topk_prob=False)),
    Case("glm4_moe two shared experts, two dense layers",
         dict(n_shared_experts=2, first_k_dense_replace=2, num_hidden_layers=3)),
    Case("glm4_moe no dense layer", dict(first_k_dense_replace=0)),
    Case("glm4_moe whole heads rotated", dict(partial_rotary_factor=1.0)),
    Case("glm4_moe tied head", dict(tie_word_embeddings=True)),

    Case("phimoe", {}),
    Case("phimoe wide threshold", dict(router_jitter_noise=0.4)),
    Case("phimoe no biases", dict(attention_bias=False, lm_head_bias=False)),
    Case("phimoe tied head", dict(tie_word_embeddings=True)),
    Case("phimoe window", dict(sliding_window=6)),
    Case("phimoe as many kv heads, many experts",
         dict(num_key_value_heads=3, num_local_experts=16, router_jitter_noise=0.2)),
    Case("phimoe longrope", long_rope(48, 7, short_mscale=1.2, long_mscale=1.3)),
    Case("phimoe longrope, long", long_rope(6, 7, short_mscale=1.2, long_mscale=1.3)),
    Case("phimoe without auxiliary loss", dict(output_router_logits=False)),

    Case("deepseek_v2", {}),
    Case("deepseek_v2 groups", dict(topk_method="group_limited_greedy", n_group=3, topk_group=2,
                                    num_experts_per_tok=3, routed_scaling_factor=2.0)),
    Case("deepseek_v2 no query rank", dict(q_lora_rank=None)),
    Case("deepseek_v2 yarn",
         rope("yarn", factor=4.0, original_max_position_embeddings=16, mscale=0.707,
              mscale_all_dim=0.707)),
    Case("deepseek_v2 no dense layer, one shared expert",
         dict(first_k_dense_replace=0, n_shared_experts=1)),
    Case("deepseek_v2 tied head, as wide values", dict(tie_word_embeddings=True, v_head_dim=16)),

    Case("deepseek_v3", {}),
    Case("deepseek_v3 no query rank", dict(q_lora_rank=None)),
    Case("deepseek_v3 halves rotated", dict(rope_interleave=False)),
    Case("deepseek_v3 yarn",
         rope("yarn", factor=8.0, original_max_position_embeddings=8, mscale=1.0,
              mscale_all_dim=1.0)),
    Case("deepseek_v3 yarn, uneven scales",
         rope("yarn", factor=8.0, original_max_position_embeddings=8, mscale=1.0,
              mscale_all_dim=0.5)),
    Case("deepseek_v3 one group of two", dict(n_group=2, topk_group=1)),
    Case("deepseek_v3 scaled, not summing to one",
         dict(routed_scaling_factor=1.5, norm_topk_prob=False)),
    Case("deepseek_v3 two shared experts, narrow values", dict(n_shared_experts=2, v_head_dim=6)),
]
# fmt: on
