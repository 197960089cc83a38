// Trains a small mixture-of-experts language model on a text, byte by byte: measures it, lets it
// write, saves it, and proves that what was saved is the same model. The same text, seed and steps
// give the same losses as examples/train_tiny.c, to the last bit.
#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "moenn.hpp"

namespace {

constexpr std::int64_t batch = 4, length = 256;       // sequences in a step, bytes in a sequence
constexpr std::int64_t shortest = (length + 1) * 10 / 9;  // bytes of a text
constexpr int parts = 20, short_check = 16; // progress lines; batches of a validation on the way

const char usage[] =
    "usage: train_tiny TEXT [options]\n"
    "Trains a small mixture-of-experts model on the bytes of a file: the first 90 % train, the\n"
    "last 10 % validate.\n"
    "  --minutes M   train for M minutes (default: 1.2)\n"
    "  --steps N     train for N steps instead: the same losses on every run, at any thread count\n"
    "  --seed S      of weights, data and sample (default: 1)\n"
    "  --device D    cpu, or cuda:0 (default: cpu)\n"
    "  --threads T   threads that compute (default: one per core)\n"
    "  --out DIR     where the model is saved, before training and after (default: tiny-model)\n"
    "Ctrl-C saves the model and leaves with exit code 130; a second one leaves at once.\n";

struct settings {
  std::string text, out = "tiny-model", device = "cpu";
  double minutes = 1.2, steps = 0;
  std::uint64_t seed = 1;
  std::int32_t threads = 0;
};

volatile std::sig_atomic_t interrupted = 0;

void on_interrupt(int number) {
  interrupted = 1;
  std::signal(number, SIG_DFL);
}

settings read_settings(int argc, char **argv) {
  settings s;
  const auto leave = [](std::FILE *to, int code) {
    std::fputs(usage, to);
    std::exit(code);
  };
  for (int i = 1; i < argc; i++) {
    const std::string_view name = argv[i];
    if (name == "--help") leave(stdout, 0);
    if (name.substr(0, 2) != "--" && s.text.empty()) {
      s.text = name;
      continue;
    }
    if (++i == argc) leave(stderr, 2);
    if (name == "--minutes") s.minutes = std::stod(argv[i]);
    else if (name == "--steps") s.steps = static_cast<double>(std::stoll(argv[i]));
    else if (name == "--seed") s.seed = std::stoull(argv[i]);
    else if (name == "--device") s.device = argv[i];
    else if (name == "--threads") s.threads = std::stoi(argv[i]);
    else if (name == "--out") s.out = argv[i];
    else leave(stderr, 2);
  }
  if (s.text.empty()) leave(stderr, 2);
  return s;
}

class trainer {
 public:
  explicit trainer(const settings &s)
      : settings_(s), device_(s.device, place(s)), data_(open(s, false)), valid_(open(s, true)),
        config_(moenn::preset("small")), model_(device_, config_, NN_F32, s.seed) {
    model_.prepare(shape());
    model_.save(s.out);  // a bad folder is found now, not after hours
  }

  void train() {
    moenn::optim_options adamw;
    adamw.weight_decay = 0.1f;
    adamw.grad_clip = 1;
    moenn::lr_schedule schedule;
    schedule.kind = NN_SCHEDULE_COSINE;
    schedule.lr = 1.5e-3f;
    schedule.min_lr = 1.5e-5f;
    schedule.warmup_steps = 50;
    schedule.total_steps = 1000;  // = the run
    moenn::optim optim(model_, adamw);
    const auto held = device_.memory();
    const auto start = std::chrono::steady_clock::now();
    double share = 0;  // of the run that is done
    for (int step = 1, lines = 0; share < 1 && !interrupted; step++) {
      data_.next(tokens_, targets_);
      model_.zero_grad();
      const auto loss = model_.backward(tokens_, targets_, batch);
      optim.step(moenn::schedule_lr(schedule, static_cast<std::int64_t>(share * 1000)));
      const double time =
          std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      share = settings_.steps > 0 ? step / settings_.steps : time / (60 * settings_.minutes);
      if (share * parts < lines + 1) continue;
      lines++;
      std::printf("step %4d  loss %.4f  %.0f tokens/s  %.0f MB  %.0f s left\n", step, loss.loss,
                  step * static_cast<double>(batch * length) / time,
                  1e-6 * static_cast<double>(held.current_bytes),
                  std::max(0.0, time / share - time));
      if (lines % 5 == 0 && share < 1)
        std::printf("validation loss about %.4f\n", validate(short_check));
    }
  }

