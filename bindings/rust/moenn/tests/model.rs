//! Models: parameters, files, training.
mod common;
use common::*;
use moenn::*;
use std::ops::ControlFlow;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::Path;
use std::rc::Rc;

fn logits(model: &Model) -> Vec<f32> {
    let (tokens, _) = batch();
    let mut logits = vec![0.0; tokens.len() * VOCAB];
    model.forward(&tokens, 2, &mut logits).unwrap();
    logits
}

/// Losses of some steps of training.
fn train<M: HoldsModel>(optimizer: &mut Optimizer<M>, steps: usize) -> Vec<u64> {
    let (tokens, targets) = batch();
    let step = |_| {
        optimizer.model().zero_grad().unwrap();
        let loss = optimizer.model().backward(&tokens, &targets, 2, 1.0).unwrap();
        assert!(optimizer.step(1e-2).unwrap() > 0.0);
        loss.loss.to_bits()
    };
    (0..steps).map(step).collect()
}

#[test]
fn parameters_have_names_and_shapes() {
    let model = model();
    let names: Vec<&str> = model.parameter_names().collect();
    assert_eq!(names.len(), model.parameter_count());
    assert_eq!(model.parameter_name(0), Some(names[0]));
    assert_eq!(model.parameter_name(names.len()), None);
    assert!(names.contains(&HEAD));
    assert_eq!(model.parameter(HEAD).unwrap().shape(), [VOCAB as i64, 16]);
    fails(model.parameter("nothing"), Status::NotFound, "nothing");
    assert_eq!(model.config(), &config().validate().unwrap());
}

#[test]
fn the_seed_is_the_model() {
    let of = |seed| {
        let model = Model::new(&device(), &config(), DType::F32, seed).unwrap();
        let head = model.parameter(HEAD).unwrap().to_vec::<f32>().unwrap();
        head
    };
    assert_eq!(of(1), of(1));
    assert_ne!(of(1), of(2));
}

#[test]
fn writing_a_parameter_changes_the_model() {
    let model = prepared();
    let before = logits(&model);
    let head = model.parameter(HEAD).unwrap();
    head.copy_in(&vec![0f32; head.len()]).unwrap();
    assert_ne!(logits(&model), before);
    assert!(logits(&model).iter().all(|logit| *logit == 0.0));
}

#[test]
fn losses_fall_and_repeat_to_the_bit() {
    let losses = train(&mut Optimizer::new(&prepared(), &Default::default()).unwrap(), 8);
    assert!(f64::from_bits(losses[7]) < f64::from_bits(losses[0]));
    let threads = DeviceOptions { threads: 2, ..Default::default() };
    let model =
        Model::new(&Device::open("cpu", threads).unwrap(), &config(), DType::F32, 7).unwrap();
    model.prepare(&TrainOptions { batch: 2, ..Default::default() }).unwrap();
    assert_eq!(train(&mut Optimizer::new(model, &Default::default()).unwrap(), 8), losses);
}

#[test]
fn recomputation_gives_the_same_losses() {
    let losses = train(&mut Optimizer::new(&prepared(), &Default::default()).unwrap(), 3);
    for recompute in [Recompute::Block, Recompute::Ffn] {
        let model = model();
        model.prepare(&TrainOptions { batch: 2, recompute, ..Default::default() }).unwrap();
        assert_eq!(train(&mut Optimizer::new(&model, &Default::default()).unwrap(), 3), losses);
    }
}

#[test]
fn micro_batches_add_up() {
    let model = prepared();
    let (tokens, targets) = batch();
    model.backward(&tokens, &targets, 2, 1.0).unwrap();
    let once = model.gradient(HEAD).unwrap().to_vec::<f32>().unwrap();
    model.accumulate(&tokens, &targets, 2, 1.0).unwrap();
    let twice = model.gradient(HEAD).unwrap().to_vec::<f32>().unwrap();
    /* the second sum rounds each gradient once: a few units of its last place */
    assert!(once
        .iter()
        .zip(&twice)
        .all(|(one, two)| (2.0 * one - two).abs() <= 1e-6 + 1e-4 * one.abs()));
    model.zero_grad().unwrap();
    assert!(model.gradient(HEAD).unwrap().to_vec::<f32>().unwrap().iter().all(|g| *g == 0.0));
}

