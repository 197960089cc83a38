package moenn

// #include "bridge.h"
import "C"

import "unsafe"

// Family says whose parameter names, shapes and config.json keys a saved folder carries.
type Family int32

// Families.
const (
	FamilyMixtral Family = C.NN_FAMILY_MIXTRAL // The mixture-of-experts transformer.
	FamilyGPT2    Family = C.NN_FAMILY_GPT2    // Dense.
)

// Biases is a mask of the linear layers of a block that have a bias.
type Biases int32

// Biases.
const (
	BiasNone Biases = C.NN_BIAS_NONE
	BiasQKV  Biases = C.NN_BIAS_QKV // Query, key and value projections.
	BiasO    Biases = C.NN_BIAS_O   // Attention's output projection.
	BiasFFN  Biases = C.NN_BIAS_FFN // The feed-forward network's.
	BiasAll  Biases = C.NN_BIAS_ALL
)

// Norm is a normalisation.
type Norm int32

// Normalisations.
const (
	NormRMS   Norm = C.NN_NORM_RMS
	NormLayer Norm = C.NN_NORM_LAYER
)

// Position says how positions enter.
type Position int32

// Positions.
const (
	PositionRoPE    Position = C.NN_POSITION_ROPE
	PositionLearned Position = C.NN_POSITION_LEARNED
)

// FFN is a kind of feed-forward network.
type FFN int32

// Feed-forward networks.
const (
	FFNSwiGLU   FFN = C.NN_FFN_SWIGLU
	FFNGELUTanh FFN = C.NN_FFN_GELU_TANH
)

// AuxLoss is a normalisation of the load-balancing loss.
type AuxLoss int32

// Load-balancing losses.
const (
	AuxSwitch AuxLoss = C.NN_AUX_SWITCH // Summed over layers.
	AuxJoint  AuxLoss = C.NN_AUX_JOINT  // Of all layers' averages, as transformers computes it.
)

// Config is a model's architecture. Begin with [Preset] or [ParseConfig], or set fields by hand; zero
// means the default that moenn.h gives. VocabSize, Context, Layers, Hidden, Heads and FFN have none.
type Config struct {
	Family         Family
	Norm           Norm
	Position       Position
	FFNKind        FFN
	VocabSize      int
	Context        int // Longest sequence trained.
	Layers         int
	Hidden         int
	Heads          int
	KVHeads        int // 0: Heads.
	HeadDim        int // 0: Hidden / Heads.
	FFN            int // Width inside the FFN (of one expert).
	Experts        int // Per layer. 0: a dense FFN.
	TopK           int // Experts per token.
	Biases         Biases
	TiedHead       bool
	NormEps        float32 // 0: 1e-5.
	RoPETheta      float32 // 0: 10000.
	RoPENTKAlpha   float32 // How many times its context a session may stretch the model. 0: 1.
	InitStd        float32 // 0: 0.02.
	AuxLossCoef    float32 // 0: none.
	AuxLoss        AuxLoss
	ZLossCoef      float32 // 0: none.
	CapacityFactor float32 // 0: no slot is dropped.
}

func (config *Config) c() C.nn_model_config_t {
	return C.nn_model_config_t{
		struct_size: C.sizeof_nn_model_config_t,
		family:      C.int32_t(config.Family), norm: C.int32_t(config.Norm),
		position: C.int32_t(config.Position), ffn_kind: C.int32_t(config.FFNKind),
		vocab_size: C.int64_t(config.VocabSize), context: C.int64_t(config.Context),
		layers: C.int64_t(config.Layers), hidden: C.int64_t(config.Hidden),
		heads: C.int64_t(config.Heads), kv_heads: C.int64_t(config.KVHeads),
		head_dim: C.int64_t(config.HeadDim), ffn: C.int64_t(config.FFN),
		experts: C.int64_t(config.Experts), top_k: C.int64_t(config.TopK),
		biases: C.int32_t(config.Biases), tied_head: toInt32(config.TiedHead),
		norm_eps: C.float(config.NormEps), rope_theta: C.float(config.RoPETheta),
		rope_ntk_alpha: C.float(config.RoPENTKAlpha), init_std: C.float(config.InitStd),
		aux_loss_coef: C.float(config.AuxLossCoef), aux_loss: C.int32_t(config.AuxLoss),
		z_loss_coef: C.float(config.ZLossCoef), capacity_factor: C.float(config.CapacityFactor),
	}
}

func configOf(c *C.nn_model_config_t) Config {
	return Config{
		Family: Family(c.family), Norm: Norm(c.norm), Position: Position(c.position),
		FFNKind: FFN(c.ffn_kind), VocabSize: int(c.vocab_size), Context: int(c.context),
		Layers: int(c.layers), Hidden: int(c.hidden), Heads: int(c.heads), KVHeads: int(c.kv_heads),
		HeadDim: int(c.head_dim), FFN: int(c.ffn), Experts: int(c.experts), TopK: int(c.top_k),
		Biases: Biases(c.biases), TiedHead: c.tied_head != 0, NormEps: float32(c.norm_eps),
		RoPETheta: float32(c.rope_theta), RoPENTKAlpha: float32(c.rope_ntk_alpha),
		InitStd: float32(c.init_std), AuxLossCoef: float32(c.aux_loss_coef),
		AuxLoss: AuxLoss(c.aux_loss), ZLossCoef: float32(c.z_loss_coef),
		CapacityFactor: float32(c.capacity_factor),
	}
}

func getConfig(f func(*C.nn_model_config_t) C.nn_status_t) (Config, error) {
	c := C.nn_model_config_t{struct_size: C.sizeof_nn_model_config_t}
	if err := call(func() C.nn_status_t { return f(&c) }); err != nil {
		return Config{}, err
	}
	return configOf(&c), nil
}

