#include "text/bytes.h"

#include "text/bytemap.h"

static nn_status_t describe(pipeline_t *pipeline) {
  static const added_token_t specials[] = {
      {.content = {"<|bos|>", 7}, .id = NN_BYTE_BOS, .special = true},
      {.content = {"<|eos|>", 7}, .id = NN_BYTE_EOS, .special = true},
      {.content = {"<|pad|>", 7}, .id = NN_BYTE_PAD, .special = true},
  };
  for (int byte = 0; byte < 256; byte++) {
    char text[2];
    const size_t bytes = bytemap_write((unsigned char)byte, text);
    STATUS_TRY(pipeline_add_token(pipeline, (text_t){text, bytes}, byte, 0));
  }
  for (int i = 0; i < 3; i++) {
    STATUS_TRY(pipeline_add_added(pipeline, &specials[i]));
    pipeline->special[NN_TOKEN_BOS + i] = specials[i].id;
  }
  STATUS_TRY(pipeline_add_pre(pipeline, &(pre_step_t){.kind = PRE_BYTE_LEVEL}));
  return pipeline_add_decoder(pipeline, &(decoder_step_t){.kind = DECODE_BYTE_LEVEL});
}

nn_status_t bytes_create(nn_tokenizer_t **tokenizer) {
  pipeline_t pipeline;
  pipeline_init(&pipeline);
  nn_status_t status = describe(&pipeline);
  if (status == NN_OK) return tokenizer_create(&pipeline, tokenizer);
  pipeline_free(&pipeline);
  return status;
}
