//! Configurations and byte plans.
mod common;
use common::*;
use moenn::*;

#[test]
fn presets_have_names() {
    for name in ["tiny", "small", "moe-6.9b", "gpt2-124m", "gpt2-350m", "gpt2-774m", "gpt2-1558m"] {
        let config = Config::preset(name).unwrap();
        assert_eq!(config.validate().unwrap(), config, "{name} is complete");
    }
    fails(Config::preset("huge"), Status::NotFound, "huge");
}

#[test]
fn defaults_are_filled_in() {
    let valid = config().validate().unwrap();
    assert_eq!((valid.kv_heads, valid.head_dim), (2, 8));
    assert_eq!((valid.norm_eps, valid.rope_theta, valid.init_std), (1e-5, 10000.0, 0.02));
    assert_eq!(valid.validate().unwrap(), valid);
}

#[test]
fn what_does_not_fit_is_named() {
    fails(Config::default().validate(), Status::Argument, "vocab_size");
    fails(Config { heads: 3, ..config() }.validate(), Status::Argument, "");
    fails(Config { hidden: usize::MAX, ..config() }.validate(), Status::Argument, "hidden");
    fails(Config { top_k: 0, ..config() }.validate(), Status::Argument, "top_k");
}

#[test]
fn json_goes_both_ways() {
    for config in [config(), gpt2(), Config { tied_head: true, aux_loss_coef: 0.5, ..config() }] {
        let config = config.validate().unwrap();
        let text = config.to_json().unwrap();
        assert!(text.trim_end().ends_with('}'), "{text}");
        let read = Config::from_json(&text).unwrap();
        assert_eq!(
            (read.family, read.layers, read.experts),
            (config.family, config.layers, config.experts)
        );
        assert_eq!(read.to_json().unwrap(), text);
    }
    let text =
        "{\"model_type\": \"qwen2_moe\", \"mlp_only_layers\": [0, 3], \"num_hidden_layers\": 5}";
    let read = Config::from_json(text).unwrap();
    assert_eq!(
        (read.family, read.dense_layers, read.shared_gate),
        (Family::Qwen2Moe, [9, 0, 0, 0], true)
    );
    assert_eq!((read.router_norm, read.dense_ffn, read.ffn), (RouterNorm::None, 5632, 1408));
    let text =
        "{\"model_type\": \"llama\", \"head_dim\": 4, \"rope_scaling\": {\"type\": \"longrope\", \
                \"short_factor\": [1, 1.5], \"long_factor\": [2, 64]}}";
    let read = Config::from_json(text).unwrap();
    assert_eq!(
        (read.rope_scaling, &read.rope_long_factors.0[..3]),
        (RopeScaling::Long, &[2.0, 64.0, 0.0][..])
    );
    assert_eq!(Config::from_json(&read.to_json().unwrap()).unwrap(), read);
    fails(Config::from_json("{"), Status::Format, "");
    fails(Config::from_json("{\"model_type\": \"abacus\"}"), Status::Unsupported, "abacus");
    fails(Config::from_json(""), Status::Format, "");
}

#[test]
fn the_plan_is_what_is_allocated() {
    let device = device();
    let shape = TrainOptions { batch: 2, seq_len: 8, ..Default::default() };
    let plan = config().plan_training(&device, DType::F32, &shape).unwrap();
    let before = device.memory().unwrap().current_bytes;
    let model = Model::new(&device, &config(), DType::F32, 1).unwrap();
    model.prepare(&shape).unwrap();
    let _optimizer = Optimizer::new(&model, &Default::default()).unwrap();
    assert_eq!(device.memory().unwrap().current_bytes - before, plan.total_bytes);
    assert_eq!(plan.parameter_bytes, 4 * plan.parameters);
    assert_eq!(plan.gradient_bytes, plan.parameter_bytes);
    assert!(plan.optimizer_bytes >= 2 * plan.parameter_bytes);
    assert_eq!((plan.master_bytes, plan.cache_bytes), (0, 0));
    assert!(plan.active_parameters < plan.parameters);
    let bf16 = config().plan_training(&device, DType::Bf16, &shape).unwrap();
    assert_eq!(bf16.master_bytes, 2 * plan.parameters);
}

#[test]
fn the_plan_of_serving_is_what_is_allocated() {
    let device = device();
    let options = SessionOptions { batch: 3, max_len: 10, prefill_chunk: 4 };
    let plan = config().plan_inference(&device, DType::F32, &options).unwrap();
    let before = device.memory().unwrap().current_bytes;
    let model = Model::new(&device, &config(), DType::F32, 1).unwrap();
    let _session = Session::new(&model, &options).unwrap();
    assert_eq!(device.memory().unwrap().current_bytes - before, plan.total_bytes);
    assert!(plan.cache_bytes > 0 && plan.activation_bytes > 0 && plan.workspace_bytes > 0);
    let options = SessionOptions { max_len: 1 << 40, ..Default::default() };
    fails(config().plan_inference(&device, DType::F32, &options), Status::Argument, "max_len");
}
