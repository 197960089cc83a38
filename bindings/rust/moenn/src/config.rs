//! Model configurations.
use std::ops::BitOr;
use std::os::raw::c_char;
use std::ptr;

use moenn_sys as sys;

use crate::error::{c_enum, c_string, check, int64, sized};
use crate::{DType, Device, Error, Plan, Result, SessionOptions, Status, TrainOptions};

c_enum! {
    /// Whose parameter names, shapes and config.json keys a saved folder carries.
    #[derive(Default)]
    Family {
        /// MixtralForCausalLM: the mixture-of-experts transformer.
        #[default]
        Mixtral = NN_FAMILY_MIXTRAL,
        /// GPT2LMHeadModel: dense.
        Gpt2 = NN_FAMILY_GPT2,
        /// LlamaForCausalLM: dense.
        Llama = NN_FAMILY_LLAMA,
        /// MistralForCausalLM: dense, with a window.
        Mistral = NN_FAMILY_MISTRAL,
        /// Qwen2ForCausalLM: dense, biases on q, k and v.
        Qwen2 = NN_FAMILY_QWEN2,
        /// Qwen3ForCausalLM: dense, a norm per head of q and k.
        Qwen3 = NN_FAMILY_QWEN3,
        /// OlmoeForCausalLM: experts, norms of whole rows of q and k.
        Olmoe = NN_FAMILY_OLMOE,
        /// Qwen2MoeForCausalLM: experts and a gated shared expert.
        Qwen2Moe = NN_FAMILY_QWEN2_MOE,
        /// Qwen3MoeForCausalLM: experts, a norm per head of q and k.
        Qwen3Moe = NN_FAMILY_QWEN3_MOE,
        /// GraniteMoeForCausalLM: experts, four multipliers.
        Granitemoe = NN_FAMILY_GRANITEMOE,
        /// GptOssForCausalLM: experts with biases, sinks, a window.
        GptOss = NN_FAMILY_GPT_OSS,
        /// DeepseekV2ForCausalLM: latent attention, shared experts.
        DeepseekV2 = NN_FAMILY_DEEPSEEK_V2,
        /// DeepseekV3ForCausalLM: the same, sigmoid routing in groups.
        DeepseekV3 = NN_FAMILY_DEEPSEEK_V3,
        /// Glm4MoeForCausalLM: sigmoid routing, shared experts.
        Glm4Moe = NN_FAMILY_GLM4_MOE,
        /// PhimoeForCausalLM: experts, LayerNorm, sparse mixer.
        Phimoe = NN_FAMILY_PHIMOE,
    }
}

c_enum! {
    /// Normalisation.
    #[derive(Default)]
    Norm {
        /// x / sqrt(mean(x^2) + eps) * w.
        #[default]
        Rms = NN_NORM_RMS,
        /// (x - mean) / sqrt(variance + eps) * w + b.
        Layer = NN_NORM_LAYER,
    }
}

c_enum! {
    /// How positions enter.
    #[derive(Default)]
    Position {
        /// Rotary, halves rotated against each other.
        #[default]
        Rope = NN_POSITION_ROPE,
        /// A learned vector added to the embedding.
        Learned = NN_POSITION_LEARNED,
    }
}

c_enum! {
    /// Kind of feed-forward network.
    #[derive(Default)]
    Ffn {
        /// down(silu(gate(x)) * up(x)).
        #[default]
        Swiglu = NN_FFN_SWIGLU,
        /// proj(gelu(fc(x))), gelu by its tanh approximation.
        GeluTanh = NN_FFN_GELU_TANH,
        /// down(g * sigmoid(1.702 g) * (u + 1)), gate and up clamped.
        SwigluClamped = NN_FFN_SWIGLU_CLAMPED,
    }
}

c_enum! {
    /// Normalisation of the load-balancing loss.
    #[derive(Default)]
    AuxLoss {
        /// Summed over layers, each over its own batch.
        #[default]
        Switch = NN_AUX_SWITCH,
        /// Of averages over all layers, as transformers computes it.
        Joint = NN_AUX_JOINT,
    }
}

c_enum! {
    /// Norms of queries and keys, before RoPE.
    #[derive(Default)]
    QkNorm {
        /// None.
        #[default]
        None = NN_QK_NORM_NONE,
        /// Of each head.
        Head = NN_QK_NORM_HEAD,
        /// Of the whole row of all heads.
        Full = NN_QK_NORM_FULL,
    }
}

