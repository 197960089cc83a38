/**
 * @file moenn.hpp
 * @brief libmoenn for C++17: handles that close themselves and exceptions, over moenn.h.
 *
 * moenn.h says what each call does, which threads may make it and what zero means in an option; its
 * enumerators are used as they are. This header adds:
 *
 * - A handle is a class that can be moved and not copied; its destructor, or reset(), gives it
 *   back. One that was moved from or reset throws NN_ERR_ARGUMENT when used; getters that cannot
 *   fail return 0.
 * - Failures are thrown as moenn::error, which carries the status and the message.
 * - Structs begin with their struct_size set: `moenn::train_options shape; shape.batch = 4;`
 * - Arrays are passed as moenn::span, which vectors, arrays and braced lists convert to without a
 *   copy; one of the wrong size throws NN_ERR_ARGUMENT.
 * - Callbacks are callables. What they throw ends the call and is thrown by it.
 */
#ifndef MOENN_HPP
#define MOENN_HPP

#include <array>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <initializer_list>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "moenn.h"

namespace moenn {

/** A failed call: what() is nn_last_error()'s message. */
class error : public std::runtime_error {
 public:
  error(nn_status_t status, const std::string &message)
      : std::runtime_error(message), status_(status) {}
  nn_status_t status() const noexcept { return status_; }

 private:
  nn_status_t status_;
};

/** Throws if a call has failed. */
inline void check(nn_status_t status) {
  if (status != NN_OK) throw error(status, nn_last_error());
}

/** A struct of options or results: zero, but for its struct_size. */
template <class T>
struct sized : T {
  sized() noexcept : T{} { this->struct_size = sizeof(T); }
};
using device_options = sized<nn_device_options_t>;
using device_info = sized<nn_device_info_t>;
using memory_info = sized<nn_memory_t>;
using tensor_info = sized<nn_tensor_info_t>;
using model_config = sized<nn_model_config_t>;
using byte_plan = sized<nn_plan_t>;
using train_options = sized<nn_train_options_t>;
using session_options = sized<nn_session_options_t>;
using encode_options = sized<nn_encode_options_t>;
using decode_options = sized<nn_decode_options_t>;
using file_options = sized<nn_file_options_t>;
using loss_info = sized<nn_loss_t>;
using expert_info = sized<nn_expert_stats_t>;
using optim_options = sized<nn_optim_options_t>;
using lr_schedule = sized<nn_schedule_t>;
using tokenizer_train_options = sized<nn_tokenizer_train_options_t>;
using dataset_options = sized<nn_dataset_options_t>;
using dataset_info = sized<nn_dataset_info_t>;
using sample_options = sized<nn_sample_options_t>;
using generate_options = sized<nn_generate_options_t>;

/** A view of an array: std::span, before C++20. */
template <class T>
class span {
 public:
  span() noexcept = default;
  span(T *data, std::size_t size) noexcept : data_(data), size_(size) {}
  template <std::size_t N>
  span(T (&array)[N]) noexcept : data_(array), size_(N) {}
  template <class C, class = std::enable_if_t<
                         std::is_convertible_v<decltype(std::declval<C &>().data()), T *>>>
  span(C &&container) noexcept : data_(container.data()), size_(container.size()) {}
  /** For an argument, as in `prefill(0, {1, 2, 3})`: the list goes at the end of the statement. */
  template <class U = T, class = std::enable_if_t<std::is_const_v<U>>>
  span(const std::initializer_list<std::remove_const_t<U>> &list) noexcept
      : span(list.begin(), list.size()) {}

  T *data() const noexcept { return data_; }
  std::size_t size() const noexcept { return size_; }
  std::int64_t count() const noexcept { return static_cast<std::int64_t>(size_); }
  T *begin() const noexcept { return data_; }
  T *end() const noexcept { return data_ + size_; }

