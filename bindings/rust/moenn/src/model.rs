//! Models: parameters, files, training passes.
use std::ops::ControlFlow;
use std::os::raw::{c_char, c_void};
use std::path::Path;
use std::ptr;

use moenn_sys as sys;

use crate::error::{c_enum, c_path, c_string, check, int64, sized, text};
use crate::handle::{Handle, Lent};
use crate::{Config, DType, Device, Error, Result, TensorView};

c_enum! {
    /// What is computed again in backward, to keep less.
    #[derive(Default)]
    Recompute {
        /// Nothing: every activation is kept.
        #[default]
        None = NN_RECOMPUTE_NONE,
        /// Blocks: only their inputs are kept.
        Block = NN_RECOMPUTE_BLOCK,
        /// What is inside the feed-forward networks.
        Ffn = NN_RECOMPUTE_FFN,
    }
}

/// Shape of training batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TrainOptions {
    /// Most sequences in one call. 0: 1.
    pub batch: usize,
    /// Most tokens in a sequence, at most the context. 0: the context.
    pub seq_len: usize,
    /// What is computed again in backward.
    pub recompute: Recompute,
}

impl TrainOptions {
    pub(crate) fn raw(&self) -> sys::nn_train_options_t {
        sized!(nn_train_options_t {
            batch: int64(self.batch),
            seq_len: int64(self.seq_len),
            recompute: self.recompute.raw(),
        })
    }
}

/// Receives the bytes done and the bytes in all; `Break` cancels the call. It must not use the
/// model that is being saved: being `Send`, it cannot hold a reference to it.
pub type ProgressFn<'a> = &'a mut (dyn FnMut(u64, u64) -> ControlFlow<()> + Send);

/// Options of loading and saving.
#[derive(Default)]
pub struct FileOptions<'a> {
    /// Most bytes of tensor data in a file of a saved folder. 0: 5 x 10^10.
    pub shard_bytes: u64,
    /// Called as bytes are read or written.
    pub progress: Option<ProgressFn<'a>>,
}

pub(crate) unsafe extern "C" fn on_progress(done: i64, total: i64, user: *mut c_void) -> i32 {
    unsafe { Lent::<ProgressFn>::run(user, |progress| progress(done as u64, total as u64)) }
}

impl FileOptions<'_> {
    /// Makes a call with the options as the library takes them.
    fn lend<T>(self, call: impl FnOnce(*const sys::nn_file_options_t) -> Result<T>) -> Result<T> {
        let mut raw = sized!(nn_file_options_t {
            shard_bytes: i64::try_from(self.shard_bytes).unwrap_or(i64::MAX)
        });
        let progress = match self.progress {
            Some(progress) => progress,
            None => return call(&raw),
        };
        let mut lent = Lent::<ProgressFn>::new(progress);
        raw.progress = Some(on_progress);
        raw.progress_user = lent.user();
        let result = call(&raw);
        lent.back();
        result
    }
}

/// Result of a pass with targets.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Loss {
    /// Cross-entropy in nats, mean over the targets that count.
    pub loss: f64,
    /// Load-balancing loss, coefficient included.
    pub aux_loss: f64,
    /// Router z-loss, coefficient included.
    pub z_loss: f64,
    /// Targets that counted.
    pub targets: u64,
}

impl Loss {
    fn read(write: impl FnOnce(*mut sys::nn_loss_t) -> sys::nn_status_t) -> Result<Loss> {
        let mut loss = sized!(nn_loss_t {});
        check(write(&mut loss))?;
        Ok(Loss {
            loss: loss.loss,
            aux_loss: loss.aux_loss,
            z_loss: loss.z_loss,
            targets: loss.targets as u64,
        })
    }
}

/// How evenly one layer's experts were used.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ExpertStats {
    /// Routed slots per expert.
    pub counts: Vec<i64>,
    /// Mean router probability per expert.
    pub mean_prob: Vec<f64>,
    /// Tokens routed since the counters were reset.
    pub tokens: u64,
    /// Slots that a capacity factor dropped.
    pub dropped: u64,
    /// Entropy of the experts' shares of slots over ln(experts): 1 is even.
    pub entropy: f64,
    /// Largest share of slots times experts: 1 is even.
    pub max_load: f64,
}

impl ExpertStats {
    pub(crate) fn read(
        experts: usize,
        write: impl FnOnce(*mut i64, *mut f64, *mut sys::nn_expert_stats_t) -> sys::nn_status_t,
    ) -> Result<ExpertStats> {
        let (mut counts, mut mean_prob) = (vec![0; experts], vec![0.0; experts]);
        let mut stats = sized!(nn_expert_stats_t {});
        check(write(counts.as_mut_ptr(), mean_prob.as_mut_ptr(), &mut stats))?;
        Ok(ExpertStats {
            counts,
            mean_prob,
            tokens: stats.tokens as u64,
            dropped: stats.dropped as u64,
            entropy: stats.entropy,
            max_load: stats.max_load,
        })
    }
}