// Preset is a configuration by name: "tiny", "small", "moe-6.9b", "gpt2-124m", ...
func Preset(name string) (Config, error) {
	cname, err := cstring(name)
	if err != nil {
		return Config{}, err
	}
	return getConfig(func(c *C.nn_model_config_t) C.nn_status_t { return C.nn_config_preset(cname, c) })
}

// ParseConfig reads the text of a Hugging Face config.json.
func ParseConfig(json []byte) (Config, error) {
	if len(json) == 0 {
		return Config{}, &Error{Status: ErrFormat, Message: "config.json: empty"}
	}
	return getConfig(func(c *C.nn_model_config_t) C.nn_status_t {
		return C.nn_config_from_json((*C.char)(first(json)), C.size_t(len(json)), c)
	})
}

// JSON writes config.json text.
func (config Config) JSON() ([]byte, error) {
	c := config.c()
	text := make([]byte, 2048)
	for {
		var required C.size_t
		err := call(func() C.nn_status_t {
			return C.nn_config_to_json(&c, (*C.char)(first(text)), C.size_t(len(text)), &required)
		})
		if int(required) <= len(text) {
			if err != nil {
				return nil, err
			}
			return text[:required-1], nil // without the NUL
		}
		text = make([]byte, required)
	}
}

// Validate checks the configuration and writes the defaults in place of zeros.
func (config *Config) Validate() error {
	c := config.c()
	err := call(func() C.nn_status_t { return C.nn_config_validate(&c) })
	if err == nil {
		*config = configOf(&c)
	}
	return err
}

// Recompute says which activations are computed again in backward instead of kept.
type Recompute int32

// Recomputation.
const (
	RecomputeNone  Recompute = C.NN_RECOMPUTE_NONE
	RecomputeBlock Recompute = C.NN_RECOMPUTE_BLOCK // Each block, from its input.
	RecomputeFFN   Recompute = C.NN_RECOMPUTE_FFN   // Inside the feed-forward networks.
)

// TrainOptions is the shape of training batches.
type TrainOptions struct {
	Batch     int // Most sequences in one call. 0: 1.
	SeqLen    int // Most tokens in a sequence. 0: the context.
	Recompute Recompute
}

func (options *TrainOptions) c() *C.nn_train_options_t {
	if options == nil {
		return nil
	}
	return &C.nn_train_options_t{
		struct_size: C.sizeof_nn_train_options_t, batch: C.int64_t(options.Batch),
		seq_len: C.int64_t(options.SeqLen), recompute: C.int32_t(options.Recompute),
	}
}

// SessionOptions are the options of [Model.NewSession].
type SessionOptions struct {
	Batch        int // Sequences held side by side. 0: 1.
	MaxLen       int // Most tokens in a sequence. 0: the context.
	PrefillChunk int // Prompt tokens computed at once. 0: 256.
}

func (options *SessionOptions) c() *C.nn_session_options_t {
	if options == nil {
		return nil
	}
	return &C.nn_session_options_t{
		struct_size: C.sizeof_nn_session_options_t, batch: C.int64_t(options.Batch),
		max_len: C.int64_t(options.MaxLen), prefill_chunk: C.int64_t(options.PrefillChunk),
	}
}

// Plan is the exact number of device bytes that a job takes, by category.
type Plan struct {
	Parameters       int64 // Parameters in all.
	ActiveParameters int64 // Parameters that multiply one token.
	ParameterBytes   int64
	MasterBytes      int64 // What bf16 parameters lack of their fp32 masters.
	GradientBytes    int64
	OptimizerBytes   int64
	ActivationBytes  int64
	WorkspaceBytes   int64
	CacheBytes       int64
	TotalBytes       int64 // Sum of the bytes above.
}

func (d *Device) plan(f func(*C.nn_plan_t) C.nn_status_t) (Plan, error) {
	c := C.nn_plan_t{struct_size: C.sizeof_nn_plan_t}
	err := d.with(func() error { return call(func() C.nn_status_t { return f(&c) }) })
	return Plan{
		Parameters: int64(c.parameters), ActiveParameters: int64(c.active_parameters),
		ParameterBytes: int64(c.parameter_bytes), MasterBytes: int64(c.master_bytes),
		GradientBytes: int64(c.gradient_bytes), OptimizerBytes: int64(c.optimizer_bytes),
		ActivationBytes: int64(c.activation_bytes), WorkspaceBytes: int64(c.workspace_bytes),
		CacheBytes: int64(c.cache_bytes), TotalBytes: int64(c.total_bytes),
	}, err
}

// PlanTraining counts the bytes to train: model, gradients, AdamW and batches of a shape.
func (d *Device) PlanTraining(config Config, dtype DType, options *TrainOptions) (Plan, error) {
	c := config.c()
	return d.plan(func(plan *C.nn_plan_t) C.nn_status_t {
		return C.nn_plan_training(d.ptr, &c, C.int32_t(dtype), options.c(), plan)
	})
}

// PlanInference counts the bytes to serve: model and one session.
func (d *Device) PlanInference(config Config, dtype DType, options *SessionOptions) (Plan, error) {
	c := config.c()
	return d.plan(func(plan *C.nn_plan_t) C.nn_status_t {
		return C.nn_plan_inference(d.ptr, &c, C.int32_t(dtype), options.c(), plan)
	})
}

// cstring is a name or path for C to read during a call.
func cstring(s string) (*C.char, error) {
	bytes := make([]byte, len(s)+1)
	for i := range bytes[:copy(bytes, s)] {
		if bytes[i] == 0 {
			return nil, argumentError("%q holds a NUL byte", s)
		}
	}
	return (*C.char)(unsafe.Pointer(&bytes[0])), nil
}
