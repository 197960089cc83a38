//! Sessions: prefill, decode, generation in its three forms.
mod common;
use common::*;
use moenn::*;
use std::ops::ControlFlow;
use std::panic::{catch_unwind, AssertUnwindSafe};

const PROMPT: [i32; 3] = [1, 2, 3];

fn session(model: &Model) -> Session {
    Session::new(model, &SessionOptions::default()).unwrap()
}

fn generated(session: &mut Session, options: &GenerateOptions<'_>) -> (Vec<i32>, StopReason) {
    let mut tokens = Vec::new();
    let reason = session
        .generate(0, &PROMPT, options, |token| {
            tokens.push(token);
            ControlFlow::Continue(())
        })
        .unwrap();
    (tokens, reason)
}

fn sampling() -> SampleOptions {
    SampleOptions {
        temperature: 1.0,
        top_k: 20,
        top_p: 0.95,
        min_p: 0.001,
        repetition_penalty: 1.1,
        seed: 5,
    }
}

#[test]
fn generates_the_greedy_text() {
    let model = model();
    let mut session = session(&model);
    let options = GenerateOptions { max_tokens: 5, ..Default::default() };
    let (tokens, reason) = generated(&mut session, &options);
    assert_eq!((tokens.len(), reason), (5, StopReason::Length));
    assert_eq!(session.length(0), PROMPT.len() + 4);

    let mut by_hand = self::session(&model);
    let mut logits = vec![0.0; VOCAB];
    by_hand.prefill(0, &PROMPT, Some(&mut logits)).unwrap();
    for token in tokens {
        let best = (0..VOCAB).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap();
        assert_eq!(by_hand.sample(0, &SampleOptions::default()).unwrap(), token);
        assert_eq!(best as i32, token);
        by_hand.decode(&[token], Some(&mut logits)).unwrap();
    }
}

#[test]
fn the_iterator_makes_the_same_tokens() {
    let model = model();
    for max_tokens in [0, 1, 6] {
        let options = GenerateOptions { sampling: sampling(), max_tokens, ..Default::default() };
        let mut first = session(&model);
        let (tokens, reason) = generated(&mut first, &options);
        let mut second = session(&model);
        let mut stream = second.tokens(0, &PROMPT, &options);
        assert_eq!(stream.reason(), None);
        assert_eq!(stream.by_ref().collect::<Result<Vec<i32>>>().unwrap(), tokens);
        assert_eq!(stream.reason(), Some(reason));
        assert!(stream.next().is_none());
        assert_eq!(second.length(0), first.length(0));
    }
}

#[test]
fn stops_at_an_id() {
    let model = model();
    let (tokens, _) =
        generated(&mut session(&model), &GenerateOptions { max_tokens: 4, ..Default::default() });
    let stop_ids = [tokens[0]];
    let options = GenerateOptions { stop_ids: &stop_ids, ..Default::default() };
    let mut session = session(&model);
    assert_eq!(generated(&mut session, &options), (vec![], StopReason::Id));
    session.truncate(0, 0).unwrap();
    let mut stream = session.tokens(0, &PROMPT, &options);
    assert!(stream.next().is_none());
    assert_eq!(stream.reason(), Some(StopReason::Id));
    assert_eq!(session.length(0), PROMPT.len());
}

#[test]
fn stops_at_the_context() {
    let model = model();
    let mut session = session(&model);
    let (tokens, reason) = generated(&mut session, &GenerateOptions::default());
    assert_eq!((tokens.len(), reason), (CONTEXT - PROMPT.len() + 1, StopReason::Context));
    fails(session.prefill(0, &[1], None), Status::Capacity, "max_len");
    let short = SessionOptions { max_len: 4, ..Default::default() };
    let mut session = Session::new(&model, &short).unwrap();
    assert_eq!(session.tokens(0, &PROMPT, &Default::default()).count(), 2);
}

