"""The C interface as it is. Written by raw.py from abi/api.json; do not edit."""
from __future__ import annotations

import ctypes
from ctypes import (CFUNCTYPE, POINTER, c_char_p, c_double, c_float, c_int32, c_int64, c_size_t,
                    c_uint64, c_void_p)
from enum import IntEnum, IntFlag
from typing import Any, Callable, Optional

NN_VERSION_MAJOR = 0
NN_VERSION_MINOR = 1
NN_VERSION_PATCH = 0
NN_ABI_VERSION = 0
NN_MAX_DIMS = 8


class Status(IntEnum):
    """Status codes."""

    OK = 0
    ARGUMENT = -1
    STRUCT_SIZE = -2
    MEMORY = -3
    IO = -4
    FORMAT = -5
    UNSUPPORTED = -6
    STATE = -7
    NOT_FOUND = -8
    NONFINITE = -9
    CANCELLED = -10
    CAPACITY = -11
    DEVICE = -12


class LogLevel(IntEnum):
    """Log levels."""

    DEFAULT = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    DEBUG = 4


class CpuPath(IntFlag):
    """CPU paths, a bit mask."""

    DEFAULT = 0
    REFERENCE = 1
    AVX2 = 2
    AVX512 = 4
    AVX512_BF16 = 8


class DType(IntEnum):
    """Element types."""

    F32 = 0
    BF16 = 1
    F16 = 2
    F64 = 3
    I64 = 4
    I32 = 5
    I16 = 6
    I8 = 7
    U8 = 8
    BOOL = 9
    FILE = -1


class Family(IntEnum):
    """Families: whose parameter names, shapes and config.json keys a saved folder carries."""

    MIXTRAL = 0
    GPT2 = 1
    LLAMA = 2
    MISTRAL = 3
    QWEN2 = 4
    QWEN3 = 5
    OLMOE = 6
    QWEN2_MOE = 7
    QWEN3_MOE = 8
    GRANITEMOE = 9
    GPT_OSS = 10
    DEEPSEEK_V2 = 11
    DEEPSEEK_V3 = 12
    GLM4_MOE = 13
    PHIMOE = 14


class Bias(IntFlag):
    """Which linear layers of a block have a bias, a bit mask."""

    NONE = 0
    QKV = 1
    O = 2
    FFN = 4
    ALL = 7
    ROUTER = 8
    HEAD = 16


class Norm(IntEnum):
    """Normalisations."""

    RMS = 0
    LAYER = 1


class Position(IntEnum):
    """How positions enter."""

    ROPE = 0
    LEARNED = 1


class Ffn(IntEnum):
    """Feed-forward networks."""

    SWIGLU = 0
    GELU_TANH = 1
    SWIGLU_CLAMPED = 2


class AuxLoss(IntEnum):
    """Normalisations of the load-balancing loss; f_i: share of routed slots, P_i: mean probability."""

    SWITCH = 0
    JOINT = 1


class QkNorm(IntEnum):
    """Norms of queries and keys: RMS with norm_eps, before RoPE."""

    NONE = 0
    HEAD = 1
    FULL = 2


class Score(IntEnum):
    """What a router makes of its logits, in fp32."""

    SOFTMAX = 0
    SIGMOID = 1
    SPARSE_MIXER = 2


class RouterNorm(IntEnum):
    """What becomes of the scores of the experts that were chosen."""

    SUM = 0
    NONE = 1


class GroupScore(IntEnum):
    """How experts' scores, choice biases added, make their group's."""

    MAX = 0
    TOP2 = 1


class RopeScaling(IntEnum):
    """How RoPE's angles are scaled to lengths beyond those trained."""

    NONE = 0
    LINEAR = 1
    DYNAMIC = 2
    YARN = 3
    LLAMA3 = 4
    LONG = 5


class Recompute(IntEnum):
    """Recomputation of activations."""

    NONE = 0
    BLOCK = 1
    FFN = 2


class Moment(IntEnum):
    """Moments of the optimizer."""

    FIRST = 0
    SECOND = 1


class ScheduleKind(IntEnum):
    """Learning-rate schedules."""

    CONSTANT = 0
    LINEAR = 1
    COSINE = 2


class ByteToken(IntEnum):
    """Ids of the byte tokenizer's specials; its vocabulary has NN_BYTE_VOCAB ids."""

    BOS = 256
    EOS = 257
    PAD = 258
    VOCAB = 259


