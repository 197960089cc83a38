"""Configurations, byte plans and learning-rate schedules: plain values."""
from __future__ import annotations

import ctypes
from ctypes import byref, c_float, c_size_t
from dataclasses import asdict, dataclass, fields
from itertools import takewhile
from typing import Any, Callable, Dict, Iterable, NamedTuple, Tuple, Union

from ._device import Device
from ._library import check, lib
from ._raw import (AuxLoss, Bias, DType, Family, Ffn, GroupScore, Norm, Position, QkNorm, Recompute,
                   RopeScaling, RouterNorm, ScheduleKind, Score, Status, nn_model_config_t,
                   nn_plan_t, nn_schedule_t, nn_session_options_t, nn_train_options_t)
from ._struct import make, name_bytes, read


def _factors(room: Iterable[float]) -> Tuple[float, ...]:
    """Without the zeros behind them."""
    return tuple(takewhile(lambda factor: factor != 0, room))


_ENUMS: Dict[str, Callable[[Any], Any]] = {
    "family": Family, "norm": Norm, "position": Position, "ffn_kind": Ffn, "biases": Bias,
    "tied_head": bool, "aux_loss": AuxLoss, "dense_layers": tuple, "window_layers": tuple,
    "qk_norm": QkNorm, "shared_gate": bool, "router_score": Score, "router_norm": RouterNorm,
    "router_choice_bias": bool, "router_group_score": GroupScore, "attention_sinks": bool,
    "rope_interleaved": bool, "rope_scaling": RopeScaling, "rope_no_truncate": bool,
    "rope_short_factors": _factors, "rope_long_factors": _factors}


@dataclass
class Config:
    """A model's architecture; zero means the default that moenn.h gives. What must be given:
    vocab_size, context, layers, hidden, heads, ffn. dense_layers and window_layers are four words
    of 64 layers each."""

    family: Family = Family.MIXTRAL
    norm: Norm = Norm.RMS
    position: Position = Position.ROPE
    ffn_kind: Ffn = Ffn.SWIGLU
    vocab_size: int = 0
    context: int = 0
    layers: int = 0
    hidden: int = 0
    heads: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    ffn: int = 0
    experts: int = 0
    top_k: int = 0
    biases: Bias = Bias.NONE
    tied_head: bool = False
    norm_eps: float = 0.0
    rope_theta: float = 0.0
    rope_ntk_alpha: float = 0.0
    init_std: float = 0.0
    aux_loss_coef: float = 0.0
    aux_loss: AuxLoss = AuxLoss.SWITCH
    z_loss_coef: float = 0.0
    capacity_factor: float = 0.0
    dense_ffn: int = 0
    dense_layers: Tuple[int, ...] = (0, 0, 0, 0)
    window: int = 0
    window_layers: Tuple[int, ...] = (0, 0, 0, 0)
    qk_norm: QkNorm = QkNorm.NONE
    qkv_clip: float = 0.0
    shared_ffn: int = 0
    shared_gate: bool = False
    router_score: Score = Score.SOFTMAX
    router_norm: RouterNorm = RouterNorm.SUM
    router_scale: float = 0.0
    router_choice_bias: bool = False
    router_group_score: GroupScore = GroupScore.MAX
    router_groups: int = 0
    router_top_groups: int = 0
    router_eps: float = 0.0
    attention_sinks: bool = False
    embedding_scale: float = 0.0
    residual_scale: float = 0.0
    attention_scale: float = 0.0
    logit_scale: float = 0.0
    rotary_dim: int = 0
    rope_interleaved: bool = False
    rope_scaling: RopeScaling = RopeScaling.NONE
    rope_original_context: int = 0
    rope_factor: float = 0.0
    rope_beta_fast: float = 0.0
    rope_beta_slow: float = 0.0
    rope_low_freq: float = 0.0
    rope_high_freq: float = 0.0
    rope_attention_factor: float = 0.0
    rope_mscale: float = 0.0
    rope_mscale_all_dim: float = 0.0
    rope_no_truncate: bool = False
    swiglu_limit: float = 0.0
    q_rank: int = 0
    kv_rank: int = 0
    rope_head_dim: int = 0
    value_head_dim: int = 0
    rope_short_mscale: float = 0.0
    rope_long_mscale: float = 0.0
    rope_short_factors: Tuple[float, ...] = ()
    rope_long_factors: Tuple[float, ...] = ()

    @classmethod
    def preset(cls, name: str) -> Config:
        """By name: "tiny", "small", "moe-6.9b", "gpt2-124m", "gpt2-350m", "gpt2-774m",
        "gpt2-1558m"."""
        config = make(nn_model_config_t)
        check(lib.nn_config_preset(name_bytes(name), byref(config)))
        return cls._read(config)

    @classmethod
    def from_json(cls, text: Union[str, bytes]) -> Config:
        """From the text of a Hugging Face config.json."""
        data = text.encode() if isinstance(text, str) else bytes(text)
        config = make(nn_model_config_t)
        check(lib.nn_config_from_json(data, len(data), byref(config)))
        return cls._read(config)

    def to_json(self) -> str:
        """The text of a config.json."""
        struct, required = self._struct(), c_size_t()
        status = lib.nn_config_to_json(byref(struct), None, 0, byref(required))
        if status != Status.CAPACITY:
            check(status)
        text = ctypes.create_string_buffer(required.value)
        check(lib.nn_config_to_json(byref(struct), text, required.value, byref(required)))
        return text.value.decode()

    def validated(self) -> Config:
        """Checked, and with the defaults in place of zeros."""
        struct = self._struct()
        check(lib.nn_config_validate(byref(struct)))
        return self._read(struct)

    def _struct(self) -> nn_model_config_t:
        return make(nn_model_config_t, **asdict(self))

    @classmethod
    def _read(cls, struct: nn_model_config_t) -> Config:
        values = {field.name: getattr(struct, field.name) for field in fields(cls)}
        return cls(**{name: _ENUMS.get(name, type(value))(value) for name, value in values.items()})