 private:
  T *data_ = nullptr;
  std::size_t size_ = 0;
};
using ids = span<const std::int32_t>;
using sizes = span<const std::int64_t>;

/** Receives a message; called from any thread that uses the device. What it throws is dropped. */
using log_fn = std::function<void(std::int32_t level, std::string_view message)>;
/** Hears of bytes read or written; returns whether to stop. */
using progress_fn = std::function<bool(std::int64_t done, std::int64_t total)>;
/** Hears of each generated token; returns whether to stop after it. */
using token_fn = std::function<bool(std::int32_t token, std::int64_t index)>;

namespace detail {

inline void require(bool fits, const char *what) {
  if (!fits) throw error(NN_ERR_ARGUMENT, what);
}

/* Is n == a * b? */
inline bool is_product(std::size_t n, std::int64_t a, std::int64_t b) {
  return a >= 0 && b >= 0 && n == static_cast<std::size_t>(a) * static_cast<std::size_t>(b);
}

/* Calls a function whose last parameter receives a Result. */
template <class Result, class F, class... Args>
Result get(F *function, Args... args) {
  Result result{};
  check(function(args..., &result));
  return result;
}

/* Lets C call a callable: what that throws is kept, and stops the call, which finish() then
 * throws. */
template <class F>
struct guard {
  const F &callable;
  std::exception_ptr thrown = nullptr;

  template <class... Args>
  static std::int32_t call(Args... args, void *user) noexcept {
    auto *self = static_cast<guard *>(user);
    try {
      return self->callable && self->callable(args...);
    } catch (...) {
      self->thrown = std::current_exception();
      return 1;
    }
  }
  void finish(nn_status_t status) const {
    if (thrown) std::rethrow_exception(thrown);
    check(status);
  }
};

/* Of options that have progress. */
template <class Options>
struct progress_guard : guard<progress_fn> {
  Options options;
  progress_guard(const Options &rest, const progress_fn &progress)
      : guard{progress}, options(rest) {
    if (!progress) return;
    options.progress = call<std::int64_t, std::int64_t>;
    options.progress_user = static_cast<guard *>(this);
  }
  progress_guard(const progress_guard &) = delete;
  progress_guard &operator=(const progress_guard &) = delete;
};

/* Owns a handle of C, and its share of the log of the device that it lives on. */
template <class T, void (*destroy)(T *)>
class handle {
 public:
  /** The handle of C, which stays this object's. */
  T *get() const noexcept { return owned_.get(); }
  explicit operator bool() const noexcept { return owned_ != nullptr; }
  /** Gives the handle back now. */
  void reset() noexcept { owned_.reset(); }
  /** The log that what lives on the same device shares. */
  const std::shared_ptr<const log_fn> &log() const noexcept { return owned_.get_deleter().log; }

 protected:
  /* Takes what a function makes, whose last parameter receives it. */
  template <class F, class... Args>
  handle(std::shared_ptr<const log_fn> log, F *make, Args... args)
      : owned_(detail::get<T *>(make, args...), deleter{std::move(log)}) {}

 private:
  struct deleter {
    std::shared_ptr<const log_fn> log;
    void operator()(T *owned) const noexcept { destroy(owned); }
  };
  std::unique_ptr<T, deleter> owned_;
};

}  // namespace detail

inline std::string_view version() noexcept { return nn_version(); }
inline std::int32_t abi_version() noexcept { return nn_abi_version(); }
inline std::string_view status_name(nn_status_t status) noexcept { return nn_status_name(status); }
inline std::size_t dtype_bytes(std::int32_t dtype) noexcept { return nn_dtype_bytes(dtype); }

inline model_config preset(const std::string &name) {
  model_config config;
  check(nn_config_preset(name.c_str(), &config));
  return config;
}
inline model_config config_from_json(std::string_view text) {
  model_config config;
  check(nn_config_from_json(text.data(), text.size(), &config));
  return config;
}
inline std::string config_to_json(const model_config &config) {
  std::size_t required = 0;
  if (nn_status_t status = nn_config_to_json(&config, nullptr, 0, &required);
      status != NN_ERR_CAPACITY)
    check(status);
  std::string text(required, '\0');
  check(nn_config_to_json(&config, text.data(), text.size(), &required));
  text.resize(required - 1);  // without the NUL
  return text;
}
/** Checks a configuration and writes the defaults in place of zeros. */
inline void validate(model_config &config) { check(nn_config_validate(&config)); }
inline float schedule_lr(const lr_schedule &schedule, std::int64_t step) {
  return detail::get<float>(nn_schedule_lr, &schedule, step);
}

/** A place to compute. */
class device : public detail::handle<nn_device_t, nn_device_destroy> {
 public:
  /** A log lives until the last handle on the device is gone; what DLPack exports is not
   *  counted. */
  explicit device(const std::string &name = "cpu", const device_options &options = {},
                  log_fn log = nullptr)
      : device(name, options, log ? std::make_shared<const log_fn>(std::move(log)) : nullptr) {}
  device_info info() const { return detail::get<device_info>(nn_device_info, get()); }
  memory_info memory() const { return detail::get<memory_info>(nn_device_memory, get()); }
  void cancel(bool on = true) noexcept { nn_device_cancel(get(), on); }
  byte_plan plan_training(const model_config &config, std::int32_t dtype,
                          const train_options &options = {}) const {
    return detail::get<byte_plan>(nn_plan_training, get(), &config, dtype, &options);
  }
  byte_plan plan_inference(const model_config &config, std::int32_t dtype,
                           const session_options &options = {}) const {
    return detail::get<byte_plan>(nn_plan_inference, get(), &config, dtype, &options);
  }