class SpecialToken(IntEnum):
    """Special tokens that programs ask for."""

    BOS = 0
    EOS = 1
    PAD = 2
    UNK = 3


class TokenizerKind(IntEnum):
    """Kinds of vocabularies that can be learnt."""

    BPE = 0
    UNIGRAM = 1


class Stop(IntEnum):
    """Why generation ended."""

    LENGTH = 1
    ID = 2
    CALLBACK = 3
    CONTEXT = 4


nn_log_fn = CFUNCTYPE(None, c_int32, c_char_p, c_void_p)
nn_progress_fn = CFUNCTYPE(c_int32, c_int64, c_int64, c_void_p)
nn_token_fn = CFUNCTYPE(c_int32, c_int32, c_int64, c_void_p)


class nn_device_options_t(ctypes.Structure):
    """Options of nn_device_create()."""

    struct_size: int
    threads: int
    cpu_paths: int
    affinity: Optional[int]
    log: Any
    log_user: Optional[int]
    log_level: int
    unused: int
    tf32: int
    _fields_ = [
        ("struct_size", c_size_t),
        ("threads", c_int32),
        ("cpu_paths", c_int32),
        ("affinity", c_void_p),
        ("log", nn_log_fn),
        ("log_user", c_void_p),
        ("log_level", c_int32),
        ("unused", c_int32),
        ("tf32", c_int32),
    ]


class nn_device_info_t(ctypes.Structure):
    """What a device is; written by nn_device_info()."""

    struct_size: int
    threads: int
    cpu_paths: int
    name: Optional[bytes]
    model: Optional[bytes]
    _fields_ = [
        ("struct_size", c_size_t),
        ("threads", c_int32),
        ("cpu_paths", c_int32),
        ("name", c_char_p),
        ("model", c_char_p),
    ]


class nn_memory_t(ctypes.Structure):
    """Device memory that handles hold, wrapped memory apart; written by nn_device_memory()."""

    struct_size: int
    current_bytes: int
    peak_bytes: int
    allocations: int
    _fields_ = [
        ("struct_size", c_size_t),
        ("current_bytes", c_int64),
        ("peak_bytes", c_int64),
        ("allocations", c_int64),
    ]


class nn_tensor_info_t(ctypes.Structure):
    """What a tensor is; written by nn_tensor_info()."""

    struct_size: int
    dtype: int
    ndim: int
    shape: Optional[int]
    strides: Optional[int]
    elements: int
    data: Optional[int]
    _fields_ = [
        ("struct_size", c_size_t),
        ("dtype", c_int32),
        ("ndim", c_int32),
        ("shape", c_void_p),
        ("strides", c_void_p),
        ("elements", c_int64),
        ("data", c_void_p),
    ]


