// Checks moenn.hpp: every handle, every kind of failure, exceptions through callbacks, use after
// reset, threads, cancel, and that nothing is left behind.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <thread>
#include <unistd.h>

#include "moenn.hpp"

namespace {

int checks = 0, failures = 0;

void check_that(bool holds, const char *what, int line) {
  checks++;
  if (holds) return;
  failures++;
  std::fprintf(stderr, "test_moenn.cpp:%d: not so: %s\n", line, what);
}
#define CHECK(...) check_that((__VA_ARGS__), #__VA_ARGS__, __LINE__)

template <class F>
nn_status_t status_of(F &&call) {
  try {
    call();
  } catch (const moenn::error &failure) {
    return std::strlen(failure.what()) > 3 ? failure.status() : 1;  // 1: no message
  }
  return NN_OK;
}
#define FAILS(status, ...) CHECK(status_of([&] { (void)(__VA_ARGS__); }) == (status))

static_assert(!std::is_copy_constructible_v<moenn::model> &&
              std::is_nothrow_move_constructible_v<moenn::model>);
static_assert(!std::is_copy_constructible_v<moenn::device> &&
              std::is_nothrow_move_assignable_v<moenn::session>);
static_assert(std::is_convertible_v<const std::vector<std::int32_t> &, moenn::ids>);
static_assert(!std::is_convertible_v<const std::vector<float> &, moenn::span<float>>);

moenn::model_config config() {  // a model that computes in no time
  moenn::model_config c;
  c.vocab_size = NN_BYTE_VOCAB;
  c.context = 64;
  c.layers = 2;
  c.hidden = 32;
  c.heads = 2;
  c.ffn = 32;
  c.experts = 4;
  c.top_k = 2;
  return c;
}

moenn::train_options shape(std::int64_t batch, std::int64_t seq_len) {
  moenn::train_options options;
  options.batch = batch;
  options.seq_len = seq_len;
  return options;
}

const std::string text = "the quick brown fox jumps over th";

std::vector<std::int32_t> ids_of(std::string_view part) { return {part.begin(), part.end()}; }
const auto tokens = ids_of(std::string_view(text).substr(0, 32));
const auto targets = ids_of(std::string_view(text).substr(1));

const std::filesystem::path folder =
    std::filesystem::temp_directory_path() / ("moenn-hpp-" + std::to_string(getpid()));

void test_device() {
  CHECK(moenn::abi_version() == NN_ABI_VERSION && !moenn::version().empty());
  CHECK(moenn::status_name(NN_ERR_IO) == "NN_ERR_IO" && moenn::dtype_bytes(NN_BF16) == 2);
  moenn::device_options two;
  two.threads = 2;
  moenn::device device("cpu", two), moved = std::move(device);
  CHECK(!device && moved && moved.info().threads == 2 && moved.info().name == std::string("cpu"));
  CHECK(moved.memory().current_bytes == 0);
  FAILS(NN_ERR_ARGUMENT, device.info());
  FAILS(NN_ERR_ARGUMENT, moenn::tensor(device, NN_F32, {1}));
  moved.reset();
  moved.reset();
  FAILS(NN_ERR_ARGUMENT, moved.memory());
  moved.cancel();
  FAILS(NN_ERR_NOT_FOUND, moenn::device("abacus"));
}

void test_log() {
  std::atomic<int> heard{0};
  auto share = std::make_shared<int>(1);
  {
    moenn::device device("cpu", {}, [&heard, share](std::int32_t level, std::string_view message) {
      heard += level == NN_LOG_WARNING && message == "spoken";
      throw 1;  // dropped
    });
    moenn::model model(device, config(), NN_F32, 1);
    device.reset();
    CHECK(share.use_count() == 2);
    try {
      (*model.log())(NN_LOG_WARNING, "spoken");
    } catch (int) {
    }
    CHECK(heard == 1);
  }
  CHECK(share.use_count() == 1);
}

void test_tensor() {
  moenn::device device;
  moenn::tensor x(device, NN_F32, {2, 3});
  const float in[] = {1, 2, 3, 4, 5, 6};
  float out[4];
  x.copy_in(in, sizeof in);
  auto view = x.slice(1, 1, 3);
  x.reset();  // a view keeps what it views
  view.copy_out(out, sizeof out);
  CHECK(out[0] == 2 && out[1] == 3 && out[2] == 5 && out[3] == 6);
  CHECK(view.info().ndim == 2 && view.info().shape[1] == 2 && view.info().strides[0] == 3);
  FAILS(NN_ERR_ARGUMENT, view.copy_out(out, 3));
  FAILS(NN_ERR_ARGUMENT, x.info());
  FAILS(NN_ERR_ARGUMENT, view.slice(2, 0, 1));
  std::int32_t memory[4] = {1, 2, 3, 4};
  auto wrapped = moenn::tensor::wrap(device, memory, NN_I32, {2, 2}, {1, 2});
  auto imported = moenn::tensor::from_dlpack(device, wrapped.to_dlpack());
  wrapped.reset();
  std::int32_t got[4];
  imported.copy_out(got, sizeof got);
  CHECK(got[0] == 1 && got[1] == 3 && got[2] == 2 && got[3] == 4);
  FAILS(NN_ERR_ARGUMENT, moenn::tensor::wrap(device, memory, NN_I32, {2, 2}, {1}));
  FAILS(NN_ERR_MEMORY, moenn::tensor(device, NN_F32, {std::int64_t(1) << 45}));
}

void test_config() {
  const auto small = moenn::preset("small");
  const auto again = moenn::config_from_json(moenn::config_to_json(small));
  CHECK(again.hidden == small.hidden && again.experts == small.experts);
  FAILS(NN_ERR_NOT_FOUND, moenn::preset("enormous"));
  FAILS(NN_ERR_FORMAT, moenn::config_from_json("{"));
  FAILS(NN_ERR_UNSUPPORTED, moenn::config_from_json("{\"model_type\": \"abacus\"}"));
  auto c = config();
  moenn::validate(c);
  CHECK(c.kv_heads == 2);
  c.top_k = 99;
  FAILS(NN_ERR_ARGUMENT, moenn::validate(c));
  c.struct_size = 1;
  FAILS(NN_ERR_STRUCT_SIZE, moenn::validate(c));
  moenn::device device;
  CHECK(device.plan_training(config(), NN_F32, shape(2, 16)).gradient_bytes > 0);
  CHECK(device.plan_inference(config(), NN_F32).cache_bytes > 0);
  moenn::lr_schedule schedule;
  schedule.lr = 1;
  schedule.warmup_steps = 10;
  CHECK(moenn::schedule_lr(schedule, 4) == 0.5f && moenn::schedule_lr(schedule, 99) == 1);
}

void test_training() {
  moenn::device device;
  moenn::model model(device, config(), NN_F32, 1);
  FAILS(NN_ERR_STATE, moenn::optim(model));
  FAILS(NN_ERR_STATE, model.backward(tokens, targets, 2));
  model.prepare(shape(2, 16));
  moenn::optim optim(model);
  const double first = model.evaluate(tokens, targets, 2).loss;
  for (int step = 0; step < 30; step++) {
    model.zero_grad();
    model.accumulate(tokens, targets, 2, 0.5f);
    model.backward(tokens, targets, 2, 0.5f);
    CHECK(optim.step(1e-2f) > 0);
  }
  CHECK(model.evaluate(tokens, targets, 2).loss < first - 1 && optim.steps() == 30);
  std::vector<float> logits(tokens.size() * NN_BYTE_VOCAB);
  model.forward(tokens, 2, logits);
  CHECK(logits.back() != 0);
  FAILS(NN_ERR_ARGUMENT, model.forward(tokens, 2, {logits.data(), 5}));
  FAILS(NN_ERR_ARGUMENT, model.evaluate(tokens, targets, 3));
  FAILS(NN_ERR_ARGUMENT, model.evaluate(tokens, {1}, 2));
  std::int64_t counts[4];
  double prob[4];
  const auto use = model.expert_stats(1, counts, prob);
  CHECK(counts[0] + counts[1] + counts[2] + counts[3] == 2 * use.tokens);
  FAILS(NN_ERR_ARGUMENT, model.expert_stats(1, {counts, 3}));
  model.expert_stats_reset();
  CHECK(model.expert_stats(0).tokens == 0);
  const std::string name = model.parameter_name(0);
  auto parameter = model.parameter(name);
  CHECK(parameter.info().elements == model.gradient(name).info().elements);
  CHECK(optim.moment(name, NN_MOMENT_SECOND).info().dtype == NN_F32);
  CHECK(!model.parameter_name(model.parameter_count()));
  FAILS(NN_ERR_NOT_FOUND, model.parameter("nobody"));
  optim.save(folder / "adam.safetensors");
  optim.set_steps(0);
  optim.load(folder / "adam.safetensors");
  CHECK(optim.steps() == 30);
  static_cast<float *>(parameter.info().data)[tokens[0] * 32] =
      std::numeric_limits<float>::quiet_NaN();
  FAILS(NN_ERR_NONFINITE, model.evaluate(tokens, targets, 2));
  model.reset();  // the optimizer keeps what it needs
  CHECK(optim.steps() == 30);
  FAILS(NN_ERR_ARGUMENT, model.zero_grad());
  CHECK(model.parameter_count() == 0 && model.loss_scale() == 0);
  CHECK(moenn::model(device, config(), NN_F16, 1).loss_scale() == 65536);
}

void test_files() {
  moenn::device device;
  moenn::model model(device, config(), NN_F32, 5);
  std::int64_t heard = 0;
  moenn::file_options options;
  options.shard_bytes = 50000;
  model.save(folder / "model", options,
             [&](std::int64_t done, std::int64_t) { return heard = done, false; });
  CHECK(heard > 0);
  const auto loaded = moenn::model::load(device, folder / "model");
  CHECK(loaded.config().layers == 2 && loaded.parameter_count() == model.parameter_count());
  FAILS(NN_ERR_CANCELLED,
        moenn::model::load(device, folder / "model", NN_F32, [](auto...) { return true; }));
  bool thrown = false;
  try {
    moenn::model::load(device, folder / "model", NN_F32, [](auto...) -> bool { throw 7; });
  } catch (int seven) {
    thrown = seven == 7;
  }
  CHECK(thrown);
  FAILS(NN_ERR_NOT_FOUND, moenn::model::load(device, folder / "none"));
  FAILS(NN_ERR_IO, model.save("/proc/version/model"));
  FAILS(NN_ERR_UNSUPPORTED, model.save_llmc(folder / "gpt2.bin"));
  auto gpt2 = moenn::preset("gpt2-124m");
  gpt2.layers = 1, gpt2.hidden = 32, gpt2.ffn = 128, gpt2.heads = 2, gpt2.kv_heads = 0,
  gpt2.head_dim = 0;
  gpt2.vocab_size = 128, gpt2.context = 16;
  moenn::model(device, gpt2, NN_F32, 1).save_llmc(folder / "gpt2.bin");
  CHECK(moenn::model::load_llmc(device, folder / "gpt2.bin").config().hidden == 32);
}

void test_text() {
  const auto bytes = moenn::tokenizer::bytes();
  CHECK(bytes.vocab_size() == NN_BYTE_VOCAB && bytes.encode("").empty());
  CHECK(bytes.decode(bytes.encode("h\xc3\xa9llo")) == "h\xc3\xa9llo");
  FAILS(NN_ERR_ARGUMENT, bytes.decode({NN_BYTE_VOCAB}));
  CHECK(bytes.special(NN_TOKEN_EOS) == NN_BYTE_EOS && bytes.special(NN_TOKEN_UNK) == -1);
  CHECK(bytes.token(NN_BYTE_EOS) == "<|eos|>" && bytes.id("<|eos|>") == NN_BYTE_EOS &&
        bytes.id("eos") == -1);
  FAILS(NN_ERR_NOT_FOUND, bytes.token(NN_BYTE_VOCAB));
  moenn::encode_options parse;
  parse.parse_special = 1;
  const auto [spelled, offsets] = bytes.encode_offsets("\xc3\xa9<|eos|>", parse);
  CHECK(spelled == std::vector<std::int32_t>({0xc3, 0xa9, NN_BYTE_EOS}) &&
        spelled == bytes.encode("\xc3\xa9<|eos|>", parse));
  CHECK(offsets[1][0] == 0 && offsets[1][1] == 2 && offsets[2][0] == 2 && offsets[2][1] == 9);
  moenn::decode_options keep;
  keep.keep_special = 1;
  CHECK(bytes.decode(spelled) == "\xc3\xa9" && bytes.decode(spelled, keep) == "\xc3\xa9<|eos|>");
  moenn::text_stream stream(bytes);
  CHECK(stream.push(0xc3).empty() && stream.push(0xa9) == "\xc3\xa9" && stream.push(0xe2).empty());
  CHECK(stream.finish() == "\xef\xbf\xbd");
  FAILS(NN_ERR_NOT_FOUND, moenn::tokenizer::load("/none"));
  FAILS(NN_ERR_NOT_FOUND, moenn::tokenizer::load_tiktoken("/none", "."));
}

void test_learnt_tokenizer() {
  moenn::tokenizer_train_options learning;
  const char *const specials[] = {"<unk>"};
  learning.vocab_size = 260;
  learning.min_frequency = 1;
  learning.specials = specials, learning.special_count = 1;
  std::int64_t heard = 0;
  const auto learnt =
      moenn::tokenizer::train({"low lower", "lowest"}, learning, [&](auto done, auto) {
        heard = done;
        return false;
      });
  CHECK(heard == 15 && learnt.vocab_size() == 260 && learnt.id("low") > 0);
  FAILS(NN_ERR_CANCELLED,
        moenn::tokenizer::train({"a"}, learning, [](auto, auto) { return true; }));
  FAILS(NN_ERR_NOT_FOUND, moenn::tokenizer::train_files({"/none"}));
  FAILS(NN_ERR_UNSUPPORTED, learnt.save_llmc("/none"));
  FAILS(NN_ERR_NOT_FOUND, learnt.save("/none/tokenizer.json"));
}

void test_data() {
  FAILS(NN_ERR_UNSUPPORTED, moenn::dataset::save_tokens("/none", {70000}));
  moenn::dataset_options windows;
  windows.seq_len = 2;
  moenn::dataset data({1, 2, 3, 4, 5}, windows);
  std::int32_t a[2], b[2];
  data.next(a, b);
  CHECK(a[0] == 1 && b[1] == 3 && data.position() == 1 && data.info().windows == 2);
  data.seek(3);
  data.next(a, b);
  CHECK(a[0] == 3);
  FAILS(NN_ERR_ARGUMENT, data.next({a, 1}, b));
  FAILS(NN_ERR_ARGUMENT, data.seek(-1));
  std::ofstream(folder / "text") << text;
  const auto bytes = moenn::tokenizer::bytes();
  CHECK(moenn::dataset::open_text(folder / "text", windows, &bytes).info().tokens == 33);
  FAILS(NN_ERR_FORMAT, moenn::dataset::open_tokens(folder / "text", windows));
  FAILS(NN_ERR_NOT_FOUND, moenn::dataset::open_text(folder / "none", windows));
  data.reset();
  FAILS(NN_ERR_ARGUMENT, data.next(a, b));
}

void test_session() {
  moenn::device device;
  moenn::model model(device, config(), NN_F32, 1);
  moenn::session_options options;
  options.batch = 2;
  options.max_len = 32;
  moenn::session session(model, options);
  FAILS(NN_ERR_STATE, session.sample(0));
  std::vector<float> logits(2 * NN_BYTE_VOCAB);
  session.prefill(0, {'a', 'b', 'c'}, {logits.data(), NN_BYTE_VOCAB});
  session.decode({'d', -1}, logits);
  CHECK(session.length(0) == 4 && session.length(1) == 0 && session.length(9) == 0);
  const auto best =
      std::max_element(logits.begin(), logits.begin() + NN_BYTE_VOCAB) - logits.begin();
  CHECK(session.sample(0) == best);
  CHECK(session.expert_stats(0).tokens == 4);
  session.truncate(0, 1);
  CHECK(session.length(0) == 1);
  FAILS(NN_ERR_ARGUMENT, session.decode({1}));
  FAILS(NN_ERR_ARGUMENT, session.prefill(0, {1}, logits));
  FAILS(NN_ERR_CAPACITY, session.prefill(0, std::vector<std::int32_t>(33)));
  moenn::sample_options sampling;
  sampling.temperature = 1;
  moenn::generate_options five;
  five.sampling = &sampling;
  five.max_tokens = 5;
  const auto made = session.generate(1, {'a'}, five);
  CHECK(made.size() == 5);
  session.truncate(1, 0);
  std::vector<std::int32_t> heard;
  CHECK(session.generate(1, {'a'}, five, [&](std::int32_t token, std::int64_t index) {
    heard.push_back(token);
    return index == 2;
  }) == NN_STOP_CALLBACK);
  CHECK(std::equal(heard.begin(), heard.end(), made.begin(), made.begin() + 3));
  session.truncate(1, 0);
  five.stop_ids = &made[1];
  five.stop_count = 1;
  CHECK(session.generate(1, {'a'}, five, nullptr) == NN_STOP_ID);
  session.truncate(1, 0);
  std::string why;
  try {
    session.generate(1, {'a'}, {}, [](auto...) -> bool { throw std::out_of_range("mine"); });
  } catch (const std::out_of_range &mine) {
    why = mine.what();
  }
  CHECK(why == "mine");
  model.reset();
  device.reset();
  session.decode({'a', -1});  // a session keeps what it needs
  moenn::session moved = std::move(session);
  moved.reset();
  FAILS(NN_ERR_ARGUMENT, session.generate(0, {'a'}));
  CHECK(session.length(0) == 0);
}

void test_threads_and_cancel() {
  moenn::device device;
  moenn::model model(device, config(), NN_F32, 1);
  std::vector<std::thread> threads;
  std::atomic<int> good{0};
  for (int i = 0; i < 6; i++) {
    moenn::session session(model);
    threads.emplace_back([&good, &device, i, session = std::move(session)]() mutable {
      const std::string name = "nobody " + std::to_string(i);
      for (int round = 0; round < 20; round++) {
        session.generate(0, {'a'});
        session.truncate(0, 0);
        try {
          moenn::model::load(device, name);
        } catch (const moenn::error &failure) {  // each thread's message is its own
          good += std::strstr(failure.what(), name.c_str()) != nullptr;
        }
      }
    });
  }
  for (auto &thread : threads) thread.join();
  CHECK(good == 120);
  moenn::session session(model);
  device.cancel();
  FAILS(NN_ERR_CANCELLED, session.prefill(0, {1}));
  device.cancel(false);
  moenn::model large(device, moenn::preset("small"), NN_F32, 1);
  large.prepare(shape(64, 256));
  const std::vector<std::int32_t> many(64 * 256);
  std::thread later([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
    device.cancel();
  });
  FAILS(NN_ERR_CANCELLED, large.backward(many, many, 64));
  later.join();
  device.cancel(false);
  large.zero_grad();
}

long resident() {
  long total = 0, pages = 0;
  std::ifstream("/proc/self/statm") >> total >> pages;
  return pages * sysconf(_SC_PAGESIZE);
}

void test_leaks() {
  moenn::device device;
  const auto rounds = [&](int count) {
    for (int i = 0; i < count; i++) {
      moenn::device other("cpu", {}, [](auto...) {});
      moenn::model model(device, config(), NN_F32, 1);
      model.prepare(shape(2, 16));
      moenn::optim optim(model);
      moenn::session session(model);
      session.generate(0, {'a'});
      auto view = model.parameter(model.parameter_name(0));
      FAILS(NN_ERR_NOT_FOUND, moenn::preset("nobody"));
    }
    CHECK(device.memory().current_bytes == 0);
    return resident();
  };
  const long before = rounds(50), after = rounds(150);
/* The sanitizer keeps what was freed for a while. */
#if !defined(__SANITIZE_ADDRESS__) && !defined(MOENN_SANITIZED)
  CHECK(after < before + (4 << 20));
#else
  (void)before, (void)after;
#endif
}

}  // namespace

int main() {
  std::filesystem::create_directories(folder);
  test_device();
  test_log();
  test_tensor();
  test_config();
  test_training();
  test_files();
  test_text();
  test_learnt_tokenizer();
  test_data();
  test_session();
  test_threads_and_cancel();
  test_leaks();
  std::filesystem::remove_all(folder);
  std::printf("%d checks, %d failed\n", checks, failures);
  return failures != 0;
}
