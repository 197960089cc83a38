// Loads a saved model and writes text after a prompt, token by token.
#include <cstdio>

#include "moenn.hpp"

int main(int argc, char **argv) try {
  if (argc < 2 || argc > 4) {
    std::fputs("usage: generate FOLDER [PROMPT [TOKENS]]\n", stderr);
    return 2;
  }
  const std::string prompt = argc > 2 ? argv[2] : "\n";
  moenn::device device;
  auto model = moenn::model::load(device, argv[1]);
  const auto bytes = moenn::tokenizer::bytes();
  moenn::session session(model);
  moenn::sample_options sampling;
  sampling.temperature = 0.8f;
  moenn::generate_options options;
  options.sampling = &sampling;
  options.max_tokens = argc > 3 ? std::stol(argv[3]) : 0;
  std::fputs(prompt.c_str(), stdout);
  session.generate(0, bytes.encode(prompt), options, [&](std::int32_t token, std::int64_t) {
    const std::string text = bytes.decode({token});
    std::fwrite(text.data(), 1, text.size(), stdout);
    return std::fflush(stdout) != 0;  // nobody reads on
  });
  std::puts("");
  return 0;
} catch (const std::exception &failure) {
  std::fprintf(stderr, "generate: %s\n", failure.what());
  return 1;
}
