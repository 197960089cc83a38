package moenn

// #include "bridge.h"
import "C"

import "unsafe"

// Family says whose parameter names, shapes and config.json keys a saved folder carries.
type Family int32

// Families.
const (
	FamilyMixtral    Family = C.NN_FAMILY_MIXTRAL // The mixture-of-experts transformer.
	FamilyGPT2       Family = C.NN_FAMILY_GPT2    // Dense.
	FamilyLlama      Family = C.NN_FAMILY_LLAMA
	FamilyMistral    Family = C.NN_FAMILY_MISTRAL
	FamilyQwen2      Family = C.NN_FAMILY_QWEN2
	FamilyQwen3      Family = C.NN_FAMILY_QWEN3
	FamilyOLMoE      Family = C.NN_FAMILY_OLMOE
	FamilyQwen2MoE   Family = C.NN_FAMILY_QWEN2_MOE
	FamilyQwen3MoE   Family = C.NN_FAMILY_QWEN3_MOE
	FamilyGraniteMoE Family = C.NN_FAMILY_GRANITEMOE
	FamilyGPTOSS     Family = C.NN_FAMILY_GPT_OSS
	FamilyDeepSeekV2 Family = C.NN_FAMILY_DEEPSEEK_V2
	FamilyDeepSeekV3 Family = C.NN_FAMILY_DEEPSEEK_V3
	FamilyGLM4MoE    Family = C.NN_FAMILY_GLM4_MOE
	FamilyPhiMoE     Family = C.NN_FAMILY_PHIMOE
)

// Biases is a mask of the linear layers of a block that have a bias.
type Biases int32

// Biases.
const (
	BiasNone   Biases = C.NN_BIAS_NONE
	BiasQKV    Biases = C.NN_BIAS_QKV    // Query, key and value projections.
	BiasO      Biases = C.NN_BIAS_O      // Attention's output projection.
	BiasFFN    Biases = C.NN_BIAS_FFN    // The feed-forward network's.
	BiasAll    Biases = C.NN_BIAS_ALL    // The three above.
	BiasRouter Biases = C.NN_BIAS_ROUTER // The router's.
	BiasHead   Biases = C.NN_BIAS_HEAD   // The head's.
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
	FFNSwiGLU        FFN = C.NN_FFN_SWIGLU
	FFNGELUTanh      FFN = C.NN_FFN_GELU_TANH
	FFNSwiGLUClamped FFN = C.NN_FFN_SWIGLU_CLAMPED
)

// AuxLoss is a normalisation of the load-balancing loss.
type AuxLoss int32

// Load-balancing losses.
const (
	AuxSwitch AuxLoss = C.NN_AUX_SWITCH // Summed over layers.
	AuxJoint  AuxLoss = C.NN_AUX_JOINT  // Of all layers' averages, as transformers computes it.
)

// QKNorm says which norm queries and keys have.
type QKNorm int32

// Norms of queries and keys.
const (
	QKNormNone QKNorm = C.NN_QK_NORM_NONE
	QKNormHead QKNorm = C.NN_QK_NORM_HEAD // Of each head.
	QKNormFull QKNorm = C.NN_QK_NORM_FULL // Of the whole row.
)

// Score is what a router makes of its logits.
type Score int32

// Scores.
const (
	ScoreSoftmax     Score = C.NN_SCORE_SOFTMAX
	ScoreSigmoid     Score = C.NN_SCORE_SIGMOID
	ScoreSparseMixer Score = C.NN_SCORE_SPARSE_MIXER
)

// RouterNorm says what becomes of the chosen experts' scores.
type RouterNorm int32

// Norms of weights.
const (
	RouterNormSum  RouterNorm = C.NN_ROUTER_NORM_SUM  // Divided by their sum.
	RouterNormNone RouterNorm = C.NN_ROUTER_NORM_NONE // Weights as they are.
)

// GroupScore is how experts' scores make their group's.
type GroupScore int32

// Group scores.
const (
	GroupMax  GroupScore = C.NN_GROUP_MAX
	GroupTop2 GroupScore = C.NN_GROUP_TOP2 // The sum of the two largest.
)

// RoPEScaling is how RoPE is scaled to longer sequences.
type RoPEScaling int32

// Scalings of RoPE.
const (
	RoPENone    RoPEScaling = C.NN_ROPE_NONE
	RoPELinear  RoPEScaling = C.NN_ROPE_LINEAR
	RoPEDynamic RoPEScaling = C.NN_ROPE_DYNAMIC
	RoPEYaRN    RoPEScaling = C.NN_ROPE_YARN
	RoPELlama3  RoPEScaling = C.NN_ROPE_LLAMA3
	RoPELong    RoPEScaling = C.NN_ROPE_LONG
)

