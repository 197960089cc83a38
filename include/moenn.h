/**
 * @file moenn.h
 * @brief libmoenn: train and serve mixture-of-experts language models inside any program.
 *
 * Read from top to bottom: conventions, status, devices, tensors, configurations, byte plans,
 * models, training, optimizer, data, tokenizers, sessions.
 *
 * Conventions, said once:
 *
 * - **Status.** Every function that can fail returns an nn_status_t: NN_OK (0) or a negative code.
 *   nn_last_error() is then the calling thread's message. Outputs are written only on success,
 *   except that a caller's array may be partly filled. Comments name the codes that mean something
 *   of their own; besides, any call may give NN_ERR_ARGUMENT, NN_ERR_STRUCT_SIZE or NN_ERR_MEMORY,
 *   one that takes a name or a path NN_ERR_NOT_FOUND, one that reads or writes files NN_ERR_IO,
 *   NN_ERR_FORMAT or NN_ERR_UNSUPPORTED, one that uses a device NN_ERR_CANCELLED or NN_ERR_DEVICE.
 * - **Handles** are opaque, and the caller's: what a function gives, the destroy function of its
 *   kind takes back. Destroy functions accept NULL and may be called in any order: a handle keeps
 *   what it depends on alive until it is destroyed itself.
 * - **Threads.** A device and a tokenizer may be used from any number of threads at once. A model,
 *   its optimizers and the tensors that view their memory count as one handle, a session, a dataset
 *   and any other tensor as one each: one thread at a time. Sessions may run beside their model's
 *   training. Calls that compute on one device take turns, first come, first served.
 * - **Callbacks** run on the thread of the call that they were given to, without the device held.
 *   They may use other handles, not those of the call, and must return. After fork() a child makes
 *   handles of its own and leaves its parent's alone.
 * - **Structs** are plain options or results. Set `struct_size` to `sizeof` the struct; zero in any
 *   other member means the documented default. A struct grows only at its end: the library accepts
 *   the sizes of older headers, and refuses a larger one whose unknown tail is not zero.
 * - **Enums** cross the border as `int32_t`; their values are permanent.
 * - **Shapes** are written [rows, columns], row-major, the last index fastest. Token ids are
 *   `int32_t`. Sizes are in elements unless a name says bytes.
 * - Pointers are to host memory unless a comment says otherwise. The library keeps no pointer of
 *   the caller's after a call returns, except where a comment says so. Files that it reads must not
 *   be truncated meanwhile, for it maps them; replacing them is safe.
 * - **Files** are written beside their place ("<path>.tmp"), synced and renamed: a full disk, a
 *   failure, a kill or a cancel leaves an earlier file whole. A symbolic link is replaced, what it
 *   leads to is left alone. NN_ERR_IO where a folder, a device, a pipe or a socket is there or at
 *   the link's end, and for /dev/stdout and its like.
 */
#ifndef MOENN_H
#define MOENN_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32)
#define NN_API
#elif defined(__GNUC__)
/** Marks what the shared library exports. */
#define NN_API __attribute__((visibility("default")))
#else
#define NN_API
#endif

/* ------------------------------------------------------------------------------------------------
 * Version
 * --------------------------------------------------------------------------------------------- */

/** Major release of this header. Before 1.0 only a new minor release may break. */
#define NN_VERSION_MAJOR 0
/** Minor release. */
#define NN_VERSION_MINOR 1
/** Patch of the release. */
#define NN_VERSION_PATCH 0
/** Number of the binary interface; equals the shared object's SOVERSION. */
#define NN_ABI_VERSION 0

/** Release of the library that is running, as "major.minor.patch". Static string. Any thread. */
NN_API const char *nn_version(void);

/** Binary interface of the library that is running; compare with NN_ABI_VERSION. Any thread. */
NN_API int32_t nn_abi_version(void);

/* ------------------------------------------------------------------------------------------------
 * Status and messages
 * --------------------------------------------------------------------------------------------- */

/** NN_OK or one of the negative NN_ERR_ codes. */
typedef int32_t nn_status_t;

/** Status codes. */
enum {
  NN_OK = 0,                /**< Done. */
  NN_ERR_ARGUMENT = -1,     /**< An argument is NULL, out of range, or inconsistent with another. */
  NN_ERR_STRUCT_SIZE = -2,  /**< struct_size is too small, or an unknown tail is not zero. */
  NN_ERR_MEMORY = -3,       /**< Memory could not be had; nothing was lost. */
  NN_ERR_IO = -4,           /**< The operating system refused a file operation. */
  NN_ERR_FORMAT = -5,       /**< A file or text is not what its format requires. */
  NN_ERR_UNSUPPORTED = -6,  /**< Understood, but this library, build or device cannot do it. */
  NN_ERR_STATE = -7,        /**< Calls in the wrong order, for example training before prepare. */
  NN_ERR_NOT_FOUND = -8,    /**< No preset, parameter, file or device of that name. */
  NN_ERR_NONFINITE = -9,    /**< A loss or gradient norm is not finite; the step was refused. */
  NN_ERR_CANCELLED = -10,   /**< The device's cancel flag is set, or a progress callback said so. */
  NN_ERR_CAPACITY = -11,    /**< The caller's buffer, the context or the cache is too small. */
  NN_ERR_DEVICE = -12       /**< A GPU refused a call, or is lost; see nn_device_create(). */
};

/** The name of a status code, such as "NN_ERR_MEMORY"; "unknown status" for others. Static string.
 *  Any thread. */
NN_API const char *nn_status_name(nn_status_t status);

/** The calling thread's last failure in words: what was asked, what was found, what to do. Empty
 *  before the first failure; a later success does not clear it. Valid until the thread's next call
 *  into the library. */
NN_API const char *nn_last_error(void);

/** Log levels. */
enum {
  NN_LOG_DEFAULT = 0, /**< As an option: NN_LOG_WARNING. */
  NN_LOG_ERROR = 1,   /**< Something failed that no status can carry. */
  NN_LOG_WARNING = 2, /**< Works, but probably not as meant. */
  NN_LOG_INFO = 3,    /**< What a user may want to know once. */
  NN_LOG_DEBUG = 4    /**< What a developer of the library wants to know. */
};

/** Receives one message without a newline; called from the thread that does the work. */
typedef void (*nn_log_fn)(int32_t level, const char *message, void *user);

/** Receives progress of a long call, in bytes; return non-zero to cancel it (NN_ERR_CANCELLED). */
typedef int32_t (*nn_progress_fn)(int64_t done, int64_t total, void *user);

/* ------------------------------------------------------------------------------------------------
 * Device: a place to compute
 * --------------------------------------------------------------------------------------------- */

/** A place to compute: owns threads, memory counters and the cancel flag. */
typedef struct nn_device nn_device_t;

/** CPU paths, a bit mask. A path is used when the mask allows it, the build has it and the
 *  processor has it; the best of them wins per operation. */
enum {
  NN_CPU_DEFAULT = 0,   /**< Every path the processor has. */
  NN_CPU_REFERENCE = 1, /**< Plain C. Always allowed. */
  NN_CPU_AVX2 = 2,      /**< AVX2 and FMA. */
  NN_CPU_AVX512 = 4,    /**< AVX-512 F, BW, DQ and VL. */
  NN_CPU_AVX512_BF16 = 8 /**< With NN_CPU_AVX512: its bf16 products, for models of bf16
                              parameters; gradients of logits are rounded to bf16 for them. */
};

/** Options of nn_device_create(). */
typedef struct nn_device_options_t {
  size_t struct_size; /**< sizeof this struct. */
  int32_t threads;    /**< Threads that compute, the caller's among them, on a CPU, and that read
                           files into the memory of any device. 0: one per core. */
  int32_t cpu_paths;  /**< NN_CPU_ mask. 0: MOENN_CPU from the environment, or every path. */
  const int32_t *affinity; /**< [threads] logical CPU of each worker thread (entry 0, the caller's
                                own thread, is left alone), with threads given; or NULL: wherever
                                the system puts them. */
  nn_log_fn log;      /**< Receives messages until the device's last handle is destroyed. NULL: they
                           are written to standard error. */
  void *log_user;     /**< Passed to log. */
  int32_t log_level;  /**< Least urgent NN_LOG_ level to pass on. */
  int32_t unused;     /**< Not read: it was padding, which older callers may leave undefined. */
  int32_t tf32;       /**< 1: products of fp32 matrices on a CUDA device may round what they
                           multiply to TF32 (10 bits of mantissa). 0: full fp32. */
} nn_device_options_t;