c_enum! {
    /// What a router makes of its logits.
    #[derive(Default)]
    Score {
        /// Softmax over all experts.
        #[default]
        Softmax = NN_SCORE_SOFTMAX,
        /// Sigmoid of each logit.
        Sigmoid = NN_SCORE_SIGMOID,
        /// Top 1 twice, each time softmax over the logits near the largest.
        SparseMixer = NN_SCORE_SPARSE_MIXER,
    }
}

c_enum! {
    /// What becomes of the chosen experts' scores.
    #[derive(Default)]
    RouterNorm {
        /// Each is divided by their sum.
        #[default]
        Sum = NN_ROUTER_NORM_SUM,
        /// They are the weights.
        None = NN_ROUTER_NORM_NONE,
    }
}

c_enum! {
    /// How experts' scores make their group's.
    #[derive(Default)]
    GroupScore {
        /// The largest.
        #[default]
        Max = NN_GROUP_MAX,
        /// The sum of the two largest.
        Top2 = NN_GROUP_TOP2,
    }
}

c_enum! {
    /// How RoPE's angles are scaled to lengths beyond those trained.
    #[derive(Default)]
    RopeScaling {
        /// They are not.
        #[default]
        None = NN_ROPE_NONE,
        /// Frequencies divided by the factor.
        Linear = NN_ROPE_LINEAR,
        /// A base that grows with the sequence.
        Dynamic = NN_ROPE_DYNAMIC,
        /// By frequency.
        Yarn = NN_ROPE_YARN,
        /// By wavelength.
        Llama3 = NN_ROPE_LLAMA3,
        /// By a list of factors, another one beyond the original context.
        Long = NN_ROPE_LONG,
    }
}

/// Which linear layers of a block have a bias: a mask, joined with `|`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Biases(pub i32);

impl Biases {
    /// None.
    pub const NONE: Biases = Biases(sys::NN_BIAS_NONE as i32);
    /// Query, key and value projections.
    pub const QKV: Biases = Biases(sys::NN_BIAS_QKV as i32);
    /// Attention's output projection.
    pub const O: Biases = Biases(sys::NN_BIAS_O as i32);
    /// The feed-forward network's.
    pub const FFN: Biases = Biases(sys::NN_BIAS_FFN as i32);
    /// All of the three above.
    pub const ALL: Biases = Biases(sys::NN_BIAS_ALL as i32);
    /// The router's, part of its logits.
    pub const ROUTER: Biases = Biases(sys::NN_BIAS_ROUTER as i32);
    /// The head's.
    pub const HEAD: Biases = Biases(sys::NN_BIAS_HEAD as i32);
}

impl BitOr for Biases {
    type Output = Biases;
    fn bitor(self, other: Biases) -> Biases {
        Biases(self.0 | other.0)
    }
}

/// [`RopeScaling::Long`]: one factor for each frequency, and zeros behind them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RopeFactors(pub [f32; 128]);

impl Default for RopeFactors {
    fn default() -> RopeFactors {
        RopeFactors([0.0; 128])
    }
}