class nn_model_config_t(ctypes.Structure):
    """A model's architecture."""

    struct_size: int
    family: int
    norm: int
    position: int
    ffn_kind: int
    vocab_size: int
    context: int
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    experts: int
    top_k: int
    biases: int
    tied_head: int
    norm_eps: float
    rope_theta: float
    rope_ntk_alpha: float
    init_std: float
    aux_loss_coef: float
    aux_loss: int
    z_loss_coef: float
    capacity_factor: float
    dense_ffn: int
    dense_layers: ctypes.Array[c_uint64]
    window: int
    window_layers: ctypes.Array[c_uint64]
    qk_norm: int
    qkv_clip: float
    shared_ffn: int
    shared_gate: int
    router_score: int
    router_norm: int
    router_scale: float
    router_choice_bias: int
    router_group_score: int
    router_groups: int
    router_top_groups: int
    router_eps: float
    attention_sinks: int
    embedding_scale: float
    residual_scale: float
    attention_scale: float
    logit_scale: float
    rotary_dim: int
    rope_interleaved: int
    rope_scaling: int
    rope_original_context: int
    rope_factor: float
    rope_beta_fast: float
    rope_beta_slow: float
    rope_low_freq: float
    rope_high_freq: float
    rope_attention_factor: float
    rope_mscale: float
    rope_mscale_all_dim: float
    rope_no_truncate: int
    swiglu_limit: float
    q_rank: int
    kv_rank: int
    rope_head_dim: int
    value_head_dim: int
    rope_short_mscale: float
    rope_long_mscale: float
    rope_short_factors: ctypes.Array[c_float]
    rope_long_factors: ctypes.Array[c_float]
    _fields_ = [
        ("struct_size", c_size_t),
        ("family", c_int32),
        ("norm", c_int32),
        ("position", c_int32),
        ("ffn_kind", c_int32),
        ("vocab_size", c_int64),
        ("context", c_int64),
        ("layers", c_int64),
        ("hidden", c_int64),
        ("heads", c_int64),
        ("kv_heads", c_int64),
        ("head_dim", c_int64),
        ("ffn", c_int64),
        ("experts", c_int64),
        ("top_k", c_int64),
        ("biases", c_int32),
        ("tied_head", c_int32),
        ("norm_eps", c_float),
        ("rope_theta", c_float),
        ("rope_ntk_alpha", c_float),
        ("init_std", c_float),
        ("aux_loss_coef", c_float),
        ("aux_loss", c_int32),
        ("z_loss_coef", c_float),
        ("capacity_factor", c_float),
        ("dense_ffn", c_int64),
        ("dense_layers", c_uint64 * 4),
        ("window", c_int64),
        ("window_layers", c_uint64 * 4),
        ("qk_norm", c_int32),
        ("qkv_clip", c_float),
        ("shared_ffn", c_int64),
        ("shared_gate", c_int32),
        ("router_score", c_int32),
        ("router_norm", c_int32),
        ("router_scale", c_float),
        ("router_choice_bias", c_int32),
        ("router_group_score", c_int32),
        ("router_groups", c_int64),
        ("router_top_groups", c_int64),
        ("router_eps", c_float),
        ("attention_sinks", c_int32),
        ("embedding_scale", c_float),
        ("residual_scale", c_float),
        ("attention_scale", c_float),
        ("logit_scale", c_float),
        ("rotary_dim", c_int64),
        ("rope_interleaved", c_int32),
        ("rope_scaling", c_int32),
        ("rope_original_context", c_int64),
        ("rope_factor", c_float),
        ("rope_beta_fast", c_float),
        ("rope_beta_slow", c_float),
        ("rope_low_freq", c_float),
        ("rope_high_freq", c_float),
        ("rope_attention_factor", c_float),
        ("rope_mscale", c_float),
        ("rope_mscale_all_dim", c_float),
        ("rope_no_truncate", c_int32),
        ("swiglu_limit", c_float),
        ("q_rank", c_int64),
        ("kv_rank", c_int64),
        ("rope_head_dim", c_int64),
        ("value_head_dim", c_int64),
        ("rope_short_mscale", c_float),
        ("rope_long_mscale", c_float),
        ("rope_short_factors", c_float * 128),
        ("rope_long_factors", c_float * 128),
    ]


class nn_plan_t(ctypes.Structure):
    """Exact device bytes by category; written by nn_plan_training() and nn_plan_inference()."""

    struct_size: int
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
    _fields_ = [
        ("struct_size", c_size_t),
        ("parameters", c_int64),
        ("active_parameters", c_int64),
        ("parameter_bytes", c_int64),
        ("master_bytes", c_int64),
        ("gradient_bytes", c_int64),
        ("optimizer_bytes", c_int64),
        ("activation_bytes", c_int64),
        ("workspace_bytes", c_int64),
        ("cache_bytes", c_int64),
        ("total_bytes", c_int64),
    ]


class nn_train_options_t(ctypes.Structure):
    """Shape of training batches; see nn_model_prepare()."""

    struct_size: int
    batch: int
    seq_len: int
    recompute: int
    _fields_ = [
        ("struct_size", c_size_t),
        ("batch", c_int64),
        ("seq_len", c_int64),
        ("recompute", c_int32),
    ]


class nn_session_options_t(ctypes.Structure):
    """Options of nn_session_create()."""

    struct_size: int
    batch: int
    max_len: int
    prefill_chunk: int
    _fields_ = [
        ("struct_size", c_size_t),
        ("batch", c_int64),
        ("max_len", c_int64),
        ("prefill_chunk", c_int64),
    ]


class nn_file_options_t(ctypes.Structure):
    """Options of nn_model_save(), nn_model_load() and their llm.c counterparts."""

    struct_size: int
    shard_bytes: int
    progress: Any
    progress_user: Optional[int]
    _fields_ = [
        ("struct_size", c_size_t),
        ("shard_bytes", c_int64),
        ("progress", nn_progress_fn),
        ("progress_user", c_void_p),
    ]