/** Opens a device.
 *  @param name    "cpu" (also NULL), or "cuda:0", "cuda:1", ... ("cuda": the first): an NVIDIA GPU
 *                 of compute capability 8.0 or newer. For these the library opens libmoenn_cuda.so
 *                 from its own folder, or from that which MOENN_PLUGIN_PATH names (which a
 *                 set-user-ID program does not read).
 *                 NN_ERR_NOT_FOUND: no such device, plugin or driver; NN_ERR_UNSUPPORTED: a plugin
 *                 of another release, or a GPU that is too old.
 *  @param options NULL for the defaults. The environment variable MOENN_CPU ("reference", "avx2",
 *                 "avx512", "avx512bf16", or several joined by commas) stands in for a zero
 *                 cpu_paths.
 *  @param device  receives the handle; nn_device_destroy() ends it.
 *  Results do not depend on the number of threads, to the last bit, and the same calls on the same
 *  kind of device give the same bits. Where a GPU fails (NN_ERR_DEVICE) and the message says that
 *  the device is lost, all calls on it fail from then on; its handles can only be destroyed. Any
 *  thread. */
NN_API nn_status_t nn_device_create(const char *name, const nn_device_options_t *options,
                                    nn_device_t **device);

/** Gives the handle back. What lives on the device keeps it open until it is destroyed too. */
NN_API void nn_device_destroy(nn_device_t *device);

/** What a device is; written by nn_device_info(). */
typedef struct nn_device_info_t {
  size_t struct_size; /**< sizeof this struct. */
  int32_t threads;    /**< Threads that compute. */
  int32_t cpu_paths;  /**< NN_CPU_ mask of the paths in use. */
  const char *name;   /**< "cpu" or "cuda:N". Valid while the device lives. */
  const char *model;  /**< The processor's or GPU's own name. Valid while the device lives. */
} nn_device_info_t;

/** Describes the device. */
NN_API nn_status_t nn_device_info(const nn_device_t *device, nn_device_info_t *info);

/** Device memory that handles hold, wrapped memory apart; written by nn_device_memory(). */
typedef struct nn_memory_t {
  size_t struct_size; /**< sizeof this struct. */
  int64_t current_bytes; /**< Held now; files that nn_model_load() mapped count too. */
  int64_t peak_bytes;    /**< Most ever held. */
  int64_t allocations;   /**< Allocations ever made: constant over steady steps. */
} nn_memory_t;

/** Reads the device's memory counters. Any thread, at any time. */
NN_API nn_status_t nn_device_memory(const nn_device_t *device, nn_memory_t *memory);

/** Sets (on != 0) or clears the cancel flag. While it is set, calls that compute, load or save
 *  return NN_ERR_CANCELLED; running ones within 50 ms, on a GPU once it has done the batches or the
 *  token that it was given, a save after the disk has answered. An optimizer step under way is
 *  finished, so parameters are never half updated. After a cancelled backward the gradients are
 *  undefined until nn_model_zero_grad(); a cancelled prefill or decode leaves the sequence at its
 *  former length. Any thread; async-signal-safe; NULL is ignored. */
NN_API void nn_device_cancel(nn_device_t *device, int32_t on);

/* ------------------------------------------------------------------------------------------------
 * Tensor: an n-dimensional array on a device
 * --------------------------------------------------------------------------------------------- */

/** An n-d array on a device; reference-counted storage, so views keep alive what they view. */
typedef struct nn_tensor nn_tensor_t;

/** Element types. */
enum {
  NN_F32 = 0,  /**< IEEE single. */
  NN_BF16 = 1, /**< Upper half of an IEEE single. */
  NN_F16 = 2,  /**< IEEE half. */
  NN_F64 = 3,  /**< IEEE double. */
  NN_I64 = 4,  /**< Signed 64 bits. */
  NN_I32 = 5,  /**< Signed 32 bits. */
  NN_I16 = 6,  /**< Signed 16 bits. */
  NN_I8 = 7,   /**< Signed 8 bits. */
  NN_U8 = 8,   /**< Unsigned 8 bits. */
  NN_BOOL = 9, /**< One byte, 0 or 1. */
  NN_DTYPE_FILE = -1 /**< Of nn_model_load() and nn_model_load_llmc() alone: the dtype that the file
                          has. */
};

/** Most dimensions a tensor has. */
#define NN_MAX_DIMS 8

/** Bytes of one element of an NN_ dtype; 0 for an unknown one. Any thread. */
NN_API size_t nn_dtype_bytes(int32_t dtype);

/** Makes a tensor of zeros.
 *  @param shape [ndim] sizes, each at least 0; ndim from 0 to NN_MAX_DIMS. */
NN_API nn_status_t nn_tensor_create(nn_device_t *device, int32_t dtype, int32_t ndim,
                                    const int64_t *shape, nn_tensor_t **tensor);

/** Makes a tensor over the caller's memory, without a copy. The memory must be reachable by the
 *  device, aligned to its element, and outlive the tensor and all its views.
 *  @param strides [ndim] in elements, or NULL for row-major. */
NN_API nn_status_t nn_tensor_wrap(nn_device_t *device, void *data, int32_t dtype, int32_t ndim,
                                  const int64_t *shape, const int64_t *strides,
                                  nn_tensor_t **tensor);

/** Makes a view of elements begin to end - 1 of one dimension; it shares the storage. */
NN_API nn_status_t nn_tensor_slice(const nn_tensor_t *tensor, int32_t dim, int64_t begin,
                                   int64_t end, nn_tensor_t **view);

/** Gives the handle back; storage goes with its last view. */
NN_API void nn_tensor_destroy(nn_tensor_t *tensor);

/** What a tensor is; written by nn_tensor_info(). The arrays live as long as the tensor. */
typedef struct nn_tensor_info_t {
  size_t struct_size; /**< sizeof this struct. */
  int32_t dtype;          /**< NN_ dtype. */
  int32_t ndim;           /**< Dimensions. */
  const int64_t *shape;   /**< [ndim] sizes. */
  const int64_t *strides; /**< [ndim] steps in elements. */
  int64_t elements;       /**< Product of the sizes. */
  void *data;             /**< First element, in device memory; readable in place on a CPU. */
} nn_tensor_info_t;

/** Describes a tensor. */
NN_API nn_status_t nn_tensor_info(const nn_tensor_t *tensor, nn_tensor_info_t *info);

/** Fills the tensor from row-major host memory of its own dtype.
 *  @param bytes must equal elements x element size. */
NN_API nn_status_t nn_tensor_copy_in(nn_tensor_t *tensor, const void *source, size_t bytes);

/** Copies the tensor, row-major, into host memory of its own dtype.
 *  @param bytes must equal elements x element size. */
NN_API nn_status_t nn_tensor_copy_out(const nn_tensor_t *tensor, void *target, size_t bytes);

/** Exports without a copy as a DLPack `DLManagedTensor` (dlpack.h, version 0 layout). The consumer
 *  calls its deleter once; until then the storage lives.
 *  @param managed receives a `DLManagedTensor *`. */
NN_API nn_status_t nn_tensor_to_dlpack(const nn_tensor_t *tensor, void **managed);

/** Imports a DLPack `DLManagedTensor` without a copy. On success the tensor owns it and calls its
 *  deleter with the last view; on failure the caller still owns it.
 *  @param managed a `DLManagedTensor *` whose memory the device can reach. */
NN_API nn_status_t nn_tensor_from_dlpack(nn_device_t *device, void *managed, nn_tensor_t **tensor);

/* ------------------------------------------------------------------------------------------------
 * Model configuration
 * --------------------------------------------------------------------------------------------- */

/** Families: whose parameter names, shapes and config.json keys a saved folder carries. */
enum {
  NN_FAMILY_MIXTRAL = 0,      /**< MixtralForCausalLM: the mixture-of-experts transformer. */
  NN_FAMILY_GPT2 = 1,         /**< GPT2LMHeadModel: dense. */
  NN_FAMILY_LLAMA = 2,        /**< LlamaForCausalLM: dense. */
  NN_FAMILY_MISTRAL = 3,      /**< MistralForCausalLM: dense, with a window. */
  NN_FAMILY_QWEN2 = 4,        /**< Qwen2ForCausalLM: dense, biases on q, k and v. */
  NN_FAMILY_QWEN3 = 5,        /**< Qwen3ForCausalLM: dense, a norm per head of q and k. */
  NN_FAMILY_OLMOE = 6,        /**< OlmoeForCausalLM: experts, norms of whole rows of q and k. */
  NN_FAMILY_QWEN2_MOE = 7,    /**< Qwen2MoeForCausalLM: experts and a gated shared expert. */
  NN_FAMILY_QWEN3_MOE = 8,    /**< Qwen3MoeForCausalLM: experts, a norm per head of q and k. */
  NN_FAMILY_GRANITEMOE = 9,   /**< GraniteMoeForCausalLM: experts, four multipliers. */
  NN_FAMILY_GPT_OSS = 10,     /**< GptOssForCausalLM: experts with biases, sinks, a window. */
  NN_FAMILY_DEEPSEEK_V2 = 11, /**< DeepseekV2ForCausalLM: latent attention, shared experts. */
  NN_FAMILY_DEEPSEEK_V3 = 12, /**< DeepseekV3ForCausalLM: the same, sigmoid routing in groups. */
  NN_FAMILY_GLM4_MOE = 13,    /**< Glm4MoeForCausalLM: sigmoid routing, shared experts. */
  NN_FAMILY_PHIMOE = 14       /**< PhimoeForCausalLM: experts, LayerNorm, sparse mixer. */
};

