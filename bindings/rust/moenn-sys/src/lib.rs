//! The C interface of libmoenn, as bindgen reads it from `moenn.h`.
//!
//! The header says what every function promises. The crate `moenn` is the safe interface over this
//! one.
#![allow(non_camel_case_types)]

#[allow(clippy::all)]
#[rustfmt::skip]
mod bindings;

pub use bindings::*;