 private:
  device(const std::string &name, device_options options, std::shared_ptr<const log_fn> log)
      : handle(log, nn_device_create, name.c_str(), with_log(options, log.get())) {}
  static const nn_device_options_t *with_log(device_options &options, const log_fn *log) {
    if (log) options.log = call_log, options.log_user = const_cast<log_fn *>(log);
    return &options;
  }
  static void call_log(std::int32_t level, const char *message, void *user) noexcept {
    try {
      (*static_cast<const log_fn *>(user))(level, message);
    } catch (...) {  // no call of C++ may be there to throw it
    }
  }
};

/** An n-dimensional array on a device. */
class tensor : public detail::handle<nn_tensor_t, nn_tensor_destroy> {
 public:
  /** Zeros. */
  tensor(device &on, std::int32_t dtype, sizes shape)
      : handle(on.log(), nn_tensor_create, on.get(), dtype, rank(shape), shape.data()) {}
  /** Over the caller's memory, which must outlive the tensor; no strides: row-major. */
  static tensor wrap(device &on, void *data, std::int32_t dtype, sizes shape, sizes strides = {}) {
    detail::require(!strides.size() || strides.size() == shape.size(),
                    "wrap: strides and shape differ in length");
    return {on, nn_tensor_wrap, on.get(), data, dtype, rank(shape), shape.data(), strides.data()};
  }
  /** Imports a DLManagedTensor, and owns it unless it throws. */
  static tensor from_dlpack(device &on, void *managed) {
    return {on, nn_tensor_from_dlpack, on.get(), managed};
  }
  /** Exports a DLManagedTensor, whose deleter the consumer calls once. */
  void *to_dlpack() const { return detail::get<void *>(nn_tensor_to_dlpack, get()); }
  /** A view of elements begin to end - 1 of one dimension. */
  tensor slice(std::int32_t dim, std::int64_t begin, std::int64_t end) const {
    return {*this, nn_tensor_slice, get(), dim, begin, end};
  }
  tensor_info info() const { return detail::get<tensor_info>(nn_tensor_info, get()); }
  /** From and to row-major host memory of the tensor's dtype. */
  void copy_in(const void *source, std::size_t bytes) {
    check(nn_tensor_copy_in(get(), source, bytes));
  }
  void copy_out(void *target, std::size_t bytes) const {
    check(nn_tensor_copy_out(get(), target, bytes));
  }