/** Which linear layers of a block have a bias, a bit mask. */
enum {
  NN_BIAS_NONE = 0, /**< None. */
  NN_BIAS_QKV = 1,  /**< Query, key and value projections. */
  NN_BIAS_O = 2,    /**< Attention's output projection. */
  NN_BIAS_FFN = 4,  /**< The feed-forward networks', experts and dense layers alike. */
  NN_BIAS_ALL = 7,  /**< All of the three above. */
  NN_BIAS_ROUTER = 8, /**< The router's, part of its logits. */
  NN_BIAS_HEAD = 16 /**< The head's. */
};

/** Normalisations. */
enum {
  NN_NORM_RMS = 0,  /**< x / sqrt(mean(x^2) + eps) * w (Zhang and Sennrich, 2019). */
  NN_NORM_LAYER = 1 /**< (x - mean) / sqrt(variance + eps) * w + b (Ba et al., 2016). */
};

/** How positions enter. */
enum {
  NN_POSITION_ROPE = 0,   /**< Rotary (Su et al., 2021). */
  NN_POSITION_LEARNED = 1 /**< A learned vector added to the embedding. */
};

/** Feed-forward networks. */
enum {
  NN_FFN_SWIGLU = 0,   /**< down(silu(gate(x)) * up(x)) (Shazeer, 2020). */
  NN_FFN_GELU_TANH = 1, /**< proj(gelu(fc(x))), gelu by its tanh approximation. */
  NN_FFN_SWIGLU_CLAMPED = 2 /**< down(g * sigmoid(1.702 g) * (u + 1)), g = min(gate(x), limit),
                                 u = up(x) clamped to +-limit, limit being swiglu_limit. */
};

/** Normalisations of the load-balancing loss; f_i: share of routed slots, P_i: mean probability. */
enum {
  NN_AUX_SWITCH = 0, /**< Sum over layers of E * sum_i f_i P_i, sum of f 1 (Fedus et al., 2021). */
  NN_AUX_JOINT = 1   /**< E * k * sum_i f_i P_i, f and P averaged over all layers before the
                          product, as Hugging Face transformers computes it. */
};

/** Norms of queries and keys: RMS with norm_eps, before RoPE. */
enum {
  NN_QK_NORM_NONE = 0, /**< None. */
  NN_QK_NORM_HEAD = 1, /**< Of each head, with one weight [head_dim] for all heads. */
  NN_QK_NORM_FULL = 2  /**< Of the whole row of all heads, with a weight as wide. */
};

/** What a router makes of its logits, in fp32. */
enum {
  NN_SCORE_SOFTMAX = 0,     /**< Softmax over all experts. */
  NN_SCORE_SIGMOID = 1,     /**< Sigmoid of each logit. */
  NN_SCORE_SPARSE_MIXER = 2 /**< Top 1 twice, each time softmax over the logits l that are near the
                                 largest m: (m - l) / max(|l|, m) <= 2 router_eps. */
};

/** What becomes of the scores of the experts that were chosen. */
enum {
  NN_ROUTER_NORM_SUM = 0, /**< Each is divided by their sum. */
  NN_ROUTER_NORM_NONE = 1 /**< They are the weights as they are. */
};

/** How experts' scores, choice biases added, make their group's. */
enum {
  NN_GROUP_MAX = 0, /**< The largest. */
  NN_GROUP_TOP2 = 1 /**< The sum of the two largest. */
};

/** How RoPE's angles are scaled to lengths beyond those trained. */
enum {
  NN_ROPE_NONE = 0,    /**< They are not. */
  NN_ROPE_LINEAR = 1,  /**< Frequencies divided by rope_factor (Chen et al., 2023). */
  NN_ROPE_DYNAMIC = 2, /**< Sequences of n > context tokens rotate with a base of rope_theta *
                            (rope_factor n / context - rope_factor + 1)^(d/(d-2)), d rotary_dim. */
  NN_ROPE_YARN = 3,    /**< By frequency, rope_beta_ bounding the ramp (Peng et al., 2023). */
  NN_ROPE_LLAMA3 = 4,  /**< By wavelength, between original context / rope_low_freq and
                            / rope_high_freq, as Llama 3.1 does. */
  NN_ROPE_LONG = 5     /**< Each frequency divided by a factor of its own, of two lists: one for
                            sequences up to the original context, one for longer ones (LongRoPE,
                            Ding et al., 2024). Training goes by a batch's seq_len, a session by its
                            max_len. */
};

/** A model's architecture. Begin with a preset or a config.json, or set members by hand; zero means
 *  the default given here. What must be given: vocab_size, context, layers, hidden, heads, ffn. */
typedef struct nn_model_config_t {
  size_t struct_size; /**< sizeof this struct. */
  int32_t family;       /**< NN_FAMILY_ value. */
  int32_t norm;         /**< NN_NORM_ value. */
  int32_t position;     /**< NN_POSITION_ value. */
  int32_t ffn_kind;     /**< NN_FFN_ value. */
  int64_t vocab_size;   /**< Rows of the embedding and of the head. */
  int64_t context;      /**< Longest sequence trained. */
  int64_t layers;       /**< Blocks, at most 65,536. */
  int64_t hidden;       /**< Width of the residual stream. */
  int64_t heads;        /**< Query heads. */
  int64_t kv_heads;     /**< Key-value heads; divides heads. 0: heads. */
  int64_t head_dim;     /**< Width of a head, at most 256, even with RoPE. 0: hidden / heads. */
  int64_t ffn;          /**< Width inside the FFN (of one routed expert). */
  int64_t experts;      /**< Experts per layer, at most 1024. 0: a dense FFN. */
  int64_t top_k;        /**< Experts per token, at most 64. Required with experts. */
  int32_t biases;       /**< NN_BIAS_ mask. */
  int32_t tied_head;    /**< 1: the head is the embedding. */
  float norm_eps;       /**< 0: 1e-5. */
  float rope_theta;     /**< RoPE base. 0: 10000. With learned positions: must be 0. */
  float rope_ntk_alpha; /**< How many times its context a session may stretch the model, at most
                             65536: a session with max_len > context rotates with
                             base * alpha^(d/(d-2)), d the head dim (NTK-aware scaling). 0: 1. */
  float init_std;       /**< Standard deviation of initial weights. 0: 0.02. */
  float aux_loss_coef;  /**< Weight of the load-balancing loss. 0: none. */
  int32_t aux_loss;     /**< NN_AUX_ value. */
  float z_loss_coef;    /**< Weight of mean(logsumexp(router logits)^2), summed over layers (Zoph et
                             al., 2022). 0: none. */
  float capacity_factor; /**< An expert takes at most ceil(factor * tokens * k / E) slots of a
                              training batch, first tokens first; the rest are dropped. At most
                              1024. 0: none is. */
  int64_t dense_ffn;    /**< Width inside the FFN of a mixture's dense layers. 0: ffn. */
  uint64_t dense_layers[4]; /**< Bit l % 64 of word l / 64: layer l of a mixture has a dense FFN
                                 instead of experts. Such a model has at most 256 layers. */
  int64_t window;       /**< A query sees the last window keys, its own among them. 0: all. */
  uint64_t window_layers[4]; /**< Which layers have the window, bits as in dense_layers; all zero:
                                  every layer. */
  int32_t qk_norm;      /**< NN_QK_NORM_ value. */
  float qkv_clip;       /**< Queries, keys and values are clamped to +-qkv_clip, behind qk_norm.
                             0: they are not. */
  int64_t shared_ffn;   /**< Width of the expert that every token of a mixture's sparse layers goes
                             through. 0: there is none. */
  int32_t shared_gate;  /**< 1: what it gives is multiplied by sigmoid(<x, g>), g a parameter. */
  int32_t router_score; /**< NN_SCORE_ value. */
  int32_t router_norm;  /**< NN_ROUTER_NORM_ value. */
  float router_scale;   /**< Multiplies experts' weights. 0: 1. */
  int32_t router_choice_bias; /**< 1: a parameter per expert is added to its score for the choice
                                   alone, has no gradient and is not trained. */
  int32_t router_group_score; /**< NN_GROUP_ value. */
  int64_t router_groups; /**< Experts are in this many groups of neighbours, and only those of the
                              best router_top_groups are chosen from; divides experts. 0: one
                              group. */
  int64_t router_top_groups; /**< Required with router_groups, at most as many; 0 without. */
  float router_eps;     /**< Of NN_SCORE_SPARSE_MIXER. */
  int32_t attention_sinks; /**< 1: a parameter per query head joins its softmax as one more logit,
                                which has no value. */
  float embedding_scale; /**< Multiplies embeddings. 0: 1. */
  float residual_scale; /**< Multiplies what attention and FFN add to the residual stream. 0: 1. */
  float attention_scale; /**< Multiplies attention's scores. 0: 1 / sqrt(head_dim), with latent
                              attention, YaRN and rope_mscale_all_dim m also times
                              (0.1 m ln(rope_factor) + 1)^2. */
  float logit_scale;    /**< Multiplies logits. 0: 1. */
  int64_t rotary_dim;   /**< RoPE rotates the first rotary_dim elements of a head, an even number.
                             0: head_dim, or rope_head_dim with latent attention. */
  int32_t rope_interleaved; /**< 0: element i is rotated against i + rotary_dim / 2. 1: 2i against
                                 2i + 1. */
  int32_t rope_scaling; /**< NN_ROPE_ value, which the next members that begin with rope_ belong
                             to. */
  int64_t rope_original_context; /**< Longest sequence trained before scaling. 0: context. */
  float rope_factor;    /**< At least 1. 0: 1, or with YaRN and LongRoPE context /
                             rope_original_context. */
  float rope_beta_fast; /**< YaRN. 0: 32. */
  float rope_beta_slow; /**< YaRN. 0: 1. */
  float rope_low_freq;  /**< Llama 3. 0: 1. */
  float rope_high_freq; /**< Llama 3, above rope_low_freq. 0: 4. */
  float rope_attention_factor; /**< YaRN and LongRoPE: multiplies cosine and sine. 0: with YaRN
                                    g(rope_mscale) / g(rope_mscale_all_dim) where both are given,
                                    else g(1), with g(m) = 0.1 m ln(rope_factor) + 1; with LongRoPE
                                    sqrt(1 + ln(rope_factor) / ln(rope_original_context)). */
  float rope_mscale;    /**< YaRN. 0: not given. */
  float rope_mscale_all_dim; /**< YaRN. 0: not given. */
  int32_t rope_no_truncate; /**< YaRN: 1: the ramp's ends are not rounded to whole dimensions. */
  float swiglu_limit;   /**< Of NN_FFN_SWIGLU_CLAMPED, which needs it. */
  int64_t q_rank;       /**< Latent attention (DeepSeek-AI, 2024): width of the queries' latent. 0:
                             queries are projected at once. */
  int64_t kv_rank;      /**< Width of the latent of keys and values. 0: no latent attention. */
  int64_t rope_head_dim; /**< With kv_rank: how many of the head_dim elements of a query or key, the
                              last ones, carry positions. */
  int64_t value_head_dim; /**< With kv_rank: width of a value, at most head_dim. 0: head_dim. */
  float rope_short_mscale; /**< LongRoPE: multiplies cosine and sine beside rope_short_factors. 0:
                                what rope_attention_factor says. */
  float rope_long_mscale; /**< The same beside rope_long_factors. */
  float rope_short_factors[128]; /**< LongRoPE needs them, one for each of the rotary_dim / 2
                                      frequencies, from 1e-6 to 1e6; behind them 0. */
  float rope_long_factors[128]; /**< The same for sequences longer than rope_original_context. */
} nn_model_config_t;