class nn_loss_t(ctypes.Structure):
    """Result of a forward pass with targets."""

    struct_size: int
    loss: float
    aux_loss: float
    z_loss: float
    targets: int
    _fields_ = [
        ("struct_size", c_size_t),
        ("loss", c_double),
        ("aux_loss", c_double),
        ("z_loss", c_double),
        ("targets", c_int64),
    ]


class nn_expert_stats_t(ctypes.Structure):
    """How evenly one layer's experts were used; written by nn_model_expert_stats()."""

    struct_size: int
    tokens: int
    dropped: int
    entropy: float
    max_load: float
    _fields_ = [
        ("struct_size", c_size_t),
        ("tokens", c_int64),
        ("dropped", c_int64),
        ("entropy", c_double),
        ("max_load", c_double),
    ]


class nn_optim_options_t(ctypes.Structure):
    """Options of nn_optim_create()."""

    struct_size: int
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    grad_clip: float
    _fields_ = [
        ("struct_size", c_size_t),
        ("beta1", c_float),
        ("beta2", c_float),
        ("eps", c_float),
        ("weight_decay", c_float),
        ("grad_clip", c_float),
    ]


class nn_schedule_t(ctypes.Structure):
    """A learning rate as a function of the step."""

    struct_size: int
    kind: int
    lr: float
    min_lr: float
    warmup_steps: int
    total_steps: int
    _fields_ = [
        ("struct_size", c_size_t),
        ("kind", c_int32),
        ("lr", c_float),
        ("min_lr", c_float),
        ("warmup_steps", c_int64),
        ("total_steps", c_int64),
    ]


class nn_encode_options_t(ctypes.Structure):
    """Options of nn_tokenizer_encode_with()."""

    struct_size: int
    add_special: int
    parse_special: int
    _fields_ = [
        ("struct_size", c_size_t),
        ("add_special", c_int32),
        ("parse_special", c_int32),
    ]


class nn_decode_options_t(ctypes.Structure):
    """Options of nn_tokenizer_decode_with()."""

    struct_size: int
    keep_special: int
    _fields_ = [
        ("struct_size", c_size_t),
        ("keep_special", c_int32),
    ]


class nn_decode_stream_t(ctypes.Structure):
    """How far a text that grows id by id has been decoded."""

    struct_size: int
    keep_special: int
    first: int
    given: int
    _fields_ = [
        ("struct_size", c_size_t),
        ("keep_special", c_int32),
        ("first", c_int64),
        ("given", c_int64),
    ]


class nn_tokenizer_train_options_t(ctypes.Structure):
    """Options of nn_tokenizer_train()."""

    struct_size: int
    kind: int
    vocab_size: int
    min_frequency: int
    specials: Optional[int]
    special_count: int
    pattern: Optional[bytes]
    coverage: float
    bos: Optional[bytes]
    eos: Optional[bytes]
    pad: Optional[bytes]
    unk: Optional[bytes]
    progress: Any
    progress_user: Optional[int]
    _fields_ = [
        ("struct_size", c_size_t),
        ("kind", c_int32),
        ("vocab_size", c_int64),
        ("min_frequency", c_int64),
        ("specials", c_void_p),
        ("special_count", c_int64),
        ("pattern", c_char_p),
        ("coverage", c_float),
        ("bos", c_char_p),
        ("eos", c_char_p),
        ("pad", c_char_p),
        ("unk", c_char_p),
        ("progress", nn_progress_fn),
        ("progress_user", c_void_p),
    ]


class nn_dataset_options_t(ctypes.Structure):
    """Options of the nn_dataset_ constructors."""

    struct_size: int
    batch: int
    seq_len: int
    begin: int
    end: int
    shuffle: int
    seed: int
    _fields_ = [
        ("struct_size", c_size_t),
        ("batch", c_int64),
        ("seq_len", c_int64),
        ("begin", c_int64),
        ("end", c_int64),
        ("shuffle", c_int32),
        ("seed", c_uint64),
    ]


