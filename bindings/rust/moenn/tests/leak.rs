//! Everything made and dropped again and again: resident memory and the device's counter stay flat.
mod common;
use common::*;
use moenn::*;
use std::ops::ControlFlow;

/// Memory that the allocator may take or keep between two looks at it.
const WANDER: usize = 300 << 10;

/// What takes kilobytes, and some thousands of instructions.
fn heavy(device: &Device, folder: &Folder) {
    let model = Model::new(device, &config(), DType::F32, 1).unwrap();
    model.prepare(&TrainOptions { batch: 2, ..Default::default() }).unwrap();
    let (tokens, targets) = batch();
    let mut optimizer = Optimizer::new(model, &Default::default()).unwrap();
    optimizer.model().backward(&tokens, &targets, 2, 1.0).unwrap();
    optimizer.step(1e-3).unwrap();
    optimizer.moment(HEAD, Moment::First).unwrap().slice(0, 0, 1).unwrap().to_vec::<f32>().unwrap();
    let options = GenerateOptions { max_tokens: 3, ..Default::default() };
    let mut session = Session::new(optimizer.model(), &SessionOptions::default()).unwrap();
    session.generate(0, &[1], &options, |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(session.tokens(0, &[1], &options).count(), 3);
    let model = optimizer.into_model();
    let managed = model.parameter(HEAD).unwrap().to_dlpack().unwrap();
    drop(unsafe { Tensor::from_dlpack(device, managed) }.unwrap());
    assert!(Model::load(device, folder.path("none"), None, FileOptions::default()).is_err());
    Dataset::open_text(
        folder.path("text"),
        None,
        &DatasetOptions { seq_len: 4, ..Default::default() },
    )
    .unwrap();
    let captured = [1u8; 4096];
    let log: LogFn = Box::new(move |_, _| assert_eq!(captured.len(), 4096));
    let options = DeviceOptions { threads: 2, log: Some(log), ..Default::default() };
    Tensor::zeros(&Device::open("cpu", options).unwrap(), DType::F32, &[16]).unwrap();
}

/// What takes some bytes.
fn light(device: &Device) {
    let tensor = Tensor::zeros(device, DType::F32, &[4]).unwrap();
    tensor.slice(0, 0, 2).unwrap().slice(0, 0, 1).unwrap();
    drop(unsafe { Tensor::from_dlpack(device, tensor.to_dlpack().unwrap()) }.unwrap());
    Tensor::wrap(device, &mut [1i32, 2], &[2]).unwrap();
    Tokenizer::bytes().unwrap().encode("text").unwrap();
    Dataset::from_tokens(&[1, 2, 3], &DatasetOptions { seq_len: 2, ..Default::default() }).unwrap();
    assert!(Config::preset("huge").is_err());
    drop(device.clone());
}

fn is_flat(rounds: usize, device: &Device, once: impl Fn()) {
    let held = device.memory().unwrap().current_bytes;
    (0..rounds / 4).for_each(|_| once());
    let before = resident();
    (0..rounds).for_each(|_| once());
    let grown = resident().saturating_sub(before);
    assert_eq!(device.memory().unwrap().current_bytes, held);
    assert!(grown < WANDER, "{grown} bytes in {rounds} rounds");
}

/// One test, for resident memory is the whole process's. A kilobyte lost in a heavy round, or
/// sixteen bytes in a light one, are more than the allocator wanders.
#[test]
fn memory_is_flat() {
    let folder = Folder::new();
    folder.write("text", "a text of some length");
    let device = device();
    is_flat(400, &device, || heavy(&device, &folder));
    is_flat(40_000, &device, || light(&device));
}