#[test]
fn evaluation_counts_targets_and_experts() {
    let model = prepared();
    let (tokens, mut targets) = batch();
    targets[3] = -1;
    model.reset_expert_stats().unwrap();
    let loss = model.evaluate(&tokens, &targets, 2).unwrap();
    assert_eq!(loss.targets, 15);
    assert!((loss.loss - (VOCAB as f64).ln()).abs() < 0.5, "{loss:?}");
    assert_eq!((loss.aux_loss, loss.z_loss), (0.0, 0.0));
    let stats = model.expert_stats(1).unwrap();
    assert_eq!((stats.tokens, stats.dropped, stats.counts.len()), (16, 0, EXPERTS));
    assert_eq!(stats.counts.iter().sum::<i64>(), 32);
    assert!((stats.mean_prob.iter().sum::<f64>() - 1.0).abs() < 1e-6);
    assert!(stats.entropy <= 1.0 && stats.max_load >= 1.0);
    fails(model.expert_stats(2), Status::Argument, "layer");
    let dense = Model::new(&device(), &gpt2(), DType::F32, 1).unwrap();
    dense.prepare(&TrainOptions::default()).unwrap();
    fails(dense.expert_stats(0), Status::Unsupported, "");
}

#[test]
fn the_wrong_order_is_said() {
    let model = model();
    let (tokens, targets) = batch();
    fails(model.backward(&tokens, &targets, 2, 1.0), Status::State, "prepare");
    fails(Optimizer::new(&model, &Default::default()).map(drop), Status::State, "prepare");
    fails(model.gradient(HEAD), Status::State, "prepare");
}

#[test]
fn batches_of_other_shapes_are_refused() {
    let model = prepared();
    let (tokens, targets) = batch();
    fails(
        model.backward(&tokens, &targets[1..], 2, 1.0),
        Status::Argument,
        "16 tokens and 15 targets",
    );
    fails(model.evaluate(&tokens, &targets, 3), Status::Argument, "3 sequences");
    fails(model.evaluate(&tokens, &targets, 0), Status::Argument, "0 sequences");
    fails(model.evaluate(&[], &[], 1), Status::Argument, "");
    fails(model.forward(&tokens, 2, &mut [0.0; 5]), Status::Argument, "room for 5");
    fails(model.evaluate(&tokens, &targets, 4), Status::Argument, "");
    fails(model.evaluate(&[VOCAB as i32], &[0], 1), Status::Argument, "");
}

#[test]
fn what_is_not_finite_is_refused() {
    let model = prepared();
    let (tokens, targets) = batch();
    let mut optimizer = Optimizer::new(&model, &Default::default()).unwrap();
    let head = model.parameter(HEAD).unwrap();
    let good = head.to_vec::<f32>().unwrap();
    head.copy_in(&vec![f32::NAN; good.len()]).unwrap();
    fails(model.evaluate(&tokens, &targets, 2), Status::NonFinite, "");
    fails(model.backward(&tokens, &targets, 2, 1.0), Status::NonFinite, "");
    fails(optimizer.step(1e-3), Status::State, "");
    head.copy_in(&good).unwrap();
    model.zero_grad().unwrap();
    model.backward(&tokens, &targets, 2, 1.0).unwrap();
    optimizer.step(1e-3).unwrap();
}