class nn_dataset_info_t(ctypes.Structure):
    """Sizes of a dataset; written by nn_dataset_info()."""

    struct_size: int
    tokens: int
    windows: int
    batches: int
    max_id: int
    _fields_ = [
        ("struct_size", c_size_t),
        ("tokens", c_int64),
        ("windows", c_int64),
        ("batches", c_int64),
        ("max_id", c_int32),
    ]


class nn_sample_options_t(ctypes.Structure):
    """How the next token is chosen."""

    struct_size: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int
    _fields_ = [
        ("struct_size", c_size_t),
        ("temperature", c_float),
        ("top_k", c_int32),
        ("top_p", c_float),
        ("min_p", c_float),
        ("repetition_penalty", c_float),
        ("seed", c_uint64),
    ]


class nn_generate_options_t(ctypes.Structure):
    """Options of nn_session_generate()."""

    struct_size: int
    sampling: Optional[int]
    max_tokens: int
    stop_ids: Optional[int]
    stop_count: int
    on_token: Any
    on_token_user: Optional[int]
    _fields_ = [
        ("struct_size", c_size_t),
        ("sampling", c_void_p),
        ("max_tokens", c_int64),
        ("stop_ids", c_void_p),
        ("stop_count", c_int64),
        ("on_token", nn_token_fn),
        ("on_token_user", c_void_p),
    ]


