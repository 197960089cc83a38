//! What the tests share.
#![allow(dead_code)]
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, fs, process};

use moenn::*;

pub const VOCAB: usize = 32;
pub const CONTEXT: usize = 16;
pub const EXPERTS: usize = 4;

pub fn device() -> Device {
    Device::open("cpu", DeviceOptions { threads: 1, ..Default::default() }).expect("a cpu device")
}

/// A mixture of experts small enough to do everything with at once.
pub fn config() -> Config {
    Config {
        vocab_size: VOCAB,
        context: CONTEXT,
        layers: 2,
        hidden: 16,
        heads: 2,
        ffn: 16,
        experts: EXPERTS,
        top_k: 2,
        ..Default::default()
    }
}

pub fn gpt2() -> Config {
    Config {
        family: Family::Gpt2,
        norm: Norm::Layer,
        position: Position::Learned,
        ffn_kind: Ffn::GeluTanh,
        biases: Biases::ALL,
        tied_head: true,
        ffn: 64,
        experts: 0,
        top_k: 0,
        ..config()
    }
}

pub fn model() -> Model {
    Model::new(&device(), &config(), DType::F32, 7).expect("a model")
}

/// A model that takes batches of two sequences.
pub fn prepared() -> Model {
    let model = model();
    model.prepare(&TrainOptions { batch: 2, ..Default::default() }).expect("prepare");
    model
}

/// Two sequences of eight tokens, and what follows each.
pub fn batch() -> (Vec<i32>, Vec<i32>) {
    let tokens: Vec<i32> = (0..16).map(|i| i * 5 % VOCAB as i32).collect();
    let targets = tokens.iter().map(|id| (id + 5) % VOCAB as i32).collect();
    (tokens, targets)
}

pub const HEAD: &str = "lm_head.weight";

/// The status and message of a failure.
#[track_caller]
pub fn fails<T>(result: Result<T>, status: Status, said: &str) {
    match result {
        Ok(_) => panic!("no failure where {status} was due"),
        Err(error) => {
            assert_eq!(error.status(), status, "{error}");
            assert!(error.message().contains(said), "{error}: does not say {said:?}");
        }
    }
}

/// A folder that goes with its value.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Folder {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("moenn-rust-{}-{}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = env::temp_dir().join(name);
        fs::create_dir_all(&path).expect("a temporary folder");
        Folder(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).expect("a temporary file");
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

/// Resident bytes of this process.
pub fn resident() -> usize {
    let statm = fs::read_to_string("/proc/self/statm").expect("/proc");
    let pages: usize = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("statm");
    pages * 4096
}