// Config is a model's architecture. Begin with [Preset] or [ParseConfig], or set fields by hand;
// zero means the default that moenn.h gives. VocabSize, Context, Layers, Hidden, Heads and FFN have
// none.
type Config struct {
	Family              Family
	Norm                Norm
	Position            Position
	FFNKind             FFN
	VocabSize           int
	Context             int // Longest sequence trained.
	Layers              int
	Hidden              int
	Heads               int
	KVHeads             int // 0: Heads.
	HeadDim             int // 0: Hidden / Heads.
	FFN                 int // Width inside the FFN (of one expert).
	Experts             int // Per layer. 0: a dense FFN.
	TopK                int // Experts per token.
	Biases              Biases
	TiedHead            bool
	NormEps             float32 // 0: 1e-5.
	RoPETheta           float32 // 0: 10000.
	RoPENTKAlpha        float32 // How many times its context a session may stretch the model. 0: 1.
	InitStd             float32 // 0: 0.02.
	AuxLossCoef         float32 // 0: none.
	AuxLoss             AuxLoss
	ZLossCoef           float32   // 0: none.
	CapacityFactor      float32   // 0: no slot is dropped.
	DenseFFN            int       // Width inside the FFN of a mixture's dense layers. 0: FFN.
	DenseLayers         [4]uint64 // Bit l%64 of word l/64: layer l has a dense FFN.
	Window              int       // A query sees this many keys. 0: all.
	WindowLayers        [4]uint64 // Bits as in DenseLayers. All zero: every layer.
	QKNorm              QKNorm
	QKVClip             float32 // 0: none.
	SharedFFN           int     // Width of the shared expert. 0: none.
	SharedGate          bool    // The shared expert has a gate.
	RouterScore         Score
	RouterNorm          RouterNorm
	RouterScale         float32 // 0: 1.
	RouterChoiceBias    bool    // A bias for the choice of experts alone.
	RouterGroupScore    GroupScore
	RouterGroups        int // 0: one group.
	RouterTopGroups     int
	RouterEps           float32 // Of ScoreSparseMixer.
	AttentionSinks      bool
	EmbeddingScale      float32 // 0: 1.
	ResidualScale       float32 // 0: 1.
	AttentionScale      float32 // 0: 1 / sqrt(HeadDim).
	LogitScale          float32 // 0: 1.
	RotaryDim           int     // 0: HeadDim.
	RoPEInterleaved     bool
	RoPEScaling         RoPEScaling
	RoPEOriginalContext int // 0: Context.
	RoPEFactor          float32
	RoPEBetaFast        float32 // 0: 32.
	RoPEBetaSlow        float32 // 0: 1.
	RoPELowFreq         float32 // 0: 1.
	RoPEHighFreq        float32 // 0: 4.
	RoPEAttentionFactor float32
	RoPEMscale          float32
	RoPEMscaleAllDim    float32
	RoPENoTruncate      bool
	SwigluLimit         float32 // Of FFNSwiGLUClamped.
	QRank               int     // 0: queries are projected at once.
	KVRank              int     // 0: no latent attention.
	RoPEHeadDim         int
	ValueHeadDim        int // 0: HeadDim.
	RoPEShortMscale     float32
	RoPELongMscale      float32
	RoPEShortFactors    [128]float32 // RoPELong: one for each pair of rotated elements.
	RoPELongFactors     [128]float32 // The same for sequences longer than RoPEOriginalContext.
}

func layerWords(layers [4]uint64) (words [4]C.uint64_t) {
	for i, word := range layers {
		words[i] = C.uint64_t(word)
	}
	return
}

func layersOf(words [4]C.uint64_t) (layers [4]uint64) {
	for i, word := range words {
		layers[i] = uint64(word)
	}
	return
}

func cFactors(factors [128]float32) (c [128]C.float) {
	for i, factor := range factors {
		c[i] = C.float(factor)
	}
	return
}