/// A configuration and its parameters; gradients once training is prepared.
///
/// A model, its [optimizers](crate::Optimizer) and the [views](TensorView) of its memory are one
/// thing for threads: used by one at a time. So optimizers and views borrow the model, its methods
/// take `&self`, and it may move to another thread when nothing borrows it.
/// [Sessions](crate::Session) do not borrow: they may run on other threads beside its training.
#[derive(Debug)]
pub struct Model {
    handle: Handle<sys::nn_model_t>,
    config: Config,
    device: Device,
}

/* One thread at a time, which borrowing sees to. */
unsafe impl Send for Model {}

impl Model {
    fn adopt(handle: Handle<sys::nn_model_t>, device: &Device) -> Result<Model> {
        let config = Config::read(|config| unsafe { sys::nn_model_config(handle.get(), config) })?;
        Ok(Model { handle, config, device: device.clone() })
    }

    /// Makes a model with random weights, of [`DType::F32`], [`DType::Bf16`] or
    /// [`DType::F16`]. Same seed, same bits.
    pub fn new(device: &Device, config: &Config, dtype: DType, seed: u64) -> Result<Model> {
        let handle = Handle::create(|out| unsafe {
            sys::nn_model_create(device.raw(), &config.raw(), dtype.raw(), seed, out)
        })?;
        Model::adopt(handle, device)
    }

    /// Reads a Hugging Face folder, converting to a type; `None`: that of the file.
    pub fn load(
        device: &Device,
        folder: impl AsRef<Path>,
        dtype: Option<DType>,
        options: FileOptions<'_>,
    ) -> Result<Model> {
        Model::load_by(sys::nn_model_load, device, folder.as_ref(), dtype, options)
    }

    /// Reads a model checkpoint of llm.c's train_gpt2, converting to a type; `None`: that of the
    /// file.
    pub fn load_llmc(
        device: &Device,
        path: impl AsRef<Path>,
        dtype: Option<DType>,
        options: FileOptions<'_>,
    ) -> Result<Model> {
        Model::load_by(sys::nn_model_load_llmc, device, path.as_ref(), dtype, options)
    }

    fn load_by(
        load: Load,
        device: &Device,
        path: &Path,
        dtype: Option<DType>,
        options: FileOptions<'_>,
    ) -> Result<Model> {
        let path = c_path(path)?;
        let dtype = dtype.map_or(sys::NN_DTYPE_FILE, DType::raw);
        let handle = options.lend(|options| {
            Handle::create(|out| unsafe { load(device.raw(), path.as_ptr(), dtype, options, out) })
        })?;
        Model::adopt(handle, device)
    }

    /// Writes a Hugging Face folder, whole or not at all; makes the folder if it is not there.
    pub fn save(&self, folder: impl AsRef<Path>, options: FileOptions<'_>) -> Result<()> {
        self.save_by(sys::nn_model_save, folder.as_ref(), options)
    }

    /// Writes a model checkpoint that llm.c's train_gpt2 reads, whole or not at all.
    pub fn save_llmc(&self, path: impl AsRef<Path>, options: FileOptions<'_>) -> Result<()> {
        self.save_by(sys::nn_model_save_llmc, path.as_ref(), options)
    }

    fn save_by(&self, save: Save, path: &Path, options: FileOptions<'_>) -> Result<()> {
        let path = c_path(path)?;
        options.lend(|options| check(unsafe { save(self.raw(), path.as_ptr(), options) }))
    }

    #[inline]
    pub(crate) fn raw(&self) -> *mut sys::nn_model_t {
        self.handle.get()
    }

    /// The device that holds it.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The configuration, defaults filled in.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Number of named parameters.
    pub fn parameter_count(&self) -> usize {
        unsafe { sys::nn_model_parameter_count(self.raw()) as usize }
    }

    /// Name of a parameter, as in the family's files.
    pub fn parameter_name(&self, index: usize) -> Option<&str> {
        let name = unsafe { sys::nn_model_parameter_name(self.raw(), int64(index)) };
        if name.is_null() {
            return None;
        }
        Some(text(name))
    }