def config_of(config: Union[Config, str]) -> Config:
    return Config.preset(config) if isinstance(config, str) else config


class Plan(NamedTuple):
    """What a job takes, by category, before anything is allocated."""

    parameters: int
    active_parameters: int
    parameter_bytes: int
    master_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    workspace_bytes: int
    cache_bytes: int
    total_bytes: int

    @classmethod
    def training(cls, device: Device, config: Union[Config, str], *, dtype: DType = DType.F32,
                 batch: int = 0, seq_len: int = 0,
                 recompute: Recompute = Recompute.NONE) -> Plan:
        """To train batches of a shape: see Model.prepare()."""
        owner, plan = device._own(), make(nn_plan_t)
        shape = make(nn_train_options_t, batch=batch, seq_len=seq_len, recompute=recompute)
        struct = config_of(config)._struct()
        check(lib.nn_plan_training(owner.pointer, byref(struct), DType(dtype), byref(shape),
                                   byref(plan)))
        return read(plan, cls)

    @classmethod
    def inference(cls, device: Device, config: Union[Config, str], *, dtype: DType = DType.F32,
                  batch: int = 0, max_len: int = 0, prefill_chunk: int = 0) -> Plan:
        """To serve with one session: see Session."""
        owner, plan = device._own(), make(nn_plan_t)
        options = make(nn_session_options_t, batch=batch, max_len=max_len,
                       prefill_chunk=prefill_chunk)
        struct = config_of(config)._struct()
        check(
            lib.nn_plan_inference(owner.pointer, byref(struct), DType(dtype), byref(options),
                                  byref(plan)))
        return read(plan, cls)


@dataclass
class Schedule:
    """A learning rate as a function of the step: schedule(step), counted from 0."""

    kind: ScheduleKind = ScheduleKind.CONSTANT
    lr: float = 0.0
    min_lr: float = 0.0
    warmup_steps: int = 0
    total_steps: int = 0

    def __call__(self, step: int) -> float:
        struct, rate = make(nn_schedule_t, **asdict(self)), c_float()
        check(lib.nn_schedule_lr(byref(struct), step, byref(rate)))
        return rate.value