 private:
  friend class model;
  friend class optim;
  template <class Owner, class F, class... Args>
  tensor(const Owner &owner, F *make, Args... args) : handle(owner.log(), make, args...) {}
  static std::int32_t rank(sizes shape) { return static_cast<std::int32_t>(shape.size()); }
};

/** A configuration and its parameters; gradients once training is prepared. */
class model : public detail::handle<nn_model_t, nn_model_destroy> {
 public:
  /** Random weights. */
  model(device &on, const model_config &config, std::int32_t dtype, std::uint64_t seed)
      : handle(on.log(), nn_model_create, on.get(), &config, dtype, seed) {}
  /** Reads a Hugging Face folder. */
  static model load(device &on, const std::string &folder, std::int32_t dtype = NN_DTYPE_FILE,
                    const progress_fn &progress = nullptr) {
    return load(nn_model_load, on, folder, dtype, progress);
  }
  /** Reads an llm.c checkpoint. */
  static model load_llmc(device &on, const std::string &path, std::int32_t dtype = NN_DTYPE_FILE,
                         const progress_fn &progress = nullptr) {
    return load(nn_model_load_llmc, on, path, dtype, progress);
  }
  void save(const std::string &folder, const file_options &options = {},
            const progress_fn &progress = nullptr) const {
    detail::progress_guard<file_options> guard(options, progress);
    guard.finish(nn_model_save(get(), folder.c_str(), &guard.options));
  }
  void save_llmc(const std::string &path, const progress_fn &progress = nullptr) const {
    detail::progress_guard<file_options> guard({}, progress);
    guard.finish(nn_model_save_llmc(get(), path.c_str(), &guard.options));
  }
  model_config config() const { return detail::get<model_config>(nn_model_config, get()); }
  std::int64_t parameter_count() const noexcept { return nn_model_parameter_count(get()); }
  /** NULL when there is none. */
  const char *parameter_name(std::int64_t index) const noexcept {
    return nn_model_parameter_name(get(), index);
  }
  /** Views of the model's memory. */
  tensor parameter(const std::string &name) const {
    return {*this, nn_model_parameter, get(), name.c_str()};
  }
  tensor gradient(const std::string &name) const {
    return {*this, nn_model_gradient, get(), name.c_str()};
  }
  void prepare(const train_options &options) { check(nn_model_prepare(get(), &options)); }
  /** Gives gradients and activations back. */
  void unprepare() { check(nn_model_prepare(get(), nullptr)); }
  /** Logits, [batch, seq_len, vocab_size], of tokens, [batch, seq_len]. */
  void forward(ids tokens, std::int64_t batch, span<float> logits) {
    detail::require(detail::is_product(logits.size(), tokens.count(), config().vocab_size),
                    "forward: logits are not [batch, seq_len, vocab_size]");
    check(nn_model_forward(get(), tokens.data(), batch, seq_len(tokens, tokens, batch),
                           logits.data()));
  }
  /** Tokens and targets are [batch, seq_len]. */
  loss_info evaluate(ids tokens, ids targets, std::int64_t batch) {
    return detail::get<loss_info>(nn_model_evaluate, get(), tokens.data(), targets.data(), batch,
                                  seq_len(tokens, targets, batch));
  }
  loss_info backward(ids tokens, ids targets, std::int64_t batch, float scale = 1) {
    return detail::get<loss_info>(nn_model_backward, get(), tokens.data(), targets.data(), batch,
                                  seq_len(tokens, targets, batch), scale);
  }
  /** Without the loss, so that a GPU's work is not waited for. */
  void accumulate(ids tokens, ids targets, std::int64_t batch, float scale = 1) {
    check(nn_model_backward(get(), tokens.data(), targets.data(), batch,
                            seq_len(tokens, targets, batch), scale, nullptr));
  }
  void zero_grad() { check(nn_model_zero_grad(get())); }
  /** What the gradients are multiplied by: 1 unless parameters are NN_F16. */
  double loss_scale() const noexcept { return nn_model_loss_scale(get()); }
  /** Counts and mean_prob are [experts], or empty. */
  expert_info expert_stats(std::int64_t layer, span<std::int64_t> counts = {},
                           span<double> mean_prob = {}) const {
    require_experts(config().experts, counts, mean_prob);
    return detail::get<expert_info>(nn_model_expert_stats, get(), layer, counts.data(),
                                    mean_prob.data());
  }
  void expert_stats_reset() { check(nn_model_expert_stats_reset(get())); }