/* Functions that write a configuration for a caller of an older header fail with
 * NN_ERR_STRUCT_SIZE where one of the members that the caller does not know is not zero. */

/** Fills a configuration by name: "tiny", "small", "moe-6.9b", "gpt2-124m", "gpt2-350m",
 *  "gpt2-774m", "gpt2-1558m". Any other: NN_ERR_NOT_FOUND.
 *  @param config its struct_size must be set; every other member is overwritten. */
NN_API nn_status_t nn_config_preset(const char *name, nn_model_config_t *config);

/** Reads the text of a Hugging Face config.json, as transformers 4 or 5 writes it, of any of the
 *  model types that NN_FAMILY_ names. A key that would change the numbers and is not understood is
 *  NN_ERR_UNSUPPORTED and named.
 *  @param text  UTF-8, need not end in NUL.
 *  @param bytes its length. */
NN_API nn_status_t nn_config_from_json(const char *text, size_t bytes, nn_model_config_t *config);

/** Writes config.json text.
 *  @param text     receives at most capacity bytes, NUL included; may be NULL when capacity is 0.
 *  @param required receives the bytes needed, NUL included, also with NN_ERR_CAPACITY. */
NN_API nn_status_t nn_config_to_json(const nn_model_config_t *config, char *text, size_t capacity,
                                     size_t *required);

/** Checks a configuration and writes the defaults in place of zeros, in members before dense_ffn;
 *  those behind keep their zeros. NN_ERR_ARGUMENT names the first member that is out of range or
 *  does not fit another; NN_ERR_UNSUPPORTED a combination that the family has no published form
 *  for. A valid configuration may still be one that this release does not compute: then making,
 *  loading or planning such a model is NN_ERR_UNSUPPORTED and names the member. */
NN_API nn_status_t nn_config_validate(nn_model_config_t *config);

/* ------------------------------------------------------------------------------------------------
 * Byte plan: what a job takes, before anything is allocated
 * --------------------------------------------------------------------------------------------- */

/** Exact device bytes by category; written by nn_plan_training() and nn_plan_inference(). */
typedef struct nn_plan_t {
  size_t struct_size; /**< sizeof this struct. */
  int64_t parameters;        /**< Parameters in all. */
  int64_t active_parameters; /**< Parameters that multiply one token: all but the embedding table
                                  (unless tied) and the experts not chosen. */
  int64_t parameter_bytes;   /**< The model's parameters. */
  int64_t master_bytes;      /**< Of fp32 masters: what bf16 parameters lack of theirs, 2 bytes a
                                  parameter; whole ones of fp16 parameters, 4. */
  int64_t gradient_bytes;    /**< Gradients. */
  int64_t optimizer_bytes;   /**< Optimizer moments. */
  int64_t activation_bytes;  /**< Kept from forward for backward, and the residual streams. */
  int64_t workspace_bytes;   /**< Scratch of operations, tables, staging of tokens. */
  int64_t cache_bytes;       /**< Key-value cache. */
  int64_t total_bytes;       /**< Sum of the byte members. */
} nn_plan_t;

/** Recomputation of activations. */
enum {
  NN_RECOMPUTE_NONE = 0, /**< Keep every activation. */
  NN_RECOMPUTE_BLOCK = 1, /**< Keep only each block's input; run the block again in backward. */
  NN_RECOMPUTE_FFN = 2 /**< Keep all but what is inside the feed-forward networks; run their first
                            products again in backward. */
};

/** Shape of training batches; see nn_model_prepare(). */
typedef struct nn_train_options_t {
  size_t struct_size; /**< sizeof this struct. */
  int64_t batch;     /**< Most sequences in one call. 0: 1. */
  int64_t seq_len;   /**< Most tokens in a sequence, at most the context. 0: the context. */
  int32_t recompute; /**< NN_RECOMPUTE_ value. */
} nn_train_options_t;

/** Options of nn_session_create(). */
typedef struct nn_session_options_t {
  size_t struct_size; /**< sizeof this struct. */
  int64_t batch;         /**< Sequences held side by side. 0: 1. */
  int64_t max_len;       /**< Most tokens in a sequence. 0: the context. Beyond the context, up to
                              context * rope_ntk_alpha, RoPE is stretched. */
  int64_t prefill_chunk; /**< Prompt tokens computed at once. 0: 256. */
} nn_session_options_t;

/** Bytes to train: model, gradients, AdamW and batches of a shape, with parameters of a dtype.
 *  Allocates nothing on the device and needs no model. */
NN_API nn_status_t nn_plan_training(nn_device_t *device, const nn_model_config_t *config,
                                    int32_t dtype, const nn_train_options_t *options,
                                    nn_plan_t *plan);

/** Bytes to serve: model and one session, with parameters of a dtype. Allocates nothing on the
 *  device and needs no model. */
NN_API nn_status_t nn_plan_inference(nn_device_t *device, const nn_model_config_t *config,
                                     int32_t dtype, const nn_session_options_t *options,
                                     nn_plan_t *plan);

/* ------------------------------------------------------------------------------------------------
 * Model
 * --------------------------------------------------------------------------------------------- */

/** A configuration and its parameters; gradients once training is prepared. */
typedef struct nn_model nn_model_t;

/** Makes a model with random weights: normal with config's init_std, GPT-2's residual projections
 *  scaled by 1 / sqrt(2 * layers), norms 1, biases 0.
 *  @param dtype NN_F32, NN_BF16 or NN_F16. Activations are of the same type, but beside fp16
 *               parameters a CPU has fp32 ones; sums are fp32, and the optimizer keeps fp32
 *               masters. fp16 holds no more than 65504: see nn_model_loss_scale().
 *  @param seed  same seed, same bits. */
NN_API nn_status_t nn_model_create(nn_device_t *device, const nn_model_config_t *config,
                                   int32_t dtype, uint64_t seed, nn_model_t **model);

