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
    "mixtral": dict(MIXTURE, num_local_experts=5, num_experts_per_tok=2),
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


def rope(kind: str = "default", theta: float = 10000.0, **keys: Any) -> dict[str, Any]:
    return dict(rope_parameters=dict(rope_type=kind, rope_theta=theta, **keys))


# fmt: off
CASES = [
    Case("gpt2", {}),
    Case("gpt2 one head, inner width 37", dict(n_head=1, n_embd=21, n_inner=37, n_layer=1)),
    Case("gpt2 whole context", dict(n_positions=40), length=40),
    Case("gpt2 five layers of eight heads", dict(n_layer=5, n_head=8, n_embd=32), batch=1),
    Case("gpt2 other epsilon", dict(layer_norm_epsilon=1e-3)),

    Case("mixtral", {}),
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
]
# fmt: on
