//! What this crate costs over the C interface: a trivial getter, and a training step of `small`.
//! Calls through both take turns, and the best of many rounds counts.
use std::ptr;
use std::time::Instant;

use moenn::{Config, DType, Device, Model, Optimizer, OptimizerOptions, Result, TrainOptions};
use moenn_sys as sys;

const BATCH: usize = 4;
const LENGTH: usize = 256;

/// Least seconds of `rounds` rounds of each.
fn race(rounds: usize, mut c: impl FnMut(), mut rust: impl FnMut()) -> (f64, f64) {
    let time = |call: &mut dyn FnMut()| {
        let start = Instant::now();
        call();
        start.elapsed().as_secs_f64()
    };
    (0..rounds).fold((f64::MAX, f64::MAX), |best, _| {
        (best.0.min(time(&mut c)), best.1.min(time(&mut rust)))
    })
}

fn must(status: i32) {
    assert_eq!(status, sys::NN_OK);
}

/// The same model and optimizer by C calls alone.
unsafe fn raw_model() -> (*mut sys::nn_model_t, *mut sys::nn_optim_t) {
    let mut device = ptr::null_mut();
    let (mut model, mut optim) = (ptr::null_mut(), ptr::null_mut());
    let mut config = sys::nn_model_config_t {
        struct_size: std::mem::size_of::<sys::nn_model_config_t>(),
        ..Default::default()
    };
    let shape = sys::nn_train_options_t {
        struct_size: std::mem::size_of::<sys::nn_train_options_t>(),
        batch: BATCH as i64,
        seq_len: LENGTH as i64,
        ..Default::default()
    };
    must(sys::nn_device_create(ptr::null(), ptr::null(), &mut device));
    must(sys::nn_config_preset(b"small\0".as_ptr().cast(), &mut config));
    must(sys::nn_model_create(device, &config, sys::NN_F32, 1, &mut model));
    must(sys::nn_model_prepare(model, &shape));
    must(sys::nn_optim_create(model, ptr::null(), &mut optim));
    (model, optim)
}

fn getters(raw: *mut sys::nn_model_t, model: &Model) -> Result<()> {
    const CALLS: usize = 1_000_000;
    let counted = CALLS * model.parameter_count();
    let (c, rust) = race(
        5,
        || {
            assert_eq!(
                counted as i64,
                (0..CALLS).map(|_| unsafe { sys::nn_model_parameter_count(raw) }).sum()
            )
        },
        || assert_eq!(counted, (0..CALLS).map(|_| model.parameter_count()).sum()),
    );
    let per_call = 1e9 / CALLS as f64;
    println!("parameter_count: {:.1} ns in C, {:.1} ns here", c * per_call, rust * per_call);
    let parameter = model.parameter("lm_head.weight")?;
    let (_, rust) =
        race(5, || (), || assert_eq!(2 * CALLS, (0..CALLS).map(|_| parameter.shape().len()).sum()));
    println!("shape of a tensor: {:.1} ns here", rust * per_call);
    Ok(())
}

fn steps(
    raw: *mut sys::nn_model_t,
    raw_optim: *mut sys::nn_optim_t,
    model: &Model,
    optimizer: &mut Optimizer<&Model>,
) {
    let ids: Vec<i32> = (0..BATCH * LENGTH + 1).map(|i| (i * i % 251) as i32).collect();
    let (tokens, targets) = (&ids[..BATCH * LENGTH], &ids[1..]);
    let (c, rust) = race(
        10,
        || unsafe {
            let mut loss = sys::nn_loss_t {
                struct_size: std::mem::size_of::<sys::nn_loss_t>(),
                ..Default::default()
            };
            let (tokens, targets) = (tokens.as_ptr(), targets.as_ptr());
            must(sys::nn_model_zero_grad(raw));
            must(sys::nn_model_backward(
                raw,
                tokens,
                targets,
                BATCH as i64,
                LENGTH as i64,
                1.0,
                &mut loss,
            ));
            must(sys::nn_optim_step(raw_optim, 1e-3, ptr::null_mut()));
        },
        || {
            model.zero_grad().expect("zero_grad");
            model.backward(tokens, targets, BATCH, 1.0).expect("backward");
            optimizer.step(1e-3).expect("step");
        },
    );
    println!(
        "training step of small: {:.2} ms in C, {:.2} ms here: {:+.2} %",
        1e3 * c,
        1e3 * rust,
        100.0 * (rust / c - 1.0)
    );
}

fn main() -> Result<()> {
    let (raw, raw_optim) = unsafe { raw_model() };
    let model = Model::new(&Device::cpu()?, &Config::preset("small")?, DType::F32, 1)?;
    model.prepare(&TrainOptions { batch: BATCH, seq_len: LENGTH, ..Default::default() })?;
    getters(raw, &model)?;
    steps(raw, raw_optim, &model, &mut Optimizer::new(&model, &OptimizerOptions::default())?);
    unsafe {
        sys::nn_optim_destroy(raw_optim);
        sys::nn_model_destroy(raw);
    }
    Ok(())
}
