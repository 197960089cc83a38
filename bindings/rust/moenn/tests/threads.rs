//! Threads: what may be shared, moved, cancelled from outside.
mod common;
use common::*;
use moenn::*;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

#[test]
fn types_are_send_and_sync_as_the_header_promises() {
    fn send<T: Send>() {}
    fn sync<T: Sync>() {}
    send::<Device>();
    sync::<Device>();
    send::<Tokenizer>();
    sync::<Tokenizer>();
    send::<Tensor>();
    send::<Model>();
    send::<Optimizer<Model>>();
    send::<Session>();
    send::<Dataset>();
    send::<Error>();
    sync::<Error>();
    sync::<Mutex<Model>>();
}

#[test]
fn a_device_and_a_tokenizer_are_shared() {
    let (device, tokenizer) = (device(), Tokenizer::bytes().unwrap());
    thread::scope(|scope| {
        for n in 0..4u8 {
            let (device, tokenizer) = (&device, &tokenizer);
            scope.spawn(move || {
                for _ in 0..50 {
                    let tensor = Tensor::zeros(device, DType::U8, &[16]).unwrap();
                    tensor.copy_in(&[n; 16]).unwrap();
                    assert_eq!(tensor.to_vec::<u8>().unwrap(), [n; 16]);
                    assert_eq!(tokenizer.encode([n]).unwrap(), [i32::from(n)]);
                }
            });
        }
    });
    assert_eq!(
        device.memory().unwrap().current_bytes,
        common::device().memory().unwrap().current_bytes
    );
}

#[test]
fn a_model_with_its_optimizer_moves_between_threads() {
    let mut optimizer = Optimizer::new(prepared(), &Default::default()).unwrap();
    let (tokens, targets) = batch();
    for steps in 1..4 {
        let (ids, next) = (tokens.clone(), targets.clone());
        optimizer = thread::spawn(move || {
            optimizer.model().zero_grad().unwrap();
            optimizer.model().backward(&ids, &next, 2, 1.0).unwrap();
            optimizer.step(1e-3).unwrap();
            optimizer
        })
        .join()
        .unwrap();
        assert_eq!(optimizer.steps(), steps);
    }
}

#[test]
fn sessions_serve_while_the_model_trains() {
    let model = prepared();
    let mut optimizer = Optimizer::new(&model, &Default::default()).unwrap();
    let (tokens, targets) = batch();
    let done = AtomicBool::new(false);
    let mut sessions: Vec<Session> =
        (0..2).map(|_| Session::new(&model, &SessionOptions::default()).unwrap()).collect();
    thread::scope(|scope| {
        let servers: Vec<_> = sessions
            .iter_mut()
            .map(|session| {
                let done = &done;
                scope.spawn(move || {
                    let mut made = 0;
                    while !done.load(Ordering::Relaxed) || made == 0 {
                        session.truncate(0, 0).unwrap();
                        let options = GenerateOptions { max_tokens: 4, ..Default::default() };
                        made += session.tokens(0, &[1], &options).map(Result::unwrap).count();
                    }
                    made
                })
            })
            .collect();
        for _ in 0..50 {
            model.zero_grad().unwrap();
            model.backward(&tokens, &targets, 2, 1.0).unwrap();
            optimizer.step(1e-3).unwrap();
        }
        done.store(true, Ordering::Relaxed);
        assert!(servers.into_iter().all(|server| server.join().unwrap() > 0));
    });
}

#[test]
fn a_long_call_is_cancelled_from_another_thread() {
    let device = Device::cpu().unwrap();
    let model = Model::new(&device, &Config::preset("small").unwrap(), DType::F32, 1).unwrap();
    model.prepare(&TrainOptions { batch: 4, seq_len: 256, ..Default::default() }).unwrap();
    let tokens = vec![1; 4 * 256];
    let canceller = device.clone();
    let later = thread::spawn(move || {
        thread::sleep(Duration::from_millis(50));
        canceller.cancel();
        Instant::now()
    });
    let error = loop {
        if let Err(error) = model.backward(&tokens, &tokens, 4, 1.0) {
            break error;
        }
    };
    let waited = later.join().unwrap().elapsed();
    assert_eq!(error.status(), Status::Cancelled);
    assert!(waited < Duration::from_secs(5), "{waited:?}: 50 ms are promised on an idle machine");
    device.uncancel();
    fails(model.backward(&tokens, &tokens, 4, 1.0), Status::State, "zero_grad");
    model.zero_grad().unwrap();
    model.backward(&tokens, &tokens, 4, 1.0).unwrap();
}

#[test]
fn generation_is_cancelled_from_its_closure() {
    let model = model();
    let mut session = Session::new(&model, &SessionOptions::default()).unwrap();
    let device = model.device().clone();
    let mut made = 0;
    let result = session.generate(0, &[1], &GenerateOptions::default(), |_| {
        made += 1;
        device.cancel();
        ControlFlow::Continue(())
    });
    fails(result, Status::Cancelled, "");
    assert_eq!((made, session.length(0)), (1, 1));
}

#[test]
fn a_token_closure_may_use_other_handles() {
    let model = model();
    let mut session = Session::new(&model, &SessionOptions::default()).unwrap();
    let mut other = Session::new(&model, &SessionOptions::default()).unwrap();
    session
        .generate(0, &[1], &GenerateOptions { max_tokens: 3, ..Default::default() }, |token| {
            other.prefill(0, &[token], None).unwrap();
            model.parameter(HEAD).unwrap();
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(other.length(0), 3);
}