func factorsOf(c [128]C.float) (factors [128]float32) {
	for i, factor := range c {
		factors[i] = float32(factor)
	}
	return
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
		dense_ffn:             C.int64_t(config.DenseFFN),
		dense_layers:          layerWords(config.DenseLayers),
		window:                C.int64_t(config.Window),
		window_layers:         layerWords(config.WindowLayers),
		qk_norm:               C.int32_t(config.QKNorm),
		qkv_clip:              C.float(config.QKVClip),
		shared_ffn:            C.int64_t(config.SharedFFN),
		shared_gate:           toInt32(config.SharedGate),
		router_score:          C.int32_t(config.RouterScore),
		router_norm:           C.int32_t(config.RouterNorm),
		router_scale:          C.float(config.RouterScale),
		router_choice_bias:    toInt32(config.RouterChoiceBias),
		router_group_score:    C.int32_t(config.RouterGroupScore),
		router_groups:         C.int64_t(config.RouterGroups),
		router_top_groups:     C.int64_t(config.RouterTopGroups),
		router_eps:            C.float(config.RouterEps),
		attention_sinks:       toInt32(config.AttentionSinks),
		embedding_scale:       C.float(config.EmbeddingScale),
		residual_scale:        C.float(config.ResidualScale),
		attention_scale:       C.float(config.AttentionScale),
		logit_scale:           C.float(config.LogitScale),
		rotary_dim:            C.int64_t(config.RotaryDim),
		rope_interleaved:      toInt32(config.RoPEInterleaved),
		rope_scaling:          C.int32_t(config.RoPEScaling),
		rope_original_context: C.int64_t(config.RoPEOriginalContext),
		rope_factor:           C.float(config.RoPEFactor),
		rope_beta_fast:        C.float(config.RoPEBetaFast),
		rope_beta_slow:        C.float(config.RoPEBetaSlow),
		rope_low_freq:         C.float(config.RoPELowFreq),
		rope_high_freq:        C.float(config.RoPEHighFreq),
		rope_attention_factor: C.float(config.RoPEAttentionFactor),
		rope_mscale:           C.float(config.RoPEMscale),
		rope_mscale_all_dim:   C.float(config.RoPEMscaleAllDim),
		rope_no_truncate:      toInt32(config.RoPENoTruncate),
		swiglu_limit:          C.float(config.SwigluLimit),
		q_rank:                C.int64_t(config.QRank),
		kv_rank:               C.int64_t(config.KVRank),
		rope_head_dim:         C.int64_t(config.RoPEHeadDim),
		value_head_dim:        C.int64_t(config.ValueHeadDim),
		rope_short_mscale:     C.float(config.RoPEShortMscale),
		rope_long_mscale:      C.float(config.RoPELongMscale),
		rope_short_factors:    cFactors(config.RoPEShortFactors),
		rope_long_factors:     cFactors(config.RoPELongFactors),
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
		CapacityFactor:      float32(c.capacity_factor),
		DenseFFN:            int(c.dense_ffn),
		DenseLayers:         layersOf(c.dense_layers),
		Window:              int(c.window),
		WindowLayers:        layersOf(c.window_layers),
		QKNorm:              QKNorm(c.qk_norm),
		QKVClip:             float32(c.qkv_clip),
		SharedFFN:           int(c.shared_ffn),
		SharedGate:          c.shared_gate != 0,
		RouterScore:         Score(c.router_score),
		RouterNorm:          RouterNorm(c.router_norm),
		RouterScale:         float32(c.router_scale),
		RouterChoiceBias:    c.router_choice_bias != 0,
		RouterGroupScore:    GroupScore(c.router_group_score),
		RouterGroups:        int(c.router_groups),
		RouterTopGroups:     int(c.router_top_groups),
		RouterEps:           float32(c.router_eps),
		AttentionSinks:      c.attention_sinks != 0,
		EmbeddingScale:      float32(c.embedding_scale),
		ResidualScale:       float32(c.residual_scale),
		AttentionScale:      float32(c.attention_scale),
		LogitScale:          float32(c.logit_scale),
		RotaryDim:           int(c.rotary_dim),
		RoPEInterleaved:     c.rope_interleaved != 0,
		RoPEScaling:         RoPEScaling(c.rope_scaling),
		RoPEOriginalContext: int(c.rope_original_context),
		RoPEFactor:          float32(c.rope_factor),
		RoPEBetaFast:        float32(c.rope_beta_fast),
		RoPEBetaSlow:        float32(c.rope_beta_slow),
		RoPELowFreq:         float32(c.rope_low_freq),
		RoPEHighFreq:        float32(c.rope_high_freq),
		RoPEAttentionFactor: float32(c.rope_attention_factor),
		RoPEMscale:          float32(c.rope_mscale),
		RoPEMscaleAllDim:    float32(c.rope_mscale_all_dim),
		RoPENoTruncate:      c.rope_no_truncate != 0,
		SwigluLimit:         float32(c.swiglu_limit),
		QRank:               int(c.q_rank),
		KVRank:              int(c.kv_rank),
		RoPEHeadDim:         int(c.rope_head_dim),
		ValueHeadDim:        int(c.value_head_dim),
		RoPEShortMscale:     float32(c.rope_short_mscale),
		RoPELongMscale:      float32(c.rope_long_mscale),
		RoPEShortFactors:    factorsOf(c.rope_short_factors),
		RoPELongFactors:     factorsOf(c.rope_long_factors),
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
	return getConfig(func(c *C.nn_model_config_t) C.nn_status_t {
		return C.nn_config_preset(cname, c)
	})
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
	MasterBytes      int64 // Of fp32 masters beside parameters of 16 bits.
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
