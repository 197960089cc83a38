//! Errors: every status has its variant, its name and its number.
mod common;
use common::*;
use moenn::*;
use moenn_sys as sys;

#[test]
fn every_status_is_known() {
    for (code, name) in (1..=12).map(|n| -n).zip([
        "NN_ERR_ARGUMENT",
        "NN_ERR_STRUCT_SIZE",
        "NN_ERR_MEMORY",
        "NN_ERR_IO",
        "NN_ERR_FORMAT",
        "NN_ERR_UNSUPPORTED",
        "NN_ERR_STATE",
        "NN_ERR_NOT_FOUND",
        "NN_ERR_NONFINITE",
        "NN_ERR_CANCELLED",
        "NN_ERR_CAPACITY",
        "NN_ERR_DEVICE",
    ]) {
        let status = Status::from(code);
        assert_eq!((status.code(), status.to_string()), (code, name.to_string()));
        assert!(!matches!(status, Status::Other(_)), "{name}");
    }
    assert_eq!(Status::from(-99), Status::Other(-99));
    assert_eq!(
        (Status::Other(-99).code(), Status::Other(-99).to_string()),
        (-99, "unknown status".into())
    );
}

#[test]
fn errors_say_what_to_do() {
    let error = Config::preset("huge").unwrap_err();
    assert_eq!(error.to_string(), format!("NN_ERR_NOT_FOUND: {}", error.message()));
    let boxed: Box<dyn std::error::Error + Send + Sync> = error.clone().into();
    assert_eq!(boxed.to_string(), error.to_string());
}

#[test]
fn messages_are_each_threads_own() {
    fails(Config::preset("here"), Status::NotFound, "here");
    let there = std::thread::spawn(|| Config::preset("there").unwrap_err()).join().unwrap();
    assert!(there.message().contains("\"there\""), "{there}");
    fails(Config::preset("here"), Status::NotFound, "here");
}

/// The safe interface always gives the size that it was compiled with; one of another release would
/// not.
#[test]
fn structs_of_unknown_sizes_are_refused() {
    let mut config = sys::nn_model_config_t { struct_size: 3, ..Default::default() };
    let status = unsafe { sys::nn_config_preset(b"small\0".as_ptr().cast(), &mut config) };
    assert_eq!(Status::from(status), Status::StructSize);
}