class Library:
    """The functions of one shared object, ready to be called."""

    nn_version: Callable[[], bytes]
    nn_abi_version: Callable[[], int]
    nn_status_name: Callable[[int], bytes]
    nn_last_error: Callable[[], bytes]
    nn_device_create: Callable[[Optional[bytes], Any, Any], int]
    nn_device_destroy: Callable[[Any], None]
    nn_device_info: Callable[[Any, Any], int]
    nn_device_memory: Callable[[Any, Any], int]
    nn_device_cancel: Callable[[Any, int], None]
    nn_dtype_bytes: Callable[[int], int]
    nn_tensor_create: Callable[[Any, int, int, Any, Any], int]
    nn_tensor_wrap: Callable[[Any, Any, int, int, Any, Any, Any], int]
    nn_tensor_slice: Callable[[Any, int, int, int, Any], int]
    nn_tensor_destroy: Callable[[Any], None]
    nn_tensor_info: Callable[[Any, Any], int]
    nn_tensor_copy_in: Callable[[Any, Any, int], int]
    nn_tensor_copy_out: Callable[[Any, Any, int], int]
    nn_tensor_to_dlpack: Callable[[Any, Any], int]
    nn_tensor_from_dlpack: Callable[[Any, Any, Any], int]
    nn_config_preset: Callable[[Optional[bytes], Any], int]
    nn_config_from_json: Callable[[Optional[bytes], int, Any], int]
    nn_config_to_json: Callable[[Any, Any, int, Any], int]
    nn_config_validate: Callable[[Any], int]
    nn_plan_training: Callable[[Any, Any, int, Any, Any], int]
    nn_plan_inference: Callable[[Any, Any, int, Any, Any], int]
    nn_model_create: Callable[[Any, Any, int, int, Any], int]
    nn_model_load: Callable[[Any, Optional[bytes], int, Any, Any], int]
    nn_model_save: Callable[[Any, Optional[bytes], Any], int]
    nn_model_load_llmc: Callable[[Any, Optional[bytes], int, Any, Any], int]
    nn_model_save_llmc: Callable[[Any, Optional[bytes], Any], int]
    nn_model_destroy: Callable[[Any], None]
    nn_model_config: Callable[[Any, Any], int]
    nn_model_parameter_count: Callable[[Any], int]
    nn_model_parameter_name: Callable[[Any, int], bytes]
    nn_model_parameter: Callable[[Any, Optional[bytes], Any], int]
    nn_model_gradient: Callable[[Any, Optional[bytes], Any], int]
    nn_model_prepare: Callable[[Any, Any], int]
    nn_model_forward: Callable[[Any, Any, int, int, Any], int]
    nn_model_evaluate: Callable[[Any, Any, Any, int, int, Any], int]
    nn_model_backward: Callable[[Any, Any, Any, int, int, float, Any], int]
    nn_model_zero_grad: Callable[[Any], int]
    nn_model_loss_scale: Callable[[Any], float]
    nn_model_expert_stats: Callable[[Any, int, Any, Any, Any], int]
    nn_model_expert_stats_reset: Callable[[Any], int]
    nn_optim_create: Callable[[Any, Any, Any], int]
    nn_optim_destroy: Callable[[Any], None]
    nn_optim_step: Callable[[Any, float, Any], int]
    nn_optim_moment: Callable[[Any, Optional[bytes], int, Any], int]
    nn_optim_steps: Callable[[Any], int]
    nn_optim_set_steps: Callable[[Any, int], int]
    nn_optim_save: Callable[[Any, Optional[bytes]], int]
    nn_optim_load: Callable[[Any, Optional[bytes]], int]
    nn_schedule_lr: Callable[[Any, int, Any], int]
    nn_tokenizer_create_bytes: Callable[[Any], int]
    nn_tokenizer_load: Callable[[Optional[bytes], Any], int]
    nn_tokenizer_load_tiktoken: Callable[[Optional[bytes], Optional[bytes], Any], int]
    nn_tokenizer_destroy: Callable[[Any], None]
    nn_tokenizer_vocab_size: Callable[[Any], int]
    nn_tokenizer_special: Callable[[Any, int], int]
    nn_tokenizer_id: Callable[[Any, Optional[bytes], int], int]
    nn_tokenizer_token: Callable[[Any, int, Any, Any], int]
    nn_tokenizer_encode: Callable[[Any, Optional[bytes], int, Any, int, Any], int]
    nn_tokenizer_encode_with: Callable[[Any, Optional[bytes], int, Any, Any, Any, int, Any], int]
    nn_tokenizer_decode: Callable[[Any, Any, int, Any, int, Any], int]
    nn_tokenizer_decode_with: Callable[[Any, Any, int, Any, Any, int, Any], int]
    nn_tokenizer_decode_next: Callable[[Any, Any, Any, int, int, Any, int, Any], int]
    nn_tokenizer_save: Callable[[Any, Optional[bytes]], int]
    nn_tokenizer_save_llmc: Callable[[Any, Optional[bytes]], int]
    nn_tokenizer_train: Callable[[Any, Any, int, Any, Any], int]
    nn_tokenizer_train_files: Callable[[Any, int, Any, Any], int]
    nn_dataset_open_text: Callable[[Optional[bytes], Any, Any, Any], int]
    nn_dataset_open_tokens: Callable[[Optional[bytes], Any, Any], int]
    nn_dataset_from_tokens: Callable[[Any, int, Any, Any], int]
    nn_dataset_save_tokens: Callable[[Optional[bytes], Any, int], int]
    nn_dataset_destroy: Callable[[Any], None]
    nn_dataset_info: Callable[[Any, Any], int]
    nn_dataset_next: Callable[[Any, Any, Any], int]
    nn_dataset_position: Callable[[Any], int]
    nn_dataset_seek: Callable[[Any, int], int]
    nn_session_create: Callable[[Any, Any, Any], int]
    nn_session_destroy: Callable[[Any], None]
    nn_session_prefill: Callable[[Any, int, Any, int, Any], int]
    nn_session_decode: Callable[[Any, Any, Any], int]
    nn_session_length: Callable[[Any, int], int]
    nn_session_truncate: Callable[[Any, int, int], int]
    nn_session_sample: Callable[[Any, int, Any, Any], int]
    nn_session_generate: Callable[[Any, int, Any, int, Any, Any, int, Any, Any], int]
    nn_session_expert_stats: Callable[[Any, int, Any, Any, Any], int]

    def __init__(self, path: str) -> None:
        library = ctypes.CDLL(path)
        for name, result, parameters in PROTOTYPES:
            function = getattr(library, name)
            function.restype = result
            function.argtypes = parameters
            setattr(self, name, function)


