#![doc = include_str!("../README.md")]
#![warn(missing_docs)]
#![warn(unsafe_op_in_unsafe_fn)]

mod config;
mod device;
mod error;
mod handle;
#[cfg(doctest)]
mod misuse;
mod model;
mod optimizer;
mod plan;
mod session;
mod tensor;
mod text;

pub use config::{
    AuxLoss, Biases, Config, Family, Ffn, GroupScore, Norm, Position, QkNorm, RopeFactors,
    RopeScaling, RouterNorm, Score,
};
pub use device::{CpuPaths, Device, DeviceInfo, DeviceOptions, LogFn, LogLevel, Memory};
pub use error::{Error, Result, Status};
pub use model::{ExpertStats, FileOptions, Loss, Model, ProgressFn, Recompute, TrainOptions};
pub use optimizer::{HoldsModel, Moment, Optimizer, OptimizerOptions, Schedule, ScheduleKind};
pub use plan::Plan;
pub use session::{GenerateOptions, SampleOptions, Session, SessionOptions, StopReason, Tokens};
pub use tensor::{DType, Element, Tensor, TensorView, MAX_DIMS};
pub use text::{
    Dataset, DatasetInfo, DatasetOptions, EncodeOptions, SpecialToken, TextStream, Tokenizer,
    TokenizerKind, TokenizerTrainOptions,
};

/// Release of the library that is running, as "major.minor.patch".
pub fn version() -> &'static str {
    error::text(unsafe { moenn_sys::nn_version() })
}

/// Binary interface of the library that is running.
pub fn abi_version() -> i32 {
    unsafe { moenn_sys::nn_abi_version() }
}
