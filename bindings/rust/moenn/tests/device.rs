//! Devices: opening, describing, logging, cancelling.
mod common;
use common::*;
use moenn::*;
use std::sync::{Arc, Mutex};

#[test]
fn describes_itself() {
    let info = device().info().unwrap();
    assert_eq!(info.name, "cpu");
    assert_eq!(info.threads, 1);
    assert!(info.cpu_paths.contains(CpuPaths::REFERENCE));
    assert!(!info.model.is_empty());
}

#[test]
fn takes_the_path_it_is_told() {
    let options = DeviceOptions { cpu_paths: CpuPaths::REFERENCE, ..Default::default() };
    let info = Device::open("cpu", options).unwrap().info().unwrap();
    assert_eq!(info.cpu_paths, CpuPaths::REFERENCE);
    assert_eq!((CpuPaths::AVX2 | CpuPaths::REFERENCE).0, 3);
}

#[test]
fn pins_threads() {
    let options = DeviceOptions { affinity: vec![0, 0], ..Default::default() };
    assert_eq!(Device::open("cpu", options).unwrap().info().unwrap().threads, 2);
    let options = DeviceOptions { threads: 3, affinity: vec![0, 0], ..Default::default() };
    fails(Device::open("cpu", options), Status::Argument, "affinity has 2 entries for 3 threads");
}

#[test]
fn refuses_unknown_names_and_too_many_threads() {
    fails(Device::open("abacus", DeviceOptions::default()), Status::NotFound, "abacus");
    fails(Device::open("c\0pu", DeviceOptions::default()), Status::Argument, "NUL");
    let options = DeviceOptions { threads: usize::MAX, ..Default::default() };
    fails(Device::open("cpu", options), Status::Argument, "threads");
}

#[test]
fn counts_memory() {
    let device = device();
    let before = device.memory().unwrap();
    let tensor = Tensor::zeros(&device, DType::F32, &[1000]).unwrap();
    let with = device.memory().unwrap();
    assert!(with.current_bytes >= before.current_bytes + 4000);
    assert_eq!(with.allocations, before.allocations + 1);
    drop(tensor);
    let after = device.memory().unwrap();
    assert_eq!(after.current_bytes, before.current_bytes);
    assert!(after.peak_bytes >= with.current_bytes);
}

#[test]
fn a_clone_is_the_same_device_and_outlives_it() {
    let device = device();
    let clone = device.clone();
    let tensor = Tensor::zeros(&device, DType::I64, &[2]).unwrap();
    drop(device);
    assert_eq!(
        clone.memory().unwrap().current_bytes,
        tensor.device().memory().unwrap().current_bytes
    );
    drop(clone);
    assert_eq!(tensor.to_vec::<i64>().unwrap(), [0, 0]);
}

/// Opens a device that has something to say: an instruction set that its build or processor lacks,
/// or none.
fn warn(log: LogFn) -> Device {
    let options = DeviceOptions {
        cpu_paths: CpuPaths::AVX2 | CpuPaths::AVX512,
        log: Some(log),
        log_level: LogLevel::Debug,
        ..Default::default()
    };
    Device::open("cpu", options).unwrap()
}

#[test]
fn logs_to_a_closure_that_lives_as_long_as_the_device() {
    let said = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&said);
    let device =
        warn(Box::new(move |level, text| kept.lock().unwrap().push((level, text.to_string()))));
    let has_all = device.info().unwrap().cpu_paths.contains(CpuPaths::AVX2 | CpuPaths::AVX512);
    let tensor = Tensor::zeros(&device, DType::F32, &[1]).unwrap();
    drop(device);
    assert_eq!(Arc::strong_count(&said), 2);
    drop(tensor);
    assert_eq!(Arc::strong_count(&said), 1);
    let said = said.lock().unwrap();
    assert!(
        has_all
            || said.iter().any(|(level, text)| *level == LogLevel::Warning && text.contains("avx"))
    );
}

#[test]
fn a_panic_in_a_log_closure_ends_there() {
    let device = warn(Box::new(|_, _| panic!("in a log closure")));
    assert_eq!(device.info().unwrap().name, "cpu");
}

#[test]
fn cancel_stops_calls_until_it_is_taken_back() {
    let model = prepared();
    let (tokens, targets) = batch();
    model.device().cancel();
    fails(model.evaluate(&tokens, &targets, 2), Status::Cancelled, "cancel");
    fails(Model::load(model.device(), "nowhere", None, Default::default()), Status::Cancelled, "");
    model.device().uncancel();
    model.evaluate(&tokens, &targets, 2).unwrap();
}

#[test]
fn says_which_release_it_is() {
    assert_eq!(version().split('.').count(), 3);
    assert_eq!(abi_version(), moenn_sys::NN_ABI_VERSION);
}