#[test]
fn stops_when_the_closure_says_so() {
    let model = model();
    let mut made = 0;
    let mut session = session(&model);
    let reason = session.generate(0, &PROMPT, &Default::default(), |_| {
        made += 1;
        if made == 2 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    assert_eq!((reason.unwrap(), made), (StopReason::Callback, 2));
}

#[test]
fn a_panic_in_a_token_closure_arrives() {
    let model = model();
    let mut session = session(&model);
    let panic = catch_unwind(AssertUnwindSafe(|| {
        session.generate(0, &PROMPT, &Default::default(), |token| panic!("token {token}"))
    }));
    assert!(panic.unwrap_err().downcast_ref::<String>().unwrap().starts_with("token "));
    assert_eq!(session.length(0), PROMPT.len());
}

#[test]
fn the_iterator_ends_after_an_error() {
    let model = model();
    let mut session = session(&model);
    let options = GenerateOptions::default();
    let mut stream = session.tokens(0, &PROMPT, &options);
    assert!(stream.next().unwrap().is_ok());
    model.device().cancel();
    fails(stream.next().unwrap(), Status::Cancelled, "");
    assert!(stream.next().is_none());
    model.device().uncancel();
    assert!(stream.next().is_none());
    assert_eq!(stream.reason(), None);
    assert_eq!(session.length(0), PROMPT.len());
}

#[test]
fn decodes_sequences_side_by_side() {
    let model = model();
    let mut session =
        Session::new(&model, &SessionOptions { batch: 2, ..Default::default() }).unwrap();
    let mut logits = vec![7.0; 2 * VOCAB];
    session.prefill(0, &[1, 2], None).unwrap();
    session.prefill(1, &[3], None).unwrap();
    session.decode(&[4, -1], Some(&mut logits)).unwrap();
    assert_eq!((session.length(0), session.length(1), session.length(9)), (3, 1, 0));
    assert!(logits[..VOCAB].iter().all(|logit| *logit != 7.0));
    assert!(logits[VOCAB..].iter().all(|logit| *logit == 7.0));
    session.truncate(0, 1).unwrap();
    assert_eq!(session.length(0), 1);
    fails(session.truncate(0, 2), Status::Argument, "cut to 2");
    fails(session.decode(&[1], None), Status::Argument, "1 tokens for 2 sequences");
    fails(session.decode(&[1, 1], Some(&mut logits[1..])), Status::Argument, "room for 63");
    fails(session.prefill(0, &[1], Some(&mut logits)), Status::Argument, "room for 64");
    fails(session.prefill(2, &[1], None), Status::Argument, "sequence 2");
    fails(session.prefill(0, &[], None), Status::Argument, "at least 1");
    fails(session.decode(&[VOCAB as i32, -1], None), Status::Argument, "");
}

#[test]
fn the_wrong_order_is_said() {
    let model = model();
    let mut session = session(&model);
    fails(session.sample(0, &sampling()), Status::State, "prefill");
    fails(
        session.generate(0, &[], &Default::default(), |_| ControlFlow::Continue(())),
        Status::State,
        "prefill",
    );
    fails(
        session.sample(0, &SampleOptions { temperature: -1.0, ..Default::default() }),
        Status::Argument,
        "temperature",
    );
    let options = GenerateOptions { stop_ids: &[-4], ..Default::default() };
    fails(session.tokens(0, &PROMPT, &options).next().unwrap(), Status::Argument, "stop id -4");
}

#[test]
fn outlives_its_model_and_counts_experts() {
    let model = model();
    let mut session = session(&model);
    drop(model);
    session.prefill(0, &PROMPT, None).unwrap();
    let stats = session.expert_stats(0).unwrap();
    assert_eq!((stats.tokens, stats.counts.iter().sum::<i64>()), (3, 6));
    assert_eq!(session.device().info().unwrap().name, "cpu");
}

#[test]
fn logits_that_are_not_numbers_are_refused() {
    let model = model();
    let head = model.parameter(HEAD).unwrap();
    head.copy_in(&vec![f32::NAN; head.len()]).unwrap();
    let mut session = session(&model);
    session.prefill(0, &PROMPT, None).unwrap();
    fails(session.sample(0, &SampleOptions::default()), Status::NonFinite, "");
}