/// A model's architecture: a [preset](Config::preset), a [config.json](Config::from_json), or
/// members set by hand. Zero means the default given here; `vocab_size`, `context`, `layers`,
/// `hidden`, `heads` and `ffn` must be given.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Config {
    /// Whose names a saved folder carries.
    pub family: Family,
    /// Normalisation.
    pub norm: Norm,
    /// How positions enter.
    pub position: Position,
    /// Kind of feed-forward network.
    pub ffn_kind: Ffn,
    /// Rows of the embedding and of the head.
    pub vocab_size: usize,
    /// Longest sequence trained.
    pub context: usize,
    /// Blocks, at most 65,536.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Query heads.
    pub heads: usize,
    /// Key-value heads; divides heads. 0: heads.
    pub kv_heads: usize,
    /// Width of a head, at most 256, even with RoPE. 0: hidden / heads.
    pub head_dim: usize,
    /// Width inside the feed-forward network (of one expert).
    pub ffn: usize,
    /// Experts per layer, at most 1024. 0: a dense feed-forward network.
    pub experts: usize,
    /// Experts per token, at most 64. Required with experts.
    pub top_k: usize,
    /// Which layers have a bias.
    pub biases: Biases,
    /// The head is the embedding.
    pub tied_head: bool,
    /// 0: 1e-5.
    pub norm_eps: f32,
    /// RoPE base. 0: 10000. With learned positions: must be 0.
    pub rope_theta: f32,
    /// How many times its context a session may stretch the model. 0: 1.
    pub rope_ntk_alpha: f32,
    /// Standard deviation of initial weights. 0: 0.02.
    pub init_std: f32,
    /// Weight of the load-balancing loss. 0: none.
    pub aux_loss_coef: f32,
    /// Normalisation of the load-balancing loss.
    pub aux_loss: AuxLoss,
    /// Weight of the router z-loss. 0: none.
    pub z_loss_coef: f32,
    /// An expert takes at most ceil(factor * tokens * top_k / experts) slots of a training batch.
    /// 0: any number.
    pub capacity_factor: f32,
    /// Width inside the FFN of a mixture's dense layers.
    pub dense_ffn: usize,
    /// Bit l % 64 of word l / 64: layer l of a mixture has a dense FFN instead of experts.
    pub dense_layers: [u64; 4],
    /// A query sees the last window keys, its own among them.
    pub window: usize,
    /// Which layers have the window, bits as in dense_layers; all zero: every layer.
    pub window_layers: [u64; 4],
    /// Norms of queries and keys.
    pub qk_norm: QkNorm,
    /// Queries, keys and values are clamped to +-qkv_clip, behind qk_norm.
    pub qkv_clip: f32,
    /// Width of the expert that every token of a mixture's sparse layers goes through.
    pub shared_ffn: usize,
    /// 1: what it gives is multiplied by sigmoid(<x, g>), g a parameter.
    pub shared_gate: bool,
    /// What the router makes of its logits.
    pub router_score: Score,
    /// What becomes of the chosen experts' scores.
    pub router_norm: RouterNorm,
    /// Multiplies experts' weights.
    pub router_scale: f32,
    /// 1: a parameter per expert is added to its score for the choice alone, has no gradient and is
    /// not trained.
    pub router_choice_bias: bool,
    /// How experts' scores make their group's.
    pub router_group_score: GroupScore,
    /// Experts are in this many groups of neighbours, and only those of the best router_top_groups
    /// are chosen from; divides experts.
    pub router_groups: usize,
    /// Required with router_groups, at most as many; 0 without.
    pub router_top_groups: usize,
    /// Of [`Score::SparseMixer`].
    pub router_eps: f32,
    /// 1: a parameter per query head joins its softmax as one more logit that has no value.
    pub attention_sinks: bool,
    /// Multiplies embeddings.
    pub embedding_scale: f32,
    /// Multiplies what attention and FFN add to the residual stream.
    pub residual_scale: f32,
    /// Multiplies attention's scores.
    pub attention_scale: f32,
    /// Multiplies logits.
    pub logit_scale: f32,
    /// RoPE rotates the first rotary_dim elements of a head, an even number.
    pub rotary_dim: usize,
    /// 0: element i is rotated against i + rotary_dim / 2.
    pub rope_interleaved: bool,
    /// How RoPE is scaled.
    pub rope_scaling: RopeScaling,
    /// Longest sequence trained before scaling.
    pub rope_original_context: usize,
    /// At least 1.
    pub rope_factor: f32,
    /// YaRN.
    pub rope_beta_fast: f32,
    /// YaRN.
    pub rope_beta_slow: f32,
    /// Llama 3.
    pub rope_low_freq: f32,
    /// Llama 3, above rope_low_freq.
    pub rope_high_freq: f32,
    /// YaRN: multiplies cosine and sine.
    pub rope_attention_factor: f32,
    /// YaRN.
    pub rope_mscale: f32,
    /// YaRN.
    pub rope_mscale_all_dim: f32,
    /// YaRN: 1: the ramp's ends are not rounded to whole dimensions.
    pub rope_no_truncate: bool,
    /// Of [`Ffn::SwigluClamped`], which needs it.
    pub swiglu_limit: f32,
    /// Latent attention (DeepSeek-AI, 2024): width of the queries' latent.
    pub q_rank: usize,
    /// Width of the latent of keys and values.
    pub kv_rank: usize,
    /// With kv_rank: how many of the head_dim elements of a query or key, the last ones, carry
    /// positions.
    pub rope_head_dim: usize,
    /// With kv_rank: width of a value, at most head_dim.
    pub value_head_dim: usize,
    /// LongRoPE: multiplies cosine and sine beside rope_short_factors.
    pub rope_short_mscale: f32,
    /// The same beside rope_long_factors.
    pub rope_long_mscale: f32,
    /// LongRoPE needs them.
    pub rope_short_factors: RopeFactors,
    /// The same for sequences longer than rope_original_context.
    pub rope_long_factors: RopeFactors,
}

impl Config {
    /// A configuration by name: "tiny", "small", "moe-6.9b", "gpt2-124m", "gpt2-350m", "gpt2-774m",
    /// "gpt2-1558m".
    pub fn preset(name: &str) -> Result<Config> {
        let name = c_string(name)?;
        Config::read(|raw| unsafe { sys::nn_config_preset(name.as_ptr(), raw) })
    }