/** Options of nn_model_save(), nn_model_load() and their llm.c counterparts. */
typedef struct nn_file_options_t {
  size_t struct_size; /**< sizeof this struct. */
  int64_t shard_bytes;     /**< nn_model_save(): most bytes of tensor data in a file. 0: 5 x 10^10.
                                nn_model_save_llmc(): must be 0. Loading: not read. */
  nn_progress_fn progress; /**< Called as bytes are read or written, or NULL. */
  void *progress_user;     /**< Passed to progress. */
} nn_file_options_t;

/** Reads a Hugging Face folder: config.json and model.safetensors, or its shards with their index.
 *  Files are mapped, never trusted: every size is checked before memory is taken, every tensor of
 *  the file must be used and every parameter filled. On a CPU a single file that nn_model_save()
 *  wrote, of the wanted dtype, is the model's parameters itself, for as long as the model lives: a
 *  page is copied when it is first trained. Its bytes count as held by the device either way.
 *  @param dtype NN_F32, NN_BF16 or NN_F16; F32, F16 and BF16 tensors are converted to it.
 *               NN_DTYPE_FILE: that of the file's embedding. Experts in MXFP4, as gpt_oss has
 *               them, are decoded. */
NN_API nn_status_t nn_model_load(nn_device_t *device, const char *folder, int32_t dtype,
                                 const nn_file_options_t *options, nn_model_t **model);

/** Writes a Hugging Face folder that nn_model_load() and transformers read; makes the folder if it
 *  is not there. What the folder that the model was loaded from holds beside the model
 *  (generation_config.json, the tokenizer's files, the chat template) is copied where the new one
 *  has no file of that name. A full disk, a failure or a kill leaves the earlier model whole. A
 *  failure after the new model took its place, when the earlier one's files are cleared away, says
 *  so in its message. */
NN_API nn_status_t nn_model_save(const nn_model_t *model, const char *folder,
                                 const nn_file_options_t *options);

/** Reads a GPT-2 model from a checkpoint file of llm.c's train_gpt2. That is 256 int32 (magic
 *  20240326; version 3 for fp32, 5 for bf16; max_seq_len; vocab_size; num_layers; num_heads;
 *  channels C; padded_vocab_size; zeros), then wte [padded_vocab_size, C], wpe [max_seq_len, C], of
 *  each the tensors of all layers in turn ln1w [C], ln1b [C], qkvw [3C, C], qkvb [3C],
 *  attprojw [C, C], attprojb [C], ln2w [C], ln2b [C], fcw [4C, C], fcb [4C], fcprojw [C, 4C],
 *  fcprojb [C], and lnfw [C], lnfb [C]; row-major, little-endian. norm_eps becomes 1e-5; rows of
 *  wte behind the vocabulary are not read. The file is mapped, never trusted: it must have exactly
 *  the bytes that its header asks for, which is checked before memory is taken.
 *  @param path  the file.
 *  @param dtype NN_F32, NN_BF16 or NN_F16, to which tensors are converted, or NN_DTYPE_FILE.
 *  @param model receives the handle; nn_model_destroy() ends it.
 *  NN_ERR_FORMAT: no such checkpoint, or not of its header's size. NN_ERR_UNSUPPORTED: another
 *  version, words of the header that llm.c leaves 0, a head that is too wide or too many layers.
 *  NN_ERR_NOT_FOUND, NN_ERR_IO: the file cannot be read. Any thread. */
NN_API nn_status_t nn_model_load_llmc(nn_device_t *device, const char *path, int32_t dtype,
                                      const nn_file_options_t *options, nn_model_t **model);

/** Writes a GPT-2 model to a checkpoint file that nn_model_load_llmc() and llm.c's train_gpt2 read.
 *  An F32 model becomes version 3, a BF16 one version 5; the vocabulary is padded with rows of
 *  zeros to a multiple of 128. Neither init_std nor an optimizer's state is part of it. It reads
 *  the model's parameters, so it counts as a use of the model.
 *  @param path the file, in a folder that is there.
 *  NN_ERR_UNSUPPORTED names what does not fit: a family other than NN_FAMILY_GPT2, an ffn that is
 *  not 4 x hidden, a norm_eps that is not 1e-5, parameters of NN_F16. NN_ERR_NOT_FOUND: there is no
 *  such folder. NN_ERR_IO: the file cannot be written, or another save is writing it. */
NN_API nn_status_t nn_model_save_llmc(const nn_model_t *model, const char *path,
                                      const nn_file_options_t *options);

/** Gives the handle back. Sessions, optimizers and parameter tensors keep what they need. */
NN_API void nn_model_destroy(nn_model_t *model);

/** Copies the model's configuration, defaults filled in. */
NN_API nn_status_t nn_model_config(const nn_model_t *model, nn_model_config_t *config);

/** Number of named parameters; 0 for NULL. */
NN_API int64_t nn_model_parameter_count(const nn_model_t *model);

/** Name of parameter i, as in the family's files, or NULL when i is out of range. Lives as long as
 *  the model. */
NN_API const char *nn_model_parameter_name(const nn_model_t *model, int64_t index);

/** A parameter as a tensor that views the model's memory: writing changes the model. The shape is
 *  the one in the family's files; strides may be those of a transpose. */
NN_API nn_status_t nn_model_parameter(const nn_model_t *model, const char *name,
                                      nn_tensor_t **tensor);

/** A parameter's gradient, times nn_model_loss_scale(), as a tensor that views the gradients'
 *  memory, F32. NN_ERR_STATE before nn_model_prepare(). */
NN_API nn_status_t nn_model_gradient(const nn_model_t *model, const char *name,
                                     nn_tensor_t **tensor);

/* ------------------------------------------------------------------------------------------------
 * Training
 * --------------------------------------------------------------------------------------------- */

/** Allocates gradients (zeros) and activations for batches up to a shape; again with another shape
 *  keeps the gradients and resets the expert counters; for a moment both shapes' memory is held.
 *  NULL options give everything back. On failure the model is as before. */
NN_API nn_status_t nn_model_prepare(nn_model_t *model, const nn_train_options_t *options);

/** Result of a forward pass with targets. */
typedef struct nn_loss_t {
  size_t struct_size; /**< sizeof this struct. */
  double loss;     /**< Cross-entropy in nats, mean over the targets that count. */
  double aux_loss; /**< Load-balancing loss, coefficient included. */
  double z_loss;   /**< Router z-loss, coefficient included. */
  int64_t targets; /**< Targets that counted. */
} nn_loss_t;

/** Logits of a batch, without gradients.
 *  @param tokens  [batch, seq_len] ids in [0, vocab_size).
 *  @param batch,seq_len at most the prepared shape.
 *  @param logits  [batch, seq_len, vocab_size] receives fp32 logits. */
NN_API nn_status_t nn_model_forward(nn_model_t *model, const int32_t *tokens, int64_t batch,
                                    int64_t seq_len, float *logits);

/** Loss of a batch, without gradients; tokens and sizes as in nn_model_forward().
 *  @param targets [batch, seq_len] the id that should follow each token; negative ones do not
 *                 count.
 *  NN_ERR_NONFINITE: the loss is not finite. */
NN_API nn_status_t nn_model_evaluate(nn_model_t *model, const int32_t *tokens,
                                     const int32_t *targets, int64_t batch, int64_t seq_len,
                                     nn_loss_t *loss);

/** Loss of a batch, and its gradients added to the model's; a batch as in nn_model_evaluate().
 *  @param scale multiplies the gradients: 1 / n for n accumulated micro-batches.
 *  @param loss  receives the losses of this batch; or NULL: on a GPU the call returns before its
 *               work is done, whose failure a later call reports.
 *  The gradients are those of loss + aux_loss + z_loss. NN_ERR_NONFINITE: the loss is not finite;
 *  with loss NULL nobody looks, and nn_optim_step() refuses gradients that are not finite, as those
 *  of a cross-entropy that is not finite are.
 *  After any failure midway the gradients are undefined, and backward and optimizer steps are
 *  NN_ERR_STATE, until nn_model_zero_grad(). */
NN_API nn_status_t nn_model_backward(nn_model_t *model, const int32_t *tokens,
                                     const int32_t *targets, int64_t batch, int64_t seq_len,
                                     float scale, nn_loss_t *loss);

/** Sets all gradients to zero. Costs little while no tensor views them. */
NN_API nn_status_t nn_model_zero_grad(nn_model_t *model);

/** What the gradients are multiplied by, or will be by the first backward after they were zeroed: a
 *  power of two beside NN_F16 parameters, for the gradients of activations are of that type too and
 *  would vanish; otherwise 1. It begins at 65536. An optimizer divides by it, halves what comes
 *  after it where gradients overflowed, and doubles that after 2000 updates without (dynamic loss
 *  scaling; Micikevicius et al., 2018). 0 for NULL. */
NN_API double nn_model_loss_scale(const nn_model_t *model);

/** How evenly one layer's experts were used; written by nn_model_expert_stats(). */
typedef struct nn_expert_stats_t {
  size_t struct_size; /**< sizeof this struct. */
  int64_t tokens;  /**< Tokens routed since the counters were reset. */
  int64_t dropped; /**< Slots that a capacity factor dropped. */
  double entropy;  /**< Entropy of the experts' shares of slots over ln(experts): 1 is even. */
  double max_load; /**< Largest share of slots times experts: 1 is even. */
} nn_expert_stats_t;

