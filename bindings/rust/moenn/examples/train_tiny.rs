//! Trains a small mixture-of-experts model on the bytes of a text, as examples/train_tiny.c does:
//! with the same text, steps and seed it prints the same losses and saves the same bytes.
use std::ops::ControlFlow;
use std::time::Instant;
use std::{env, fs, process};

use moenn::*;

const USAGE: &str = "usage: train_tiny TEXT [options]
Trains on the first 90 % of a file's bytes and validates on the rest.
  --steps N     steps of training (default: 200)
  --seed S      of weights, data and sample (default: 1)
  --device D    cpu, or cuda:0 (default: cpu)
  --threads T   threads that compute (default: one per core)
  --out DIR     where the model is saved (default: tiny-model)";

const BATCH: usize = 4;
const LENGTH: usize = 256;
const PARTS: f64 = 20.0; // progress lines
const SHORT_CHECK: usize = 16; // batches of a validation on the way

struct Settings {
    text: String,
    steps: u64,
    seed: u64,
    device: String,
    threads: usize,
    out: String,
}

fn settings() -> Option<Settings> {
    let mut settings = Settings {
        text: String::new(),
        steps: 200,
        seed: 1,
        device: "cpu".into(),
        threads: 0,
        out: "tiny-model".into(),
    };
    let mut arguments = env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--steps" => {
                settings.steps = arguments.next()?.parse().ok().filter(|steps| *steps > 0)?
            }
            "--seed" => settings.seed = arguments.next()?.parse().ok()?,
            "--device" => settings.device = arguments.next()?,
            "--threads" => settings.threads = arguments.next()?.parse().ok()?,
            "--out" => settings.out = arguments.next()?,
            text if settings.text.is_empty() && !text.starts_with('-') => {
                settings.text = text.into()
            }
            _ => return None,
        }
    }
    Some(settings).filter(|settings| !settings.text.is_empty())
}

/// A batch, reused for all.
struct Batch {
    tokens: Vec<i32>,
    targets: Vec<i32>,
}

/// The text's windows: of the first 90 % for training, shuffled, and of the rest for validation.
fn open_text(settings: &Settings) -> Result<(Dataset, Dataset)> {
    let bytes = fs::metadata(&settings.text).map_or(0, |file| file.len() as usize);
    let split = bytes - bytes / 10;
    let windows =
        DatasetOptions { batch: BATCH, seq_len: LENGTH, seed: settings.seed, ..Default::default() };
    let valid = DatasetOptions { begin: split, ..windows };
    let train = DatasetOptions { end: split, shuffle: true, ..windows };
    Ok((
        Dataset::open_text(&settings.text, None, &train)?,
        Dataset::open_text(&settings.text, None, &valid)?,
    ))
}

/// Nats per byte over the validation part, or its first batches.
fn validate(model: &Model, valid: &mut Dataset, batch: &mut Batch, batches: usize) -> Result<f64> {
    let (mut nats, mut bytes) = (0.0, 0.0);
    valid.seek(0)?;
    for _ in 0..batches.min(valid.info()?.batches) {
        valid.next_batch(&mut batch.tokens, &mut batch.targets)?;
        let loss = model.evaluate(&batch.tokens, &batch.targets, BATCH)?;
        nats += loss.loss * loss.targets as f64;
        bytes += loss.targets as f64;
    }
    Ok(nats / bytes)
}

fn train(
    model: &Model,
    data: &mut Dataset,
    valid: &mut Dataset,
    batch: &mut Batch,
    steps: u64,
) -> Result<()> {
    let adamw = OptimizerOptions { weight_decay: 0.1, grad_clip: 1.0, ..Default::default() };
    let schedule = Schedule {
        kind: ScheduleKind::Cosine,
        lr: 1.5e-3,
        min_lr: 1.5e-5,
        warmup_steps: 50,
        total_steps: 1000, // = the run
    };
    let mut optimizer = Optimizer::new(model, &adamw)?;
    let megabytes = 1e-6 * model.device().memory()?.current_bytes as f64;
    let start = Instant::now();
    let (mut share, mut lines) = (0.0, 0);
    for step in 1..=steps {
        data.next_batch(&mut batch.tokens, &mut batch.targets)?;
        model.zero_grad()?;
        let loss = model.backward(&batch.tokens, &batch.targets, BATCH, 1.0)?;
        optimizer.step(schedule.at((share * 1000.0) as u64)?)?;
        share = step as f64 / steps as f64;
        if share * PARTS < f64::from(lines + 1) {
            continue;
        }
        lines += 1;
        let time = start.elapsed().as_secs_f64();
        println!(
            "step {step:4}  loss {:.4}  {:.0} tokens/s  {megabytes:.0} MB  {:.0} s left",
            loss.loss,
            (step as usize * BATCH * LENGTH) as f64 / time,
            time / share - time
        );
        if lines % 5 == 0 && step < steps {
            println!("validation loss about {:.4}", validate(model, valid, batch, SHORT_CHECK)?);
        }
    }
    Ok(())
}

fn write_sample(model: &Model, seed: u64) -> Result<()> {
    let sampling = SampleOptions { temperature: 0.8, seed, ..Default::default() };
    let options = GenerateOptions { sampling, ..Default::default() };
    let mut session = Session::new(model, &SessionOptions::default())?;
    let mut text = Vec::new();
    session.generate(0, &[i32::from(b'\n')], &options, |token| {
        text.extend(u8::try_from(token).map(|byte| {
            if byte < b' ' && byte != b'\n' {
                b'?'
            } else {
                byte
            }
        }));
        ControlFlow::Continue(())
    })?;
    println!("{}\n", String::from_utf8_lossy(&text));
    Ok(())
}

fn run(settings: &Settings) -> Result<()> {
    let (mut data, mut valid) = open_text(settings)?;
    let place = DeviceOptions { threads: settings.threads, ..Default::default() };
    let device = Device::open(&settings.device, place)?;
    let model = Model::new(&device, &Config::preset("small")?, DType::F32, settings.seed)?;
    model.prepare(&TrainOptions { batch: BATCH, seq_len: LENGTH, ..Default::default() })?;
    let mut batch = Batch { tokens: vec![0; BATCH * LENGTH], targets: vec![0; BATCH * LENGTH] };

    train(&model, &mut data, &mut valid, &mut batch, settings.steps)?;

    model.reset_expert_stats()?;
    let loss = validate(&model, &mut valid, &mut batch, usize::MAX)?;
    println!("validation loss {loss:.4} nats per byte");
    for layer in 0..model.config().layers {
        let used = model.expert_stats(layer)?;
        println!(
            "layer {layer}: entropy of expert use {:.3} of 1, the busiest has {:.2} times its \
             share",
            used.entropy, used.max_load
        );
    }
    write_sample(&model, settings.seed)?;
    model.save(&settings.out, FileOptions::default())?;
    println!("saved in {}", settings.out);
    Ok(())
}

fn main() {
    let settings = settings().unwrap_or_else(|| {
        eprintln!("{USAGE}");
        process::exit(2)
    });
    if let Err(error) = run(&settings) {
        eprintln!("train_tiny: {error}");
        process::exit(1)
    }
}