#[test]
fn folders_go_both_ways() {
    let folder = Folder::new();
    let model = prepared();
    model.save(folder.path("m"), FileOptions { shard_bytes: 4096, ..Default::default() }).unwrap();
    let loaded =
        Model::load(model.device(), folder.path("m"), None, FileOptions::default()).unwrap();
    loaded.prepare(&TrainOptions { batch: 2, ..Default::default() }).unwrap();
    assert_eq!(logits(&loaded), logits(&model));
    let bf16 = Model::load(&device(), folder.path("m"), Some(DType::Bf16), FileOptions::default())
        .unwrap();
    assert_eq!(bf16.parameter(HEAD).unwrap().dtype(), DType::Bf16);
    assert_eq!(bf16.loss_scale(), 1.0);
    let f16 =
        Model::load(&device(), folder.path("m"), Some(DType::F16), FileOptions::default()).unwrap();
    assert_eq!(f16.loss_scale(), 65536.0);
    fails(
        Model::load(&device(), folder.path("m"), Some(DType::F64), Default::default()),
        Status::Unsupported,
        "",
    );
}

#[test]
fn llmc_checkpoints_go_both_ways() {
    let folder = Folder::new();
    let model = Model::new(&device(), &gpt2(), DType::F32, 3).unwrap();
    model.save_llmc(folder.path("model.bin"), FileOptions::default()).unwrap();
    let loaded =
        Model::load_llmc(&device(), folder.path("model.bin"), None, FileOptions::default())
            .unwrap();
    for name in model.parameter_names() {
        let of = |model: &Model| model.parameter(name).unwrap().to_vec::<f32>().unwrap();
        assert_eq!(of(&loaded), of(&model), "{name}");
    }
    let other = common::model();
    fails(
        other.save_llmc(folder.path("other.bin"), FileOptions::default()),
        Status::Unsupported,
        "",
    );
    folder.write("bad.bin", "not a checkpoint");
    fails(
        Model::load_llmc(&device(), folder.path("bad.bin"), None, Default::default()),
        Status::Format,
        "",
    );
}

#[test]
fn bad_folders_are_refused() {
    let folder = Folder::new();
    let load = |path: &Path| Model::load(&device(), path, None, FileOptions::default());
    fails(load(&folder.path("nowhere")), Status::NotFound, "nowhere");
    folder.write("config.json", "[]");
    fails(load(&folder.path("")), Status::Format, "");
    let file = folder.write("file", "");
    fails(model().save(file.join("m"), FileOptions::default()), Status::Io, "");
    fails(model().save("a\0b", FileOptions::default()), Status::Argument, "NUL");
}

#[test]
fn progress_is_reported_and_can_cancel() {
    let folder = Folder::new();
    let model = model();
    let mut last = (0, 0);
    let mut progress = |done, total| {
        assert!(done >= last.0 && done <= total);
        last = (done, total);
        ControlFlow::Continue(())
    };
    model
        .save(folder.path("m"), FileOptions { progress: Some(&mut progress), ..Default::default() })
        .unwrap();
    assert!(last.0 > 0 && last.0 == last.1);
    let mut stop = |_, _| ControlFlow::Break(());
    let options = FileOptions { progress: Some(&mut stop), ..Default::default() };
    fails(Model::load(&device(), folder.path("m"), None, options), Status::Cancelled, "");
    let options = FileOptions { progress: Some(&mut stop), ..Default::default() };
    fails(model.save(folder.path("n"), options), Status::Cancelled, "");
}

#[test]
fn a_panic_in_a_progress_closure_arrives() {
    let folder = Folder::new();
    let model = model();
    let mut panics = |_, _| panic!("in a progress closure");
    let options = FileOptions { progress: Some(&mut panics), ..Default::default() };
    let panic =
        catch_unwind(AssertUnwindSafe(|| model.save(folder.path("m"), options))).unwrap_err();
    assert_eq!(panic.downcast_ref(), Some(&"in a progress closure"));
    model.save(folder.path("m"), FileOptions::default()).unwrap();
}