PROTOTYPES: list[tuple[str, Any, list[Any]]] = [
    ("nn_version", c_char_p, []),
    ("nn_abi_version", c_int32, []),
    ("nn_status_name", c_char_p, [c_int32]),
    ("nn_last_error", c_char_p, []),
    ("nn_device_create", c_int32, [c_char_p, POINTER(nn_device_options_t), c_void_p]),
    ("nn_device_destroy", None, [c_void_p]),
    ("nn_device_info", c_int32, [c_void_p, POINTER(nn_device_info_t)]),
    ("nn_device_memory", c_int32, [c_void_p, POINTER(nn_memory_t)]),
    ("nn_device_cancel", None, [c_void_p, c_int32]),
    ("nn_dtype_bytes", c_size_t, [c_int32]),
    ("nn_tensor_create", c_int32, [c_void_p, c_int32, c_int32, c_void_p, c_void_p]),
    ("nn_tensor_wrap", c_int32, [c_void_p, c_void_p, c_int32, c_int32, c_void_p, c_void_p, c_void_p]),
    ("nn_tensor_slice", c_int32, [c_void_p, c_int32, c_int64, c_int64, c_void_p]),
    ("nn_tensor_destroy", None, [c_void_p]),
    ("nn_tensor_info", c_int32, [c_void_p, POINTER(nn_tensor_info_t)]),
    ("nn_tensor_copy_in", c_int32, [c_void_p, c_void_p, c_size_t]),
    ("nn_tensor_copy_out", c_int32, [c_void_p, c_void_p, c_size_t]),
    ("nn_tensor_to_dlpack", c_int32, [c_void_p, c_void_p]),
    ("nn_tensor_from_dlpack", c_int32, [c_void_p, c_void_p, c_void_p]),
    ("nn_config_preset", c_int32, [c_char_p, POINTER(nn_model_config_t)]),
    ("nn_config_from_json", c_int32, [c_char_p, c_size_t, POINTER(nn_model_config_t)]),
    ("nn_config_to_json", c_int32, [POINTER(nn_model_config_t), c_void_p, c_size_t, c_void_p]),
    ("nn_config_validate", c_int32, [POINTER(nn_model_config_t)]),
    ("nn_plan_training", c_int32, [c_void_p, POINTER(nn_model_config_t), c_int32, POINTER(nn_train_options_t), POINTER(nn_plan_t)]),
    ("nn_plan_inference", c_int32, [c_void_p, POINTER(nn_model_config_t), c_int32, POINTER(nn_session_options_t), POINTER(nn_plan_t)]),
    ("nn_model_create", c_int32, [c_void_p, POINTER(nn_model_config_t), c_int32, c_uint64, c_void_p]),
    ("nn_model_load", c_int32, [c_void_p, c_char_p, c_int32, POINTER(nn_file_options_t), c_void_p]),
    ("nn_model_save", c_int32, [c_void_p, c_char_p, POINTER(nn_file_options_t)]),
    ("nn_model_load_llmc", c_int32, [c_void_p, c_char_p, c_int32, POINTER(nn_file_options_t), c_void_p]),
    ("nn_model_save_llmc", c_int32, [c_void_p, c_char_p, POINTER(nn_file_options_t)]),
    ("nn_model_destroy", None, [c_void_p]),
    ("nn_model_config", c_int32, [c_void_p, POINTER(nn_model_config_t)]),
    ("nn_model_parameter_count", c_int64, [c_void_p]),
    ("nn_model_parameter_name", c_char_p, [c_void_p, c_int64]),
    ("nn_model_parameter", c_int32, [c_void_p, c_char_p, c_void_p]),
    ("nn_model_gradient", c_int32, [c_void_p, c_char_p, c_void_p]),
    ("nn_model_prepare", c_int32, [c_void_p, POINTER(nn_train_options_t)]),
    ("nn_model_forward", c_int32, [c_void_p, c_void_p, c_int64, c_int64, c_void_p]),
    ("nn_model_evaluate", c_int32, [c_void_p, c_void_p, c_void_p, c_int64, c_int64, POINTER(nn_loss_t)]),
    ("nn_model_backward", c_int32, [c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_float, POINTER(nn_loss_t)]),
    ("nn_model_zero_grad", c_int32, [c_void_p]),
    ("nn_model_loss_scale", c_double, [c_void_p]),
    ("nn_model_expert_stats", c_int32, [c_void_p, c_int64, c_void_p, c_void_p, POINTER(nn_expert_stats_t)]),
    ("nn_model_expert_stats_reset", c_int32, [c_void_p]),
    ("nn_optim_create", c_int32, [c_void_p, POINTER(nn_optim_options_t), c_void_p]),
    ("nn_optim_destroy", None, [c_void_p]),
    ("nn_optim_step", c_int32, [c_void_p, c_float, c_void_p]),
    ("nn_optim_moment", c_int32, [c_void_p, c_char_p, c_int32, c_void_p]),
    ("nn_optim_steps", c_int64, [c_void_p]),
    ("nn_optim_set_steps", c_int32, [c_void_p, c_int64]),
    ("nn_optim_save", c_int32, [c_void_p, c_char_p]),
    ("nn_optim_load", c_int32, [c_void_p, c_char_p]),
    ("nn_schedule_lr", c_int32, [POINTER(nn_schedule_t), c_int64, c_void_p]),
    ("nn_tokenizer_create_bytes", c_int32, [c_void_p]),
    ("nn_tokenizer_load", c_int32, [c_char_p, c_void_p]),
    ("nn_tokenizer_load_tiktoken", c_int32, [c_char_p, c_char_p, c_void_p]),
    ("nn_tokenizer_destroy", None, [c_void_p]),
    ("nn_tokenizer_vocab_size", c_int64, [c_void_p]),
    ("nn_tokenizer_special", c_int32, [c_void_p, c_int32]),
    ("nn_tokenizer_id", c_int32, [c_void_p, c_char_p, c_size_t]),
    ("nn_tokenizer_token", c_int32, [c_void_p, c_int32, c_void_p, c_void_p]),
    ("nn_tokenizer_encode", c_int32, [c_void_p, c_char_p, c_size_t, c_void_p, c_int64, c_void_p]),
    ("nn_tokenizer_encode_with", c_int32, [c_void_p, c_char_p, c_size_t, POINTER(nn_encode_options_t), c_void_p, c_void_p, c_int64, c_void_p]),
    ("nn_tokenizer_decode", c_int32, [c_void_p, c_void_p, c_int64, c_void_p, c_size_t, c_void_p]),
    ("nn_tokenizer_decode_with", c_int32, [c_void_p, c_void_p, c_int64, POINTER(nn_decode_options_t), c_void_p, c_size_t, c_void_p]),
    ("nn_tokenizer_decode_next", c_int32, [c_void_p, POINTER(nn_decode_stream_t), c_void_p, c_int64, c_int32, c_void_p, c_size_t, c_void_p]),
    ("nn_tokenizer_save", c_int32, [c_void_p, c_char_p]),
    ("nn_tokenizer_save_llmc", c_int32, [c_void_p, c_char_p]),
    ("nn_tokenizer_train", c_int32, [c_void_p, c_void_p, c_int64, POINTER(nn_tokenizer_train_options_t), c_void_p]),
    ("nn_tokenizer_train_files", c_int32, [c_void_p, c_int64, POINTER(nn_tokenizer_train_options_t), c_void_p]),
    ("nn_dataset_open_text", c_int32, [c_char_p, c_void_p, POINTER(nn_dataset_options_t), c_void_p]),
    ("nn_dataset_open_tokens", c_int32, [c_char_p, POINTER(nn_dataset_options_t), c_void_p]),
    ("nn_dataset_from_tokens", c_int32, [c_void_p, c_int64, POINTER(nn_dataset_options_t), c_void_p]),
    ("nn_dataset_save_tokens", c_int32, [c_char_p, c_void_p, c_int64]),
    ("nn_dataset_destroy", None, [c_void_p]),
    ("nn_dataset_info", c_int32, [c_void_p, POINTER(nn_dataset_info_t)]),
    ("nn_dataset_next", c_int32, [c_void_p, c_void_p, c_void_p]),
    ("nn_dataset_position", c_int64, [c_void_p]),
    ("nn_dataset_seek", c_int32, [c_void_p, c_int64]),
    ("nn_session_create", c_int32, [c_void_p, POINTER(nn_session_options_t), c_void_p]),
    ("nn_session_destroy", None, [c_void_p]),
    ("nn_session_prefill", c_int32, [c_void_p, c_int64, c_void_p, c_int64, c_void_p]),
    ("nn_session_decode", c_int32, [c_void_p, c_void_p, c_void_p]),
    ("nn_session_length", c_int64, [c_void_p, c_int64]),
    ("nn_session_truncate", c_int32, [c_void_p, c_int64, c_int64]),
    ("nn_session_sample", c_int32, [c_void_p, c_int64, POINTER(nn_sample_options_t), c_void_p]),
    ("nn_session_generate", c_int32, [c_void_p, c_int64, c_void_p, c_int64, POINTER(nn_generate_options_t), c_void_p, c_int64, c_void_p, c_void_p]),
    ("nn_session_expert_stats", c_int32, [c_void_p, c_int64, c_void_p, c_void_p, POINTER(nn_expert_stats_t)]),
]