    /// Reads the text of a Hugging Face config.json.
    pub fn from_json(text: &str) -> Result<Config> {
        Config::read(|raw| unsafe {
            sys::nn_config_from_json(text.as_ptr() as *const c_char, text.len(), raw)
        })
    }

    /// Writes config.json text.
    pub fn to_json(&self) -> Result<String> {
        let raw = self.raw();
        let mut required = 0;
        let status = unsafe { sys::nn_config_to_json(&raw, ptr::null_mut(), 0, &mut required) };
        if status != sys::NN_ERR_CAPACITY {
            check(status)?;
        }
        let mut text = vec![0u8; required];
        check(unsafe {
            sys::nn_config_to_json(
                &raw,
                text.as_mut_ptr() as *mut c_char,
                text.len(),
                &mut required,
            )
        })?;
        text.pop(); /* the NUL */
        String::from_utf8(text).map_err(|error| {
            Error::new(Status::Format, format!("config.json is not UTF-8: {error}"))
        })
    }

    /// Checks the configuration, and gives it with the defaults in place of zeros.
    pub fn validate(&self) -> Result<Config> {
        Config::read(|raw| unsafe {
            *raw = self.raw();
            sys::nn_config_validate(raw)
        })
    }

    /// Exact device bytes to train: model, gradients, AdamW and batches of a shape.
    pub fn plan_training(
        &self,
        device: &Device,
        dtype: DType,
        options: &TrainOptions,
    ) -> Result<Plan> {
        Plan::read(|plan| unsafe {
            sys::nn_plan_training(device.raw(), &self.raw(), dtype.raw(), &options.raw(), plan)
        })
    }

    /// Exact device bytes to serve: model and one session.
    pub fn plan_inference(
        &self,
        device: &Device,
        dtype: DType,
        options: &SessionOptions,
    ) -> Result<Plan> {
        Plan::read(|plan| unsafe {
            sys::nn_plan_inference(device.raw(), &self.raw(), dtype.raw(), &options.raw(), plan)
        })
    }

    pub(crate) fn read(
        write: impl FnOnce(*mut sys::nn_model_config_t) -> sys::nn_status_t,
    ) -> Result<Config> {
        let mut raw = sized!(nn_model_config_t {});
        check(write(&mut raw))?;
        Ok(Config {
            family: Family::from_raw(raw.family)?,
            norm: Norm::from_raw(raw.norm)?,
            position: Position::from_raw(raw.position)?,
            ffn_kind: Ffn::from_raw(raw.ffn_kind)?,
            vocab_size: raw.vocab_size as usize,
            context: raw.context as usize,
            layers: raw.layers as usize,
            hidden: raw.hidden as usize,
            heads: raw.heads as usize,
            kv_heads: raw.kv_heads as usize,
            head_dim: raw.head_dim as usize,
            ffn: raw.ffn as usize,
            experts: raw.experts as usize,
            top_k: raw.top_k as usize,
            biases: Biases(raw.biases),
            tied_head: raw.tied_head != 0,
            norm_eps: raw.norm_eps,
            rope_theta: raw.rope_theta,
            rope_ntk_alpha: raw.rope_ntk_alpha,
            init_std: raw.init_std,
            aux_loss_coef: raw.aux_loss_coef,
            aux_loss: AuxLoss::from_raw(raw.aux_loss)?,
            z_loss_coef: raw.z_loss_coef,
            capacity_factor: raw.capacity_factor,
            dense_ffn: raw.dense_ffn as usize,
            dense_layers: raw.dense_layers,
            window: raw.window as usize,
            window_layers: raw.window_layers,
            qk_norm: QkNorm::from_raw(raw.qk_norm)?,
            qkv_clip: raw.qkv_clip,
            shared_ffn: raw.shared_ffn as usize,
            shared_gate: raw.shared_gate != 0,
            router_score: Score::from_raw(raw.router_score)?,
            router_norm: RouterNorm::from_raw(raw.router_norm)?,
            router_scale: raw.router_scale,
            router_choice_bias: raw.router_choice_bias != 0,
            router_group_score: GroupScore::from_raw(raw.router_group_score)?,
            router_groups: raw.router_groups as usize,
            router_top_groups: raw.router_top_groups as usize,
            router_eps: raw.router_eps,
            attention_sinks: raw.attention_sinks != 0,
            embedding_scale: raw.embedding_scale,
            residual_scale: raw.residual_scale,
            attention_scale: raw.attention_scale,
            logit_scale: raw.logit_scale,
            rotary_dim: raw.rotary_dim as usize,
            rope_interleaved: raw.rope_interleaved != 0,
            rope_scaling: RopeScaling::from_raw(raw.rope_scaling)?,
            rope_original_context: raw.rope_original_context as usize,
            rope_factor: raw.rope_factor,
            rope_beta_fast: raw.rope_beta_fast,
            rope_beta_slow: raw.rope_beta_slow,
            rope_low_freq: raw.rope_low_freq,
            rope_high_freq: raw.rope_high_freq,
            rope_attention_factor: raw.rope_attention_factor,
            rope_mscale: raw.rope_mscale,
            rope_mscale_all_dim: raw.rope_mscale_all_dim,
            rope_no_truncate: raw.rope_no_truncate != 0,
            swiglu_limit: raw.swiglu_limit,
            q_rank: raw.q_rank as usize,
            kv_rank: raw.kv_rank as usize,
            rope_head_dim: raw.rope_head_dim as usize,
            value_head_dim: raw.value_head_dim as usize,
            rope_short_mscale: raw.rope_short_mscale,
            rope_long_mscale: raw.rope_long_mscale,
            rope_short_factors: RopeFactors(raw.rope_short_factors),
            rope_long_factors: RopeFactors(raw.rope_long_factors),
        })
    }

