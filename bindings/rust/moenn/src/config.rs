//! Model configurations and byte plans.
use std::ops::BitOr;
use std::os::raw::c_char;
use std::ptr;

use moenn_sys as sys;

use crate::error::{c_enum, c_string, check, int64, sized};
use crate::{DType, Device, Error, Result, SessionOptions, Status, TrainOptions};

c_enum! {
    /// Whose parameter names, shapes and config.json keys a saved folder carries.
    #[derive(Default)]
    Family {
        /// MixtralForCausalLM: the mixture-of-experts transformer.
        #[default]
        Mixtral = NN_FAMILY_MIXTRAL,
        /// GPT2LMHeadModel: dense.
        Gpt2 = NN_FAMILY_GPT2,
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
    /// All of them.
    pub const ALL: Biases = Biases(sys::NN_BIAS_ALL as i32);
}

impl BitOr for Biases {
    type Output = Biases;
    fn bitor(self, other: Biases) -> Biases {
        Biases(self.0 | other.0)
    }
}

/// A model's architecture: a [preset](Config::preset), a [config.json](Config::from_json), or members set
/// by hand. Zero means the default given here; `vocab_size`, `context`, `layers`, `hidden`, `heads` and
/// `ffn` must be given.
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
    /// Blocks.
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
    /// An expert takes at most ceil(factor * tokens * top_k / experts) slots of a training batch. 0: any
    /// number.
    pub capacity_factor: f32,
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
            sys::nn_config_to_json(&raw, text.as_mut_ptr() as *mut c_char, text.len(), &mut required)
        })?;
        text.pop(); /* the NUL */
        String::from_utf8(text)
            .map_err(|error| Error::new(Status::Format, format!("config.json is not UTF-8: {error}")))
    }

    /// Checks the configuration, and gives it with the defaults in place of zeros.
    pub fn validate(&self) -> Result<Config> {
        Config::read(|raw| unsafe {
            *raw = self.raw();
            sys::nn_config_validate(raw)
        })
    }

    /// Exact device bytes to train: model, gradients, AdamW and batches of a shape.
    pub fn plan_training(&self, device: &Device, dtype: DType, options: &TrainOptions) -> Result<Plan> {
        Plan::read(|plan| unsafe {
            sys::nn_plan_training(device.raw(), &self.raw(), dtype.raw(), &options.raw(), plan)
        })
    }

    /// Exact device bytes to serve: model and one session.
    pub fn plan_inference(&self, device: &Device, dtype: DType, options: &SessionOptions) -> Result<Plan> {
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
        })
    }
}

/// Exact device bytes of a job, by category.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Plan {
    /// Parameters in all.
    pub parameters: u64,
    /// Parameters that multiply one token.
    pub active_parameters: u64,
    /// The model's parameters.
    pub parameter_bytes: u64,
    /// What bf16 parameters lack of their fp32 masters.
    pub master_bytes: u64,
    /// Gradients.
    pub gradient_bytes: u64,
    /// Optimizer moments.
    pub optimizer_bytes: u64,
    /// Kept from forward for backward, and the residual streams.
    pub activation_bytes: u64,
    /// Scratch of operations, tables, staging of tokens.
    pub workspace_bytes: u64,
    /// Key-value cache.
    pub cache_bytes: u64,
    /// Sum of the byte members.
    pub total_bytes: u64,
}

impl Plan {
    fn read(write: impl FnOnce(*mut sys::nn_plan_t) -> sys::nn_status_t) -> Result<Plan> {
        let mut plan = sized!(nn_plan_t {});
        check(write(&mut plan))?;
        Ok(Plan {
            parameters: plan.parameters as u64,
            active_parameters: plan.active_parameters as u64,
            parameter_bytes: plan.parameter_bytes as u64,
            master_bytes: plan.master_bytes as u64,
            gradient_bytes: plan.gradient_bytes as u64,
            optimizer_bytes: plan.optimizer_bytes as u64,
            activation_bytes: plan.activation_bytes as u64,
            workspace_bytes: plan.workspace_bytes as u64,
            cache_bytes: plan.cache_bytes as u64,
            total_bytes: plan.total_bytes as u64,
        })
    }
}