/** Expert use of one layer since the last reset, over forward, evaluate and backward calls; none
 *  where the layer is a dense one of a mixture.
 *  @param counts    [experts] receives routed slots per expert, or NULL.
 *  @param mean_prob [experts] receives the mean router probability, or NULL.
 *  NN_ERR_UNSUPPORTED for a dense model. */
NN_API nn_status_t nn_model_expert_stats(const nn_model_t *model, int64_t layer, int64_t *counts,
                                         double *mean_prob, nn_expert_stats_t *stats);

/** Sets every layer's expert counters to zero. */
NN_API nn_status_t nn_model_expert_stats_reset(nn_model_t *model);

/* ------------------------------------------------------------------------------------------------
 * Optimizer
 * --------------------------------------------------------------------------------------------- */

/** AdamW state of one model. */
typedef struct nn_optim nn_optim_t;

/** Options of nn_optim_create(). */
typedef struct nn_optim_options_t {
  size_t struct_size; /**< sizeof this struct. */
  float beta1;        /**< Decay of the first moment. 0: 0.9. */
  float beta2;        /**< Decay of the second moment. 0: 0.95. */
  float eps;          /**< 0: 1e-8. */
  float weight_decay; /**< Decoupled decay of matrices; norms and biases have none. 0: none. */
  float grad_clip;    /**< Largest global gradient norm; larger gradients are scaled down to it.
                           0: no clip. */
} nn_optim_options_t;

/** Makes an AdamW optimizer (Loshchilov and Hutter, 2019) with moments of zero. The model must be
 *  prepared for training (NN_ERR_STATE). Beside bf16 parameters it holds the lower 16 bits of their
 *  fp32 masters, zeros at first; the parameter is always the master's nearest bf16 number. Beside
 *  fp16 parameters it holds their whole masters; a parameter that is written by others becomes its
 *  master at the next update. */
NN_API nn_status_t nn_optim_create(nn_model_t *model, const nn_optim_options_t *options,
                                   nn_optim_t **optim);

/** Gives the handle back. */
NN_API void nn_optim_destroy(nn_optim_t *optim);

/** One update of all parameters from the model's gradients, which stay as they are:
 *  m = b1 m + (1-b1) g, v = b2 v + (1-b2) g^2, p -= lr (m^ / (sqrt(v^) + eps) + decay p), with m^
 *  and v^ corrected for the step and g scaled by the clip.
 *  @param grad_norm receives the global norm before the clip, the loss scale taken out, or NULL.
 *  NN_ERR_NONFINITE: the norm is not finite; nothing was changed. With a loss scale above 1 that is
 *  no failure but an overflow: grad_norm says it, neither parameters nor moments nor the count of
 *  updates change, and the next gradients have half the scale. */
NN_API nn_status_t nn_optim_step(nn_optim_t *optim, float lr, double *grad_norm);

/** Moments of the optimizer. */
enum {
  NN_MOMENT_FIRST = 0, /**< Running mean of gradients. */
  NN_MOMENT_SECOND = 1 /**< Running mean of squared gradients. */
};

/** A moment of one parameter as a tensor that views the optimizer's memory, F32. */
NN_API nn_status_t nn_optim_moment(const nn_optim_t *optim, const char *name, int32_t moment,
                                   nn_tensor_t **tensor);

/** Updates made so far; 0 for NULL. */
NN_API int64_t nn_optim_steps(const nn_optim_t *optim);

/** Sets the number of updates made so far, from 0 to 2^53, as when state was restored by hand. */
NN_API nn_status_t nn_optim_set_steps(nn_optim_t *optim, int64_t steps);

/** Writes moments, step count, masters (of bf16 parameters their lower bits) and, beside fp16
 *  parameters, the loss scale and the updates since it changed to one safetensors file, whole or
 *  not at all. */
NN_API nn_status_t nn_optim_save(const nn_optim_t *optim, const char *path);

/** Reads what nn_optim_save() wrote for a model of the same configuration. On failure the state is
 *  as before, unless it is NN_ERR_CANCELLED, or on a GPU NN_ERR_MEMORY or NN_ERR_DEVICE, while
 *  tensor data was read. */
NN_API nn_status_t nn_optim_load(nn_optim_t *optim, const char *path);

/** Learning-rate schedules. */
enum {
  NN_SCHEDULE_CONSTANT = 0, /**< lr after the warm-up. */
  NN_SCHEDULE_LINEAR = 1,   /**< From lr to min_lr in a straight line. */
  NN_SCHEDULE_COSINE = 2    /**< From lr to min_lr along half a cosine. */
};

/** A learning rate as a function of the step. */
typedef struct nn_schedule_t {
  size_t struct_size; /**< sizeof this struct. */
  int32_t kind;         /**< NN_SCHEDULE_ value. */
  float lr;             /**< Peak. */
  float min_lr;         /**< At and after total_steps; unused by NN_SCHEDULE_CONSTANT. */
  int64_t warmup_steps; /**< Step s < warmup_steps has lr * (s + 1) / warmup_steps. */
  int64_t total_steps;  /**< Where the decay ends; more than warmup_steps unless constant. */
} nn_schedule_t;

/** The learning rate of a step, counted from 0. Any thread. */
NN_API nn_status_t nn_schedule_lr(const nn_schedule_t *schedule, int64_t step, float *lr);

/* ------------------------------------------------------------------------------------------------
 * Tokenizer
 * --------------------------------------------------------------------------------------------- */

/** Text to ids and back. Immutable: may be used from several threads at once.
 *
 *  Text is any string of less than 4 GiB. Where it is not UTF-8, byte-level tokenizers (those of
 *  GPT-2, Llama 3, Qwen and the like, with at most a Unicode normal form before) encode its bytes
 *  as they are and give them back; all others see U+FFFD for each malformed part. */
typedef struct nn_tokenizer nn_tokenizer_t;

/** Ids of the byte tokenizer's specials; its vocabulary has NN_BYTE_VOCAB ids. */
enum {
  NN_BYTE_BOS = 256,  /**< Beginning of a text. */
  NN_BYTE_EOS = 257,  /**< End of a text. */
  NN_BYTE_PAD = 258,  /**< Padding. */
  NN_BYTE_VOCAB = 259 /**< Ids in all. */
};

/** Makes the byte tokenizer: id = byte, and the specials above, spelt <|bos|>, <|eos|>, <|pad|>. */
NN_API nn_status_t nn_tokenizer_create_bytes(nn_tokenizer_t **tokenizer);

/** Loads a tokenizer. What a file is, its content decides:
 *
 *  - **tokenizer.json**: BPE, Unigram, WordPiece, WordLevel, with the normalizers, pre-tokenizers,
 *    post-processors and decoders of the tokenizers package (0.23); ids, offsets and text are the
 *    same as there, but that Unigram makes no special token of plain text, and that offsets are
 *    right where a character map removes characters. Characters newer than the Unicode of this
 *    system's utf8proc and PCRE2 may be cut otherwise. Truncation and padding are left to the
 *    caller.
 *  - **SentencePiece** (.model): BPE, Unigram, WORD and CHAR; ids and text are SentencePiece's, for
 *    any bytes.
 *  - **tiktoken** rank files of the published vocabularies of GPT-2, cl100k_base, o200k_base, Llama
 *    3 and Qwen, which the number of tokens tells apart; others: nn_tokenizer_load_tiktoken().
 *  - **GGUF**: its metadata tokenizer.ggml.*, of the models llama, t5 and gpt2.
 *  - **llm.c** tokenizer files, version 1 and 2, taken as GPT-2's: ids in the order of merges.
 *
 *  NN_ERR_UNSUPPORTED names what could change ids and is not understood.
 *  @param path a file, or a folder with tokenizer.json or else tokenizer.model, whose
 *              tokenizer_config.json then names the special tokens. */
NN_API nn_status_t nn_tokenizer_load(const char *path, nn_tokenizer_t **tokenizer);

/** Loads a tiktoken rank file whose pattern nn_tokenizer_load() does not know.
 *  @param pattern regular expression whose matches are words, as is what lies between them. */
NN_API nn_status_t nn_tokenizer_load_tiktoken(const char *path, const char *pattern,
                                              nn_tokenizer_t **tokenizer);

/** Gives the handle back. */
NN_API void nn_tokenizer_destroy(nn_tokenizer_t *tokenizer);

/** One past the largest id, added tokens among them; 0 for NULL. */
NN_API int64_t nn_tokenizer_vocab_size(const nn_tokenizer_t *tokenizer);

/** Special tokens that programs ask for. */
enum {
  NN_TOKEN_BOS = 0, /**< Beginning of a text. */
  NN_TOKEN_EOS = 1, /**< End of a text. */
  NN_TOKEN_PAD = 2, /**< Padding. */
  NN_TOKEN_UNK = 3  /**< What the vocabulary cannot express. */
};