    pub(crate) fn raw(&self) -> sys::nn_model_config_t {
        sized!(nn_model_config_t {
            family: self.family.raw(),
            norm: self.norm.raw(),
            position: self.position.raw(),
            ffn_kind: self.ffn_kind.raw(),
            vocab_size: int64(self.vocab_size),
            context: int64(self.context),
            layers: int64(self.layers),
            hidden: int64(self.hidden),
            heads: int64(self.heads),
            kv_heads: int64(self.kv_heads),
            head_dim: int64(self.head_dim),
            ffn: int64(self.ffn),
            experts: int64(self.experts),
            top_k: int64(self.top_k),
            biases: self.biases.0,
            tied_head: self.tied_head as i32,
            norm_eps: self.norm_eps,
            rope_theta: self.rope_theta,
            rope_ntk_alpha: self.rope_ntk_alpha,
            init_std: self.init_std,
            aux_loss_coef: self.aux_loss_coef,
            aux_loss: self.aux_loss.raw(),
            z_loss_coef: self.z_loss_coef,
            capacity_factor: self.capacity_factor,
            dense_ffn: int64(self.dense_ffn),
            dense_layers: self.dense_layers,
            window: int64(self.window),
            window_layers: self.window_layers,
            qk_norm: self.qk_norm.raw(),
            qkv_clip: self.qkv_clip,
            shared_ffn: int64(self.shared_ffn),
            shared_gate: self.shared_gate as i32,
            router_score: self.router_score.raw(),
            router_norm: self.router_norm.raw(),
            router_scale: self.router_scale,
            router_choice_bias: self.router_choice_bias as i32,
            router_group_score: self.router_group_score.raw(),
            router_groups: int64(self.router_groups),
            router_top_groups: int64(self.router_top_groups),
            router_eps: self.router_eps,
            attention_sinks: self.attention_sinks as i32,
            embedding_scale: self.embedding_scale,
            residual_scale: self.residual_scale,
            attention_scale: self.attention_scale,
            logit_scale: self.logit_scale,
            rotary_dim: int64(self.rotary_dim),
            rope_interleaved: self.rope_interleaved as i32,
            rope_scaling: self.rope_scaling.raw(),
            rope_original_context: int64(self.rope_original_context),
            rope_factor: self.rope_factor,
            rope_beta_fast: self.rope_beta_fast,
            rope_beta_slow: self.rope_beta_slow,
            rope_low_freq: self.rope_low_freq,
            rope_high_freq: self.rope_high_freq,
            rope_attention_factor: self.rope_attention_factor,
            rope_mscale: self.rope_mscale,
            rope_mscale_all_dim: self.rope_mscale_all_dim,
            rope_no_truncate: self.rope_no_truncate as i32,
            swiglu_limit: self.swiglu_limit,
            q_rank: int64(self.q_rank),
            kv_rank: int64(self.kv_rank),
            rope_head_dim: int64(self.rope_head_dim),
            value_head_dim: int64(self.value_head_dim),
            rope_short_mscale: self.rope_short_mscale,
            rope_long_mscale: self.rope_long_mscale,
            rope_short_factors: self.rope_short_factors.0,
            rope_long_factors: self.rope_long_factors.0,
        })
    }
}