 private:
  friend class session;
  template <class F, class... Args>
  model(const device &on, F *make, Args... args) : handle(on.log(), make, args...) {}
  static model load(decltype(nn_model_load) *read, device &on, const std::string &path,
                    std::int32_t dtype, const progress_fn &progress) {
    detail::progress_guard<file_options> guard({}, progress);
    try {
      return {on, read, on.get(), path.c_str(), dtype, &guard.options};
    } catch (const error &) {
      guard.finish(NN_OK);
      throw;
    }
  }
  static std::int64_t seq_len(ids tokens, ids targets, std::int64_t batch) {
    detail::require(batch > 0 && tokens.size() && tokens.count() % batch == 0 &&
                        targets.size() == tokens.size(),
                    "tokens and targets are not [batch, seq_len]");
    return tokens.count() / batch;
  }
  static void require_experts(std::int64_t experts, span<std::int64_t> counts,
                              span<double> mean_prob) {
    detail::require((!counts.size() || counts.count() == experts) &&
                        (!mean_prob.size() || mean_prob.count() == experts),
                    "expert_stats: counts and mean_prob are not [experts]");
  }
};

/** AdamW and its state for one model. */
class optim : public detail::handle<nn_optim_t, nn_optim_destroy> {
 public:
  explicit optim(model &of, const optim_options &options = {})
      : handle(of.log(), nn_optim_create, of.get(), &options) {}
  /** Returns the global norm of the gradients before the clip. */
  double step(float lr) { return detail::get<double>(nn_optim_step, get(), lr); }
  /** An NN_MOMENT_ of a parameter: a view of the optimizer's memory. */
  tensor moment(const std::string &name, std::int32_t which) const {
    return {*this, nn_optim_moment, get(), name.c_str(), which};
  }
  std::int64_t steps() const noexcept { return nn_optim_steps(get()); }
  void set_steps(std::int64_t steps) { check(nn_optim_set_steps(get(), steps)); }
  void save(const std::string &path) const { check(nn_optim_save(get(), path.c_str())); }
  void load(const std::string &path) { check(nn_optim_load(get(), path.c_str())); }
};

/** Text to ids and back. */
class tokenizer : public detail::handle<nn_tokenizer_t, nn_tokenizer_destroy> {
 public:
  /** Each byte an id. */
  static tokenizer bytes() { return {nn_tokenizer_create_bytes}; }
  /** A tokenizer file, or the folder that holds one. */
  static tokenizer load(const std::string &path) { return {nn_tokenizer_load, path.c_str()}; }
  /** A tiktoken rank file, whose words are the matches of a pattern. */
  static tokenizer load_tiktoken(const std::string &path, const std::string &pattern) {
    return {nn_tokenizer_load_tiktoken, path.c_str(), pattern.c_str()};
  }
  /** Learns a vocabulary from texts; words do not go from one to the next. */
  static tokenizer train(const std::vector<std::string_view> &texts,
                         const tokenizer_train_options &options = {},
                         const progress_fn &progress = nullptr) {
    std::vector<const char *> data;
    std::vector<std::size_t> bytes;
    for (std::string_view text : texts) data.push_back(text.data()), bytes.push_back(text.size());
    return learn(options, progress, nn_tokenizer_train, data.data(), bytes.data(),
                 static_cast<std::int64_t>(data.size()));
  }
  /** The same from files, of which each line with its end is a text. */
  static tokenizer train_files(const std::vector<std::string> &paths,
                               const tokenizer_train_options &options = {},
                               const progress_fn &progress = nullptr) {
    std::vector<const char *> names;
    for (const std::string &path : paths) names.push_back(path.c_str());
    return learn(options, progress, nn_tokenizer_train_files, names.data(),
                 static_cast<std::int64_t>(names.size()));
  }
  /** Writes tokenizer.json; into a folder also tokenizer_config.json. */
  void save(const std::string &path) const { check(nn_tokenizer_save(get(), path.c_str())); }
  /** Writes a tokenizer file of llm.c. */
  void save_llmc(const std::string &path) const {
    check(nn_tokenizer_save_llmc(get(), path.c_str()));
  }
  std::int64_t vocab_size() const noexcept { return nn_tokenizer_vocab_size(get()); }
  /** The id of an NN_TOKEN_; -1: none. */
  std::int32_t special(std::int32_t which) const noexcept {
    return nn_tokenizer_special(get(), which);
  }
  /** The id of a token as the vocabulary spells it; -1: none. */
  std::int32_t id(std::string_view token) const noexcept {
    return nn_tokenizer_id(get(), token.data(), token.size());
  }
  /** How the vocabulary spells a token; it lives as long as the tokenizer. */
  std::string_view token(std::int32_t id) const {
    const char *text = nullptr;
    std::size_t bytes = 0;
    check(nn_tokenizer_token(get(), id, &text, &bytes));
    return {text, bytes};
  }
  std::vector<std::int32_t> encode(std::string_view text) const {
    return filled<std::vector<std::int32_t>, std::int64_t>([&](auto data, auto room, auto *count) {
      return nn_tokenizer_encode(get(), text.data(), text.size(), data, room, count);
    });
  }
  std::vector<std::int32_t> encode(std::string_view text, const encode_options &options) const {
    return filled<std::vector<std::int32_t>, std::int64_t>([&](auto data, auto room, auto *count) {
      return nn_tokenizer_encode_with(get(), text.data(), text.size(), &options, data, nullptr,
                                      room, count);
    });
  }
  /** The same, and where the text of each id begins and ends, in bytes. */
  std::pair<std::vector<std::int32_t>, std::vector<std::array<std::int64_t, 2>>> encode_offsets(
      std::string_view text, const encode_options &options = {}) const {
    auto all = encode(text, options);
    std::vector<std::array<std::int64_t, 2>> offsets(all.size());
    auto count = static_cast<std::int64_t>(all.size());
    check(nn_tokenizer_encode_with(get(), text.data(), text.size(), &options, all.data(),
                                   offsets.empty() ? nullptr : offsets.data()->data(), count,
                                   &count));
    return {std::move(all), std::move(offsets)};
  }
  std::string decode(ids tokens) const {
    return filled<std::string, std::size_t>([&](auto data, auto room, auto *count) {
      return nn_tokenizer_decode(get(), tokens.data(), tokens.count(), data, room, count);
    });
  }
  std::string decode(ids tokens, const decode_options &options) const {
    return filled<std::string, std::size_t>([&](auto data, auto room, auto *count) {
      return nn_tokenizer_decode_with(get(), tokens.data(), tokens.count(), &options, data, room,
                                      count);
    });
  }