/** The id of a special token (NN_TOKEN_ value); -1 when there is none or the files do not say. */
NN_API int32_t nn_tokenizer_special(const nn_tokenizer_t *tokenizer, int32_t which);

/** The id of a token as the vocabulary spells it, such as "\xC4\xA0the" for " the" in byte-level
 *  ones; -1: no token is spelt so. */
NN_API int32_t nn_tokenizer_id(const nn_tokenizer_t *tokenizer, const char *text, size_t bytes);

/** How the vocabulary spells a token. NN_ERR_NOT_FOUND: no token has the id.
 *  @param text  receives the spelling, ended by a NUL, which lives as long as the tokenizer.
 *  @param bytes receives its length; may be NULL. */
NN_API nn_status_t nn_tokenizer_token(const nn_tokenizer_t *tokenizer, int32_t id,
                                      const char **text, size_t *bytes);

/** Encodes a text: nn_tokenizer_encode_with() without options and offsets.
 *  @param ids   [capacity] receives the ids; may be NULL when capacity is 0.
 *  @param count receives the number of ids, also with NN_ERR_CAPACITY. */
NN_API nn_status_t nn_tokenizer_encode(const nn_tokenizer_t *tokenizer, const char *text,
                                       size_t bytes, int32_t *ids, int64_t capacity,
                                       int64_t *count);

/** Options of nn_tokenizer_encode_with(). */
typedef struct nn_encode_options_t {
  size_t struct_size;    /**< sizeof this struct. */
  int32_t add_special;   /**< 1: with the ids before and after it that the tokenizer's
                              post-processor puts around a text. */
  int32_t parse_special; /**< 1: a special token that the text spells becomes its id. 0: it is text
                              like any other, as text from outside should be. Added tokens that are
                              not special are found either way. */
} nn_encode_options_t;

/** Encodes a text.
 *  @param options NULL: all zero.
 *  @param ids     [capacity] receives the ids; may be NULL when capacity is 0.
 *  @param offsets [capacity, 2] receives of each id where its text begins and ends, in bytes of the
 *                 given text, whole characters; 0, 0 for those that add_special adds. Or NULL.
 *  @param count   receives the number of ids, also with NN_ERR_CAPACITY. */
NN_API nn_status_t nn_tokenizer_encode_with(const nn_tokenizer_t *tokenizer, const char *text,
                                            size_t bytes, const nn_encode_options_t *options,
                                            int32_t *ids, int64_t *offsets, int64_t capacity,
                                            int64_t *count);

/** Decodes ids: nn_tokenizer_decode_with() without options.
 *  @param text  [capacity] receives the bytes, without a NUL; may be NULL when capacity is 0.
 *  @param bytes receives the number of bytes, also with NN_ERR_CAPACITY. */
NN_API nn_status_t nn_tokenizer_decode(const nn_tokenizer_t *tokenizer, const int32_t *ids,
                                       int64_t count, char *text, size_t capacity,
                                       size_t *bytes);

/** Options of nn_tokenizer_decode_with(). */
typedef struct nn_decode_options_t {
  size_t struct_size;   /**< sizeof this struct. */
  int32_t keep_special; /**< 1: special tokens give their spelling. 0: no text. */
} nn_decode_options_t;

/** Decodes ids. An id outside the vocabulary is NN_ERR_ARGUMENT. Byte-level tokenizers give the
 *  bytes that the ids stand for, which need not be UTF-8.
 *  @param options NULL: all zero.
 *  @param text    [capacity] receives the bytes, without a NUL; may be NULL when capacity is 0.
 *  @param bytes   receives the number of bytes, also with NN_ERR_CAPACITY. */
NN_API nn_status_t nn_tokenizer_decode_with(const nn_tokenizer_t *tokenizer, const int32_t *ids,
                                            int64_t count, const nn_decode_options_t *options,
                                            char *text, size_t capacity, size_t *bytes);

/** How far a text that grows id by id has been decoded. All zero but struct_size and keep_special
 *  at its beginning; the rest is nn_tokenizer_decode_next()'s. */
typedef struct nn_decode_stream_t {
  size_t struct_size;   /**< sizeof this struct. */
  int32_t keep_special; /**< As in nn_decode_options_t. */
  int64_t first;        /**< The first id that later ones still depend on. */
  int64_t given;        /**< Bytes given out of the text that begins there. */
} nn_decode_stream_t;

/** The text that has become certain since the last call with the same stream: whole characters,
 *  always UTF-8, U+FFFD for bytes that form none. The texts of all calls, end to end, are the
 *  decoded text; but where decoding makes U+FFFD of each byte of several tokens that are not UTF-8
 *  together (ByteFallback), characters among them that are whole have been given out.
 *  @param ids    [count] all ids so far, the earlier ones as in the calls before.
 *  @param finish 1: no more will come, so that an unfinished character at the end is U+FFFD.
 *  @param text   [capacity] receives the bytes, without a NUL; may be NULL when capacity is 0.
 *  @param bytes  receives their number, also with NN_ERR_CAPACITY, which leaves the stream
 *                alone. */
NN_API nn_status_t nn_tokenizer_decode_next(const nn_tokenizer_t *tokenizer,
                                            nn_decode_stream_t *stream, const int32_t *ids,
                                            int64_t count, int32_t finish, char *text,
                                            size_t capacity, size_t *bytes);

/** Writes tokenizer.json for the tokenizers package and for nn_tokenizer_load(). Into a folder also
 *  tokenizer_config.json, with which transformers opens the folder. What SentencePiece files ask
 *  for is written as the steps that published tokenizer.json files have for it; they differ in rare
 *  texts. NN_ERR_UNSUPPORTED names what the format cannot say.
 *  @param path a file, or a folder that is there. */
NN_API nn_status_t nn_tokenizer_save(const nn_tokenizer_t *tokenizer, const char *path);

/** Writes an llm.c tokenizer file (magic 20240328, version 2) of a byte-level vocabulary that knows
 *  its end of a text. NN_ERR_UNSUPPORTED says what the format has no place for. */
NN_API nn_status_t nn_tokenizer_save_llmc(const nn_tokenizer_t *tokenizer, const char *path);

/** Kinds of vocabularies that can be learnt. */
enum {
  NN_TOKENIZER_BPE = 0,    /**< Byte-level BPE (Sennrich et al., 2016): knows every text; the merges
                                of the tokenizers package's trainer. */
  NN_TOKENIZER_UNIGRAM = 1 /**< Unigram (Kudo, 2018) over NFKC with spaces at the beginning of
                                words, after SentencePiece: a text's first word gets one, and
                                decoding drops it, or the text's own. Needs a special for unknown
                                characters. */
};

/** Options of nn_tokenizer_train(). */
typedef struct nn_tokenizer_train_options_t {
  size_t struct_size;     /**< sizeof this struct. */
  int32_t kind;           /**< NN_TOKENIZER_ value. */
  int64_t vocab_size;     /**< Ids in all, if the texts have enough to learn. 0: 32,000. */
  int64_t min_frequency;  /**< How often what is learnt must come. 0: 2. */
  const char *const *specials; /**< [special_count] special tokens, which get the first ids. */
  int64_t special_count;  /**< Their number. */
  const char *pattern;    /**< BPE: regular expression whose matches are words, as is what lies
                               between them. NULL: GPT-2's. */
  float coverage;         /**< Unigram: share of the text that characters in the vocabulary make up;
                               the rarest are left to unk. 0: 0.9995. */
  const char *bos;        /**< Which special is NN_TOKEN_BOS, if it is among them. NULL: "<s>". */
  const char *eos;        /**< NN_TOKEN_EOS. NULL: "</s>". */
  const char *pad;        /**< NN_TOKEN_PAD. NULL: "<pad>". */
  const char *unk;        /**< NN_TOKEN_UNK. NULL: "<unk>". */
  nn_progress_fn progress; /**< Called as bytes of text are read, and while learning, or NULL. */
  void *progress_user;    /**< Passed to progress. */
} nn_tokenizer_train_options_t;

/** Learns a vocabulary from texts. The same texts in the same order give the same tokenizer.
 *  @param texts   [count] each any byte string; words do not go from one to the next.
 *  @param bytes   [count] their lengths.
 *  @param options NULL: all zero. */
NN_API nn_status_t nn_tokenizer_train(const char *const *texts, const size_t *bytes, int64_t count,
                                      const nn_tokenizer_train_options_t *options,
                                      nn_tokenizer_t **tokenizer);

/** The same from files, of which each line with its end is a text.
 *  @param paths [count], at least one. */
NN_API nn_status_t nn_tokenizer_train_files(const char *const *paths, int64_t count,
                                            const nn_tokenizer_train_options_t *options,
                                            nn_tokenizer_t **tokenizer);

/* ------------------------------------------------------------------------------------------------
 * Dataset: a token stream cut into windows
 * --------------------------------------------------------------------------------------------- */