    /// Names of all parameters.
    pub fn parameter_names(&self) -> impl Iterator<Item = &str> + '_ {
        (0..self.parameter_count()).filter_map(move |index| self.parameter_name(index))
    }

    /// A parameter as a view of the model's memory: writing changes the model.
    pub fn parameter(&self, name: &str) -> Result<TensorView<'_>> {
        let name = c_string(name)?;
        self.view(|out| unsafe { sys::nn_model_parameter(self.raw(), name.as_ptr(), out) })
    }

    /// A parameter's gradient as a view of the gradients' memory, F32.
    pub fn gradient(&self, name: &str) -> Result<TensorView<'_>> {
        let name = c_string(name)?;
        self.view(|out| unsafe { sys::nn_model_gradient(self.raw(), name.as_ptr(), out) })
    }

    pub(crate) fn view(
        &self,
        make: impl FnOnce(*mut *mut sys::nn_tensor_t) -> sys::nn_status_t,
    ) -> Result<TensorView<'_>> {
        TensorView::new(Handle::create(make)?, &self.device)
    }

    /// Allocates gradients (zeros) and activations for batches up to a shape. Again with another
    /// shape keeps the gradients and resets the expert counters.
    pub fn prepare(&self, options: &TrainOptions) -> Result<()> {
        check(unsafe { sys::nn_model_prepare(self.raw(), &options.raw()) })
    }

    /// Gives back what [`prepare`](Model::prepare) allocated.
    pub fn unprepare(&self) -> Result<()> {
        check(unsafe { sys::nn_model_prepare(self.raw(), ptr::null()) })
    }

    /// Logits of `batch` sequences of equal length, one after the other in `tokens`, without
    /// gradients. `logits` takes \[batch, seq_len, vocab_size\] numbers.
    pub fn forward(&self, tokens: &[i32], batch: usize, logits: &mut [f32]) -> Result<()> {
        let (batch, seq_len) = shape(tokens, batch)?;
        if Some(logits.len()) != tokens.len().checked_mul(self.config.vocab_size) {
            return Err(Error::argument(format!(
                "logits has room for {} numbers; {} tokens give {} each",
                logits.len(),
                tokens.len(),
                self.config.vocab_size
            )));
        }
        check(unsafe {
            sys::nn_model_forward(self.raw(), tokens.as_ptr(), batch, seq_len, logits.as_mut_ptr())
        })
    }

    /// Loss of `batch` sequences of equal length, without gradients. `targets` has the id that
    /// should follow each token; negative ones do not count.
    pub fn evaluate(&self, tokens: &[i32], targets: &[i32], batch: usize) -> Result<Loss> {
        let (batch, seq_len) = shape_with_targets(tokens, targets, batch)?;
        Loss::read(|loss| unsafe {
            sys::nn_model_evaluate(
                self.raw(),
                tokens.as_ptr(),
                targets.as_ptr(),
                batch,
                seq_len,
                loss,
            )
        })
    }

    /// As [`evaluate`](Model::evaluate), and adds the gradients, times `scale`, to the model's: 1 /
    /// n for n accumulated batches. After a failure midway they are undefined until
    /// [`zero_grad`](Model::zero_grad).
    pub fn backward(
        &self,
        tokens: &[i32],
        targets: &[i32],
        batch: usize,
        scale: f32,
    ) -> Result<Loss> {
        let (batch, seq_len) = shape_with_targets(tokens, targets, batch)?;
        let (tokens, targets) = (tokens.as_ptr(), targets.as_ptr());
        Loss::read(|loss| unsafe {
            sys::nn_model_backward(self.raw(), tokens, targets, batch, seq_len, scale, loss)
        })
    }

    /// As [`backward`](Model::backward), without the loss: a GPU's work is not waited for.
    pub fn accumulate(
        &self,
        tokens: &[i32],
        targets: &[i32],
        batch: usize,
        scale: f32,
    ) -> Result<()> {
        let (batch, seq_len) = shape_with_targets(tokens, targets, batch)?;
        let (tokens, targets) = (tokens.as_ptr(), targets.as_ptr());
        let none = ptr::null_mut();
        check(unsafe {
            sys::nn_model_backward(self.raw(), tokens, targets, batch, seq_len, scale, none)
        })
    }

    /// Sets all gradients to zero.
    pub fn zero_grad(&self) -> Result<()> {
        check(unsafe { sys::nn_model_zero_grad(self.raw()) })
    }

    /// What the gradients are multiplied by: 1 unless parameters are [`DType::F16`].
    pub fn loss_scale(&self) -> f64 {
        unsafe { sys::nn_model_loss_scale(self.raw()) }
    }

    /// Expert use of one layer since the last reset, over forward, evaluate and backward.
    pub fn expert_stats(&self, layer: usize) -> Result<ExpertStats> {
        ExpertStats::read(self.config.experts, |counts, mean_prob, stats| unsafe {
            sys::nn_model_expert_stats(self.raw(), int64(layer), counts, mean_prob, stats)
        })
    }

    /// Sets every layer's expert counters to zero.
    pub fn reset_expert_stats(&self) -> Result<()> {
        check(unsafe { sys::nn_model_expert_stats_reset(self.raw()) })
    }
}

type Load = unsafe extern "C" fn(
    *mut sys::nn_device_t,
    *const c_char,
    i32,
    *const sys::nn_file_options_t,
    *mut *mut sys::nn_model_t,
) -> sys::nn_status_t;

type Save = unsafe extern "C" fn(
    *const sys::nn_model_t,
    *const c_char,
    *const sys::nn_file_options_t,
) -> sys::nn_status_t;

/// [batch, seq_len] of sequences that lie one after the other.
fn shape(tokens: &[i32], batch: usize) -> Result<(i64, i64)> {
    if batch == 0 || tokens.len() % batch != 0 {
        return Err(Error::argument(format!(
            "{} tokens are not {batch} sequences of one length",
            tokens.len()
        )));
    }
    Ok((int64(batch), int64(tokens.len() / batch)))
}

fn shape_with_targets(tokens: &[i32], targets: &[i32], batch: usize) -> Result<(i64, i64)> {
    if tokens.len() != targets.len() {
        return Err(Error::argument(format!(
            "{} tokens and {} targets",
            tokens.len(),
            targets.len()
        )));
    }
    shape(tokens, batch)
}