 private:
  friend class text_stream;
  template <class F, class... Args>
  tokenizer(F *make, Args... args) : handle(nullptr, make, args...) {}
  template <class F, class... Args>
  static tokenizer learn(const tokenizer_train_options &options, const progress_fn &progress,
                         F *make, Args... args) {
    detail::progress_guard<tokenizer_train_options> guard(options, progress);
    try {
      return {make, args..., &guard.options};
    } catch (const error &) {
      guard.finish(NN_OK);
      throw;
    }
  }
  /** What convert(data, room, &count) writes, whose size it says first. */
  template <class Container, class Count, class F>
  static Container filled(F &&convert) {
    Count count = 0;
    typename Container::value_type *none = nullptr;
    if (nn_status_t status = convert(none, Count{0}, &count); status != NN_ERR_CAPACITY)
      check(status);
    Container all(static_cast<std::size_t>(count), typename Container::value_type());
    check(convert(all.data(), count, &count));
    all.resize(static_cast<std::size_t>(count));
    return all;
  }
};

/** Ids to text one by one, each piece as soon as its characters are whole. The tokenizer must live
 *  as long. */
class text_stream {
 public:
  explicit text_stream(const tokenizer &of, bool keep_special = false) : of_(&of) {
    state_.keep_special = keep_special;
  }
  /** The text that has become certain with one more id. */
  std::string push(std::int32_t id) {
    window_.push_back(id);
    std::string text = next(false);
    window_.erase(window_.begin(), window_.begin() + static_cast<std::ptrdiff_t>(state_.first));
    state_.first = 0;
    return text;
  }
  /** The rest; what ends within a character ends with U+FFFD. */
  std::string finish() { return next(true); }

 private:
  std::string next(bool finish) {
    return tokenizer::filled<std::string, std::size_t>([&](auto data, auto room, auto *count) {
      return nn_tokenizer_decode_next(of_->get(), &state_, window_.data(),
                                      static_cast<std::int64_t>(window_.size()), finish, data, room,
                                      count);
    });
  }
  const tokenizer *of_;
  sized<nn_decode_stream_t> state_;
  std::vector<std::int32_t> window_;
};

/** A token stream cut into windows. */
class dataset : public detail::handle<nn_dataset_t, nn_dataset_destroy> {
 public:
  /** Of a copy of ids. */
  dataset(ids tokens, const dataset_options &options)
      : dataset(options, nn_dataset_from_tokens, tokens.data(), tokens.count()) {}
  /** A text file, as bytes unless a tokenizer is given. */
  static dataset open_text(const std::string &path, const dataset_options &options,
                           const tokenizer *by = nullptr) {
    return {options, nn_dataset_open_text, path.c_str(), by ? by->get() : nullptr};
  }
  /** An llm.c token file. */
  static dataset open_tokens(const std::string &path, const dataset_options &options) {
    return {options, nn_dataset_open_tokens, path.c_str()};
  }
  /** Writes ids below 65,536 to an llm.c token file. */
  static void save_tokens(const std::string &path, ids tokens) {
    check(nn_dataset_save_tokens(path.c_str(), tokens.data(), tokens.count()));
  }
  dataset_info info() const { return detail::get<dataset_info>(nn_dataset_info, get()); }
  /** Tokens and targets receive [batch, seq_len] ids. */
  void next(span<std::int32_t> tokens, span<std::int32_t> targets) {
    detail::require(
        detail::is_product(tokens.size(), batch_, seq_len_) && targets.size() == tokens.size(),
        "next: tokens and targets are not [batch, seq_len]");
    check(nn_dataset_next(get(), tokens.data(), targets.data()));
  }
  std::int64_t position() const noexcept { return nn_dataset_position(get()); }
  void seek(std::int64_t position) { check(nn_dataset_seek(get(), position)); }