/** A token stream with a deterministic, resumable order. */
typedef struct nn_dataset nn_dataset_t;

/** Options of the nn_dataset_ constructors. */
typedef struct nn_dataset_options_t {
  size_t struct_size; /**< sizeof this struct. */
  int64_t batch;   /**< Sequences per batch. 0: 1. */
  int64_t seq_len; /**< Tokens per sequence. Required. */
  int64_t begin;   /**< First token of the stream to use. */
  int64_t end;     /**< One past the last. 0: the end of the stream. */
  int32_t shuffle; /**< 0: every window in order, each target once an epoch; the last window and the
                        last batch are filled up with targets of -1. 1: in each epoch windows begin
                        at a random phase and come in a random order, all of them whole; a batch may
                        span two epochs. */
  uint64_t seed;   /**< Of the shuffle. */
} nn_dataset_options_t;

/** Opens a text file, encoded whole by a tokenizer, which may be destroyed then (NULL: bytes). With
 *  NULL the file stays mapped while the dataset lives, and must not be truncated. */
NN_API nn_status_t nn_dataset_open_text(const char *path, const nn_tokenizer_t *tokenizer,
                                        const nn_dataset_options_t *options,
                                        nn_dataset_t **dataset);

/** Opens an llm.c token file (magic 20240520, version 1, uint16 ids). The file stays mapped while
 *  the dataset lives, and must not be truncated. */
NN_API nn_status_t nn_dataset_open_tokens(const char *path, const nn_dataset_options_t *options,
                                          nn_dataset_t **dataset);

/** Makes a dataset of a copy of count ids, none negative. */
NN_API nn_status_t nn_dataset_from_tokens(const int32_t *ids, int64_t count,
                                          const nn_dataset_options_t *options,
                                          nn_dataset_t **dataset);

/** Writes ids to an llm.c token file, which nn_dataset_open_tokens() reads. NN_ERR_UNSUPPORTED: an
 *  id is not below 65,536, or there are more than 2^31 - 1. */
NN_API nn_status_t nn_dataset_save_tokens(const char *path, const int32_t *ids, int64_t count);

/** Gives the handle back. */
NN_API void nn_dataset_destroy(nn_dataset_t *dataset);

/** Sizes of a dataset; written by nn_dataset_info(). */
typedef struct nn_dataset_info_t {
  size_t struct_size; /**< sizeof this struct. */
  int64_t tokens;   /**< Tokens between begin and end. */
  int64_t windows;  /**< Windows in an epoch. */
  int64_t batches;  /**< Batches that cover an epoch, rounded up. */
  int32_t max_id;   /**< Largest id in the stream between begin and end. */
} nn_dataset_info_t;

/** Describes a dataset. */
NN_API nn_status_t nn_dataset_info(const nn_dataset_t *dataset, nn_dataset_info_t *info);

/** The next batch. The stream never ends: epoch follows epoch.
 *  @param tokens  [batch, seq_len] receives ids.
 *  @param targets [batch, seq_len] receives the id after each, or -1 where there is none. */
NN_API nn_status_t nn_dataset_next(nn_dataset_t *dataset, int32_t *tokens, int32_t *targets);

/** Batches taken so far; 0 for NULL. With the same file, options and position, the same batches
 *  follow. */
NN_API int64_t nn_dataset_position(const nn_dataset_t *dataset);

/** Goes to a position that nn_dataset_position() gave, or any other at least 0. */
NN_API nn_status_t nn_dataset_seek(nn_dataset_t *dataset, int64_t position);

/* ------------------------------------------------------------------------------------------------
 * Session: a key-value cache and a sampler over a model
 * --------------------------------------------------------------------------------------------- */

/** Sequences being served by a model; several sessions may share one model. */
typedef struct nn_session nn_session_t;

/** Allocates the cache and workspace of a session. Each of its calls sees the parameters as they
 *  are when it takes its turn on the device (nn_session_generate() takes one for each token), never
 *  half updated. A session drops no tokens whatever the capacity factor. */
NN_API nn_status_t nn_session_create(nn_model_t *model, const nn_session_options_t *options,
                                     nn_session_t **session);

/** Gives the handle back. */
NN_API void nn_session_destroy(nn_session_t *session);

/** Appends tokens to a sequence and computes them.
 *  @param sequence 0 to batch - 1.
 *  @param tokens   [count] ids in [0, vocab_size).
 *  @param count    at least 1. Past max_len: NN_ERR_CAPACITY, and nothing is appended.
 *  @param logits   [vocab_size] receives those after the last token, or NULL. */
NN_API nn_status_t nn_session_prefill(nn_session_t *session, int64_t sequence,
                                      const int32_t *tokens, int64_t count, float *logits);

/** Appends one token to each sequence and computes them together.
 *  @param tokens [batch] ids; a negative one leaves its sequence alone. Past max_len in any:
 *                NN_ERR_CAPACITY, and nothing is appended.
 *  @param logits [batch, vocab_size] receives logits (rows of sequences left alone are not
 *                written), or NULL. */
NN_API nn_status_t nn_session_decode(nn_session_t *session, const int32_t *tokens, float *logits);

/** Tokens in a sequence; 0 for NULL or a sequence out of range. */
NN_API int64_t nn_session_length(const nn_session_t *session, int64_t sequence);

/** Shortens a sequence to its first length tokens; 0 empties it. */
NN_API nn_status_t nn_session_truncate(nn_session_t *session, int64_t sequence, int64_t length);

/** How the next token is chosen. All zero: greedy. Filters apply in this order: repetition penalty,
 *  temperature, top-k, top-p, min-p. */
typedef struct nn_sample_options_t {
  size_t struct_size; /**< sizeof this struct. */
  float temperature;        /**< Divides the logits. 0: greedy: the largest, lowest id first. */
  int32_t top_k;            /**< Keep the k largest. 0: all. */
  float top_p;              /**< Keep the fewest whose probabilities reach p (Holtzman et al.,
                                 2020). 0 or 1: all. */
  float min_p;              /**< Drop those below min_p times the largest probability. 0: none. */
  float repetition_penalty; /**< Logits of ids already in the sequence are divided by it when
                                 positive, multiplied when negative (Keskar et al., 2019). 0: 1. */
  uint64_t seed;            /**< At a given length of a sequence the choice depends on this alone.
                                 */
} nn_sample_options_t;

/** Chooses a token from the logits after a sequence's last token, without appending it.
 *  NN_ERR_STATE: the sequence is empty, was truncated since, or its last call failed midway.
 *  NN_ERR_NONFINITE: a logit is NaN, as parameters that are not numbers make it. */
NN_API nn_status_t nn_session_sample(nn_session_t *session, int64_t sequence,
                                     const nn_sample_options_t *options, int32_t *token);

/** Receives each generated token; index counts from 0. Return non-zero to stop after it. */
typedef int32_t (*nn_token_fn)(int32_t token, int64_t index, void *user);

/** Options of nn_session_generate(). */
typedef struct nn_generate_options_t {
  size_t struct_size; /**< sizeof this struct. */
  const nn_sample_options_t *sampling; /**< NULL: greedy. */
  int64_t max_tokens;       /**< Most tokens to make. 0: as many as fit. */
  const int32_t *stop_ids;  /**< [stop_count] ids of the vocabulary that end the text and are not
                                 part of it. */
  int64_t stop_count;       /**< Entries of stop_ids. */
  nn_token_fn on_token;     /**< Called for every token made, or NULL. */
  void *on_token_user;      /**< Passed to on_token. */
} nn_generate_options_t;

/** Why generation ended. */
enum {
  NN_STOP_LENGTH = 1,  /**< max_tokens were made, or the caller's buffer is full. */
  NN_STOP_ID = 2,      /**< A stop id was chosen. */
  NN_STOP_CALLBACK = 3, /**< on_token asked for it. */
  NN_STOP_CONTEXT = 4  /**< The sequence reached max_len. */
};

/** Prefills a prompt and generates after it.
 *  @param prompt  [prompt_count] appended first; may be empty when the sequence is not.
 *  @param tokens  [capacity] receives the generated ids. capacity 0: on_token alone hears of them.
 *  @param count   receives how many were made. On failure it and tokens hold what was made.
 *  @param reason  receives an NN_STOP_ value, or NULL.
 *  After NN_STOP_ID every made token is part of the sequence; otherwise all but the last, which is
 *  the prompt to go on with. After a failure nn_session_length() tells. */
NN_API nn_status_t nn_session_generate(nn_session_t *session, int64_t sequence,
                                       const int32_t *prompt, int64_t prompt_count,
                                       const nn_generate_options_t *options, int32_t *tokens,
                                       int64_t capacity, int64_t *count, int32_t *reason);

/** As nn_model_expert_stats(), over this session's calls since its creation. */
NN_API nn_status_t nn_session_expert_stats(const nn_session_t *session, int64_t layer,
                                           int64_t *counts, double *mean_prob,
                                           nn_expert_stats_t *stats);

#ifdef __cplusplus
}
#endif

#endif /* MOENN_H */