  // Validation loss, and how evenly it used the experts.
  void measure() {
    model_.expert_stats_reset();
    const double loss = validate(valid_.info().batches);
    if (interrupted) return;
    std::printf("validation loss %.4f nats per byte\n", loss);
    for (int layer = 0; layer < config_.layers; layer++) {
      const auto use = model_.expert_stats(layer);
      std::printf(
          "layer %d: entropy of expert use %.3f of 1, the busiest has %.2f times its share\n",
          layer, use.entropy, use.max_load);
    }
  }

  void write_sample() {
    moenn::sample_options sampling;
    sampling.temperature = 0.8f;
    sampling.seed = settings_.seed;
    moenn::generate_options options;
    options.sampling = &sampling;
    moenn::session(model_).generate(0, {'\n'}, options, [](std::int32_t token, std::int64_t) {
      if (token < NN_BYTE_BOS) std::putchar(token < ' ' && token != '\n' ? '?' : token);
      return interrupted != 0;
    });
    std::printf("\n\n");
  }

  // Saves, loads, and compares every logit of a batch, bit for bit.
  void save_and_prove() {
    model_.save(settings_.out);
    auto loaded = moenn::model::load(device_, settings_.out, NN_F32);
    loaded.prepare(shape());
    std::vector<float> saved(tokens_.size() * NN_BYTE_VOCAB), again(saved.size());
    model_.forward(tokens_, batch, saved);
    loaded.forward(tokens_, batch, again);
    if (std::memcmp(saved.data(), again.data(), saved.size() * sizeof saved[0]) != 0)
      throw std::runtime_error(settings_.out + ": other logits");
    std::printf("saved in %s; reloaded, it gives the same logits, bit for bit\n",
                settings_.out.c_str());
  }

 private:
  static moenn::device_options place(const settings &s) {
    moenn::device_options options;
    options.threads = s.threads;
    return options;
  }
  static moenn::train_options shape() {
    moenn::train_options options;
    options.batch = batch;
    options.seq_len = length;
    return options;
  }
  static moenn::dataset open(const settings &s, bool valid) {
    const auto bytes = static_cast<std::int64_t>(std::filesystem::file_size(s.text));
    if (bytes < shortest) throw std::runtime_error(s.text + ": is too short");
    moenn::dataset_options options;
    options.batch = batch;
    options.seq_len = length;
    options.seed = s.seed;
    options.shuffle = !valid;
    (valid ? options.begin : options.end) = bytes - bytes / 10;
    return moenn::dataset::open_text(s.text, options);
  }

  // Nats per byte over the validation part, or its first batches.
  double validate(std::int64_t batches) {
    double nats = 0, bytes = 0;
    batches = std::min(batches, valid_.info().batches);
    valid_.seek(0);
    for (std::int64_t i = 0; i < batches && !(interrupted && i); i++) {
      valid_.next(tokens_, targets_);
      const auto loss = model_.evaluate(tokens_, targets_, batch);
      nats += loss.loss * static_cast<double>(loss.targets);
      bytes += static_cast<double>(loss.targets);
    }
    return nats / bytes;
  }

  const settings settings_;
  moenn::device device_;
  moenn::dataset data_, valid_;
  moenn::model_config config_;
  moenn::model model_;
  std::vector<std::int32_t> tokens_ = std::vector<std::int32_t>(batch * length), targets_ = tokens_;
};

}  // namespace

int main(int argc, char **argv) try {
  std::setvbuf(stdout, nullptr, _IONBF, 0);
  trainer run(read_settings(argc, argv));
  std::signal(SIGINT, on_interrupt);
  run.train();
  if (!interrupted) run.measure();
  if (!interrupted) run.write_sample();
  run.save_and_prove();
  return interrupted ? 130 : 0;
} catch (const moenn::error &failure) {
  std::fprintf(stderr, "train_tiny: %s: %s\n", nn_status_name(failure.status()), failure.what());
  return 1;
} catch (const std::exception &failure) {
  std::fprintf(stderr, "train_tiny: %s\n", failure.what());
  return 1;
}