 private:
  template <class F, class... Args>
  dataset(const dataset_options &options, F *make, Args... args)
      : handle(nullptr, make, args..., &options),
        batch_(options.batch ? options.batch : 1),
        seq_len_(options.seq_len) {}
  std::int64_t batch_, seq_len_;
};

/** A key-value cache and a sampler over a model. */
class session : public detail::handle<nn_session_t, nn_session_destroy> {
 public:
  explicit session(model &of, const session_options &options = {})
      : handle(of.log(), nn_session_create, of.get(), &options),
        batch_(options.batch ? options.batch : 1),
        config_(of.config()) {}
  /** Logits are [vocab_size], or empty. */
  void prefill(std::int64_t sequence, ids tokens, span<float> logits = {}) {
    require_logits(logits, 1);
    check(nn_session_prefill(get(), sequence, tokens.data(), tokens.count(), logits.data()));
  }
  /** Tokens are [batch], negative where a sequence is left alone; logits [batch, vocab_size], or
   *  empty. */
  void decode(ids tokens, span<float> logits = {}) {
    detail::require(tokens.count() == batch_, "decode: tokens are not [batch]");
    require_logits(logits, batch_);
    check(nn_session_decode(get(), tokens.data(), logits.data()));
  }
  std::int64_t length(std::int64_t sequence) const noexcept {
    return nn_session_length(get(), sequence);
  }
  void truncate(std::int64_t sequence, std::int64_t length) {
    check(nn_session_truncate(get(), sequence, length));
  }
  std::int32_t sample(std::int64_t sequence, const sample_options &options = {}) {
    return detail::get<std::int32_t>(nn_session_sample, get(), sequence, &options);
  }
  /** Generates after a prompt, and returns the NN_STOP_ reason. Every token goes to on_token, which
   *  stands in for that of the options. */
  std::int32_t generate(std::int64_t sequence, ids prompt, generate_options options,
                        const token_fn &on_token) {
    detail::guard<token_fn> guard{on_token};
    options.on_token = guard.call<std::int32_t, std::int64_t>;
    options.on_token_user = &guard;
    std::int64_t count = 0;
    std::int32_t reason = 0;
    guard.finish(nn_session_generate(get(), sequence, prompt.data(), prompt.count(), &options,
                                     nullptr, 0, &count, &reason));
    return reason;
  }
  /** Generates after a prompt, and returns the tokens. */
  std::vector<std::int32_t> generate(std::int64_t sequence, ids prompt,
                                     const generate_options &options = {}) {
    std::vector<std::int32_t> tokens;
    generate(sequence, prompt, options, [&](std::int32_t token, std::int64_t index) {
      tokens.push_back(token);
      return options.on_token && options.on_token(token, index, options.on_token_user);
    });
    return tokens;
  }
  /** Counts and mean_prob are [experts], or empty. */
  expert_info expert_stats(std::int64_t layer, span<std::int64_t> counts = {},
                           span<double> mean_prob = {}) const {
    model::require_experts(config_.experts, counts, mean_prob);
    return detail::get<expert_info>(nn_session_expert_stats, get(), layer, counts.data(),
                                    mean_prob.data());
  }

 private:
  void require_logits(span<float> logits, std::int64_t rows) const {
    detail::require(!logits.size() || detail::is_product(logits.size(), rows, config_.vocab_size),
                    "logits are not [batch, vocab_size]");
  }
  std::int64_t batch_;
  model_config config_;
};

}  // namespace moenn

#endif /* MOENN_HPP */
