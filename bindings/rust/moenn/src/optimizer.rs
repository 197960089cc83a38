//! AdamW and learning-rate schedules.
use std::path::Path;
use std::rc::Rc;

use moenn_sys as sys;

use crate::error::{c_enum, c_path, c_string, check, sized};
use crate::handle::Handle;
use crate::{Model, Result, TensorView};

mod sealed {
    pub trait Sealed {}
}

/// How an [`Optimizer`] holds its model: by reference, shared or whole.
pub trait HoldsModel: sealed::Sealed {
    /// The model.
    fn model(&self) -> &Model;
}

/* Sealed: an implementation that gave another model, or one of another thread, would break
 * `Send`. */
macro_rules! holds_model {
    ($($name:ty),*) => {
        $(impl sealed::Sealed for $name {}
        impl HoldsModel for $name {
            fn model(&self) -> &Model {
                self
            }
        })*
    };
}
holds_model!(Model, &Model, Rc<Model>);

/// Options of [`Optimizer::new`].
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct OptimizerOptions {
    /// Decay of the first moment. 0: 0.9.
    pub beta1: f32,
    /// Decay of the second moment. 0: 0.95.
    pub beta2: f32,
    /// 0: 1e-8.
    pub eps: f32,
    /// Decoupled decay of matrices; norms and biases have none. 0: none.
    pub weight_decay: f32,
    /// Largest global gradient norm; larger gradients are scaled down to it. 0: no clip.
    pub grad_clip: f32,
}

c_enum! {
    /// A moment of the optimizer.
    Moment {
        /// Running mean of gradients.
        First = NN_MOMENT_FIRST,
        /// Running mean of squared gradients.
        Second = NN_MOMENT_SECOND,
    }
}

/// AdamW state of one model, which it borrows (`Optimizer::new(&model, ...)`), shares (an `Rc`) or
/// owns (`Optimizer::new(model, ...)`). One that owns its model moves between threads with it.
#[derive(Debug)]
pub struct Optimizer<M: HoldsModel> {
    handle: Handle<sys::nn_optim_t>,
    model: M,
}

/* One thread at a time with its model: it goes where what holds the model may go. */
unsafe impl<M: HoldsModel + Send> Send for Optimizer<M> {}

impl<M: HoldsModel> Optimizer<M> {
    /// Makes an optimizer with moments of zero, of a model that is prepared for training.
    pub fn new(model: M, options: &OptimizerOptions) -> Result<Optimizer<M>> {
        let raw = sized!(nn_optim_options_t {
            beta1: options.beta1,
            beta2: options.beta2,
            eps: options.eps,
            weight_decay: options.weight_decay,
            grad_clip: options.grad_clip,
        });
        let handle =
            Handle::create(|out| unsafe { sys::nn_optim_create(model.model().raw(), &raw, out) })?;
        Ok(Optimizer { handle, model })
    }

    /// The model.
    pub fn model(&self) -> &Model {
        self.model.model()
    }

    /// Gives the model back.
    pub fn into_model(self) -> M {
        self.model
    }

    /// Updates all parameters once from the model's gradients, which stay as they are. Gives the
    /// global norm of the gradients before the clip.
    pub fn step(&mut self, lr: f32) -> Result<f64> {
        let mut norm = 0.0;
        check(unsafe { sys::nn_optim_step(self.handle.get(), lr, &mut norm) })?;
        Ok(norm)
    }

    /// A moment of one parameter as a view of the optimizer's memory, F32.
    pub fn moment(&self, name: &str, moment: Moment) -> Result<TensorView<'_>> {
        let name = c_string(name)?;
        self.model().view(|out| unsafe {
            sys::nn_optim_moment(self.handle.get(), name.as_ptr(), moment.raw(), out)
        })
    }

    /// Updates made so far.
    pub fn steps(&self) -> u64 {
        unsafe { sys::nn_optim_steps(self.handle.get()) as u64 }
    }

    /// Sets the number of updates made so far, as when state was restored by hand.
    pub fn set_steps(&mut self, steps: u64) -> Result<()> {
        let steps = i64::try_from(steps).unwrap_or(i64::MAX);
        check(unsafe { sys::nn_optim_set_steps(self.handle.get(), steps) })
    }

    /// Writes the state to one safetensors file, whole or not at all.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = c_path(path.as_ref())?;
        check(unsafe { sys::nn_optim_save(self.handle.get(), path.as_ptr()) })
    }

    /// Reads what [`save`](Optimizer::save) wrote for a model of the same configuration.
    pub fn load(&mut self, path: impl AsRef<Path>) -> Result<()> {
        let path = c_path(path.as_ref())?;
        check(unsafe { sys::nn_optim_load(self.handle.get(), path.as_ptr()) })
    }
}

c_enum! {
    /// Course of a learning rate after its warm-up.
    #[derive(Default)]
    ScheduleKind {
        /// The peak.
        #[default]
        Constant = NN_SCHEDULE_CONSTANT,
        /// To the least in a straight line.
        Linear = NN_SCHEDULE_LINEAR,
        /// To the least along half a cosine.
        Cosine = NN_SCHEDULE_COSINE,
    }
}

/// A learning rate as a function of the step.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Schedule {
    /// Course after the warm-up.
    pub kind: ScheduleKind,
    /// Peak.
    pub lr: f32,
    /// At and after `total_steps`.
    pub min_lr: f32,
    /// Step s < warmup_steps has lr * (s + 1) / warmup_steps.
    pub warmup_steps: u64,
    /// Where the decay ends.
    pub total_steps: u64,
}

impl Schedule {
    /// The learning rate of a step, counted from 0.
    pub fn at(&self, step: u64) -> Result<f32> {
        let int = |steps: u64| i64::try_from(steps).unwrap_or(i64::MAX);
        let raw = sized!(nn_schedule_t {
            kind: self.kind.raw(),
            lr: self.lr,
            min_lr: self.min_lr,
            warmup_steps: int(self.warmup_steps),
            total_steps: int(self.total_steps),
        });
        let mut lr = 0.0;
        check(unsafe { sys::nn_schedule_lr(&raw, int(step), &mut lr) })?;
        Ok(lr)
    }
}