#[test]
fn optimizers_resume_to_the_bit() {
    let folder = Folder::new();
    let mut first = Optimizer::new(prepared(), &Default::default()).unwrap();
    train(&mut first, 3);
    first.save(folder.path("state")).unwrap();
    first.model().save(folder.path("m"), FileOptions::default()).unwrap();
    let model = Model::load(&device(), folder.path("m"), None, FileOptions::default()).unwrap();
    model.prepare(&TrainOptions { batch: 2, ..Default::default() }).unwrap();
    let mut second = Optimizer::new(model, &Default::default()).unwrap();
    second.load(folder.path("state")).unwrap();
    assert_eq!(second.steps(), 3);
    assert_eq!(train(&mut second, 3), train(&mut first, 3));
    folder.write("bad", "{}");
    fails(second.load(folder.path("bad")), Status::Format, "");
    fails(second.load(folder.path("none")), Status::NotFound, "none");
}

#[test]
fn moments_and_steps_can_be_set_by_hand() {
    let mut optimizer = Optimizer::new(prepared(), &Default::default()).unwrap();
    train(&mut optimizer, 1);
    for moment in [Moment::First, Moment::Second] {
        let view = optimizer.moment(HEAD, moment).unwrap();
        assert!(view.to_vec::<f32>().unwrap().iter().any(|m| *m != 0.0));
        view.copy_in(&vec![0f32; view.len()]).unwrap();
    }
    fails(optimizer.moment("nothing", Moment::First), Status::NotFound, "nothing");
    optimizer.set_steps(0).unwrap();
    assert_eq!(optimizer.steps(), 0);
    fails(optimizer.set_steps(u64::MAX), Status::Argument, "");
}

#[test]
fn an_optimizer_borrows_shares_or_owns_its_model() {
    let model = prepared();
    let losses = train(&mut Optimizer::new(&model, &Default::default()).unwrap(), 2);
    let shared = Rc::new(prepared());
    let mut optimizer = Optimizer::new(Rc::clone(&shared), &Default::default()).unwrap();
    assert_eq!(train(&mut optimizer, 2), losses);
    drop(optimizer);
    let model = Rc::try_unwrap(shared).unwrap();
    let model = Optimizer::new(model, &Default::default()).unwrap().into_model();
    assert_eq!(model.parameter_count(), prepared().parameter_count());
}

#[test]
fn two_optimizers_of_one_model_take_turns() {
    let model = prepared();
    let mut first = Optimizer::new(&model, &Default::default()).unwrap();
    let mut second = Optimizer::new(
        &model,
        &OptimizerOptions { weight_decay: 0.1, grad_clip: 1.0, ..Default::default() },
    )
    .unwrap();
    train(&mut first, 1);
    train(&mut second, 2);
    assert_eq!((first.steps(), second.steps()), (1, 2));
    fails(
        Optimizer::new(&model, &OptimizerOptions { beta1: 2.0, ..Default::default() }).map(drop),
        Status::Argument,
        "beta1",
    );
}

#[test]
fn schedules_warm_up_and_fall() {
    let schedule = Schedule {
        kind: ScheduleKind::Cosine,
        lr: 1.0,
        min_lr: 0.1,
        warmup_steps: 10,
        total_steps: 110,
    };
    assert_eq!(schedule.at(4).unwrap(), 0.5);
    assert_eq!(schedule.at(10).unwrap(), 1.0);
    assert!((schedule.at(60).unwrap() - 0.55).abs() < 1e-6);
    assert_eq!(schedule.at(1000).unwrap(), 0.1);
    let linear = Schedule { kind: ScheduleKind::Linear, ..schedule };
    assert!((linear.at(60).unwrap() - 0.55).abs() < 1e-6);
    let constant = Schedule { lr: 0.5, ..Default::default() };
    assert_eq!(constant.at(1 << 40).unwrap(), 0.5);
    fails(Schedule { total_steps: 5, ..schedule }.at(0), Status::Argument, "total_steps");
}
