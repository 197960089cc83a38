/* Model folders: what is saved is read again, what other programs write is read, and what does not
 * fit together is refused by name. */
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/dtype.h"
#include "base/mem.h"
#include "model_files.h"

static char *folder;
static stamped_t mixtral, gpt2;

static int setup(void **state) {
  (void)state;
  folder = fixture_folder();
  mixtral = stamped_make(files_mixtral(), 1);
  gpt2 = stamped_make(files_gpt2(), 2);
  return 0;
}

static int teardown(void **state) {
  (void)state;
  stamped_free(&mixtral);
  stamped_free(&gpt2);
  fixture_folder_remove(folder);
  return 0;
}

/* ---- round trips ----------------------------------------------------------------------------- */

static void what_is_saved_is_read_again(void **state) {
  (void)state;
  static const int64_t shard_bytes[] = {0, 4000, 1};
  for (int i = 0; i < 3; i++) {
    CHECK(stamped_save(&mixtral, folder, shard_bytes[i]));
    assert_true(stamped_is(&mixtral, folder));
    CHECK(stamped_save(&gpt2, folder, shard_bytes[i]));
    assert_true(stamped_is(&gpt2, folder));
  }
  /* a file for each parameter, the index, config.json and generation_config.json, nothing else */
  assert_int_equal(files_count(folder), gpt2.table.count + 3);
  CHECK(stamped_save(&gpt2, folder, 0));
  assert_int_equal(files_count(folder), 3);
}

static void one_tensor_may_be_larger_than_a_shard(void **state) {
  (void)state;
  CHECK(stamped_save(&gpt2, folder, 1000));
  folder_t opened = {0};
  CHECK(folder_open(folder, &opened));
  for (int64_t i = 0; i < opened.file_count; i++) {
    size_t bytes = 0;
    for (int64_t j = 0; j < opened.files[i].count; j++) bytes += opened.files[i].tensors[j].bytes;
    assert_true(bytes <= 1000 || opened.files[i].count == 1);
  }
  folder_close(&opened);
  folder_close(&opened);
}

static void saved_files_have_their_published_form(void **state) {
  (void)state;
  CHECK(stamped_save(&gpt2, folder, 0));
  char *other = fixture_folder();
  stamped_write(&gpt2, other, "model.safetensors", (oddity_t){0});
  size_t bytes = 0, wanted_bytes = 0;
  char *data = files_read(folder, "model.safetensors", &bytes);
  char *wanted = files_read(other, "model.safetensors", &wanted_bytes);
  assert_int_equal(bytes, wanted_bytes);
  assert_memory_equal(data, wanted, bytes);
  free(data);
  free(wanted);
  fixture_folder_remove(other);

  CHECK(stamped_save(&gpt2, folder, 4000));
  char *index = files_read(folder, "model.safetensors.index.json", &bytes);
  assert_non_null(strstr(index, "\"transformer.wte.weight\": \"model-00001-of-0000"));
  char total[64];
  snprintf(total, sizeof total, "\"total_size\": %lld", (long long)gpt2.table.elements * 4);
  assert_non_null(strstr(index, total));
  assert_int_equal(index[bytes - 1], '\n');
  free(index);
  char *config = files_read(folder, "config.json", &bytes);
  assert_non_null(strstr(config, "\"torch_dtype\": \"float32\""));
  free(config);
}

/* Every dtype of a file into every dtype of a model. */
static void dtypes_are_converted(void **state) {
  (void)state;
  static const int32_t from[] = {NN_F32, NN_BF16, NN_F16}, to[] = {NN_F32, NN_BF16, NN_F16};
  const stamped_t *models[] = {&mixtral, &gpt2};
  for (int m = 0; m < 2; m++)
    for (int f = 0; f < 3; f++)
      for (int t = 0; t < 3; t++) {
        const stamped_t *model = models[m];
        int64_t count = model->table.elements;
        stamped_write_config(model, folder);
        stamped_write(model, folder, "model.safetensors", (oddity_t){.dtype = from[f]});
        folder_t opened = {0};
        CHECK(folder_open(folder, &opened));
        assert_int_equal(opened.dtype, from[f]);
        unsigned char *values = fixture_memory((size_t)count * 4);
        CHECK(folder_read(&opened, to[t], values, NULL, NULL, NULL, NULL));
        folder_close(&opened);
        for (int64_t i = 0; i < count; i++) {
          float value = model->values[i];
          if (from[f] == NN_BF16) value = dtype_bf16_to_f32(dtype_f32_to_bf16(value));
          if (from[f] == NN_F16) value = dtype_f16_to_f32(dtype_f32_to_f16(value));
          uint16_t bf16 = dtype_f32_to_bf16(value), f16 = dtype_f32_to_f16(value);
          if (to[t] == NN_F32) assert_memory_equal(values + 4 * i, &value, 4);
          if (to[t] == NN_BF16) assert_memory_equal(values + 2 * i, &bf16, 2);
          if (to[t] == NN_F16) assert_memory_equal(values + 2 * i, &f16, 2);
        }
        free(values);
      }
}

static void check_saved(int32_t dtype, const char *torch_dtype) {
  size_t bytes = (size_t)gpt2.table.elements * 2;
  uint16_t *values = fixture_memory(bytes), *again = fixture_memory(bytes);
  for (int64_t i = 0; i < gpt2.table.elements; i++) values[i] = (uint16_t)(i * 7);
  CHECK(folder_save(folder, &gpt2.config, &gpt2.table, dtype, values, 0, NULL, NULL, NULL, NULL,
                    NULL));
  folder_t opened = {0};
  CHECK(folder_open(folder, &opened));
  assert_int_equal(opened.dtype, dtype);
  CHECK(folder_read(&opened, dtype, again, NULL, NULL, NULL, NULL));
  assert_memory_equal(values, again, bytes);
  folder_close(&opened);
  char *config = files_read(folder, "config.json", &bytes);
  assert_non_null(strstr(config, torch_dtype));
  free(config);
  free(values);
  free(again);
}

static void models_of_16_bits_are_saved_as_they_are(void **state) {
  (void)state;
  check_saved(NN_BF16, "\"torch_dtype\": \"bfloat16\"");
  check_saved(NN_F16, "\"torch_dtype\": \"float16\"");
}

static void folders_of_transformers_are_opened(void **state) {
  (void)state;
  static const char *const names[] = {"gpt2",           "gpt2-odd",     "moe-all-experts",
                                      "moe-gqa-switch", "moe-mha-top1", "moe-mqa-joint",
                                      "moe-wide"};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    char path[600];
    snprintf(path, sizeof path, MOENN_TEST_DIR "/golden/%s", names[i]);
    folder_t opened = {0};
    CHECK(folder_open(path, &opened));
    assert_int_equal(opened.dtype, NN_F32);
    folder_close(&opened);
  }
}

static void other_files_of_the_folder_are_left_alone(void **state) {
  (void)state;
  files_write_text(folder, "tokenizer.json", "{}");
  files_write_text(folder, "generation_config.json", "mine");
  files_write_text(folder, "model-1-of-2.safetensors", "not of the pattern");
  files_write_text(folder, "model-00001-of-00002.safetensors", "stale");
  CHECK(stamped_save(&mixtral, folder, 0));
  assert_true(files_exists(folder, "tokenizer.json"));
  assert_true(files_exists(folder, "model-1-of-2.safetensors"));
  assert_false(files_exists(folder, "model-00001-of-00002.safetensors"));
  size_t bytes;
  char *text = files_read(folder, "generation_config.json", &bytes);
  assert_memory_equal(text, "mine", 4);
  free(text);
  assert_int_equal(files_count(folder), 5);
}

/* ---- what others write ----------------------------------------------------------------------- */

static void gpt2_is_read_as_it_was_published(void **state) {
  (void)state;
  stamped_write_config(&gpt2, folder);
  stamped_write(
      &gpt2, folder, "model.safetensors",
      (oddity_t){.bare = 1, .extra = {"h.0.attn.bias", "h.1.attn.masked_bias", "lm_head.weight"}});
  assert_true(stamped_is(&gpt2, folder));
  stamped_write(&gpt2, folder, "model.safetensors",
                (oddity_t){.extra = {"transformer.h.1.attn.bias"}});
  assert_true(stamped_is(&gpt2, folder));
}

static void old_mixtral_files_may_hold_frequencies(void **state) {
  (void)state;
  stamped_write_config(&mixtral, folder);
  stamped_write(&mixtral, folder, "model.safetensors",
                (oddity_t){.extra = {"model.layers.0.self_attn.rotary_emb.inv_freq"}});
  assert_true(stamped_is(&mixtral, folder));
}

/* ---- what does not fit ----------------------------------------------------------------------- */

static void refuse_folder(nn_status_t status, const char *parts) {
  folder_t opened = {0};
  CHECK_FAILS(status, parts, folder_open(folder, &opened));
  assert_null(opened.files);
  assert_null(opened.table.items);
}

static void refuse(const stamped_t *model, oddity_t oddity, nn_status_t status, const char *parts) {
  stamped_write_config(model, folder);
  stamped_write(model, folder, "model.safetensors", oddity);
  refuse_folder(status, parts);
}

static void every_parameter_must_be_there_and_every_tensor_used(void **state) {
  (void)state;
  static const char query[] = "model.layers.1.self_attn.q_proj.weight";
  refuse(&mixtral, (oddity_t){.skip = query}, NN_ERR_FORMAT,
         "\"model.layers.1.self_attn.q_proj.weight\"|missing");
  refuse(&mixtral, (oddity_t){.skip = "lm_head.weight"}, NN_ERR_FORMAT,
         "\"lm_head.weight\"|missing");
  refuse(&mixtral, (oddity_t){.rename = query, .to = "q"}, NN_ERR_FORMAT, "q_proj|missing");
  refuse(&mixtral, (oddity_t){.extra = {"model.layers.2.self_attn.q_proj.weight"}}, NN_ERR_FORMAT,
         "\"model.layers.2.self_attn.q_proj.weight\"|no parameter");
  refuse(&mixtral, (oddity_t){.extra = {"model.layers.x.self_attn.rotary_emb.inv_freq"}},
         NN_ERR_FORMAT, "no parameter");
  refuse(&gpt2, (oddity_t){.extra = {"h.0.attn.bias2"}}, NN_ERR_FORMAT,
         "\"h.0.attn.bias2\"|no parameter");
  refuse(&gpt2, (oddity_t){.extra = {"wte.weight"}}, NN_ERR_FORMAT,
         "\"wte.weight\"|with and without");
  refuse(&mixtral, (oddity_t){.reshape = query}, NN_ERR_FORMAT,
         "q_proj|its shape is [240]; config.json makes it [24, 10]");
  refuse(&mixtral, (oddity_t){.rename = "model.norm.weight", .to = "model.norm.bias"},
         NN_ERR_FORMAT, "model.norm.weight|missing");
  refuse(&mixtral, (oddity_t){.retype = query}, NN_ERR_UNSUPPORTED, "q_proj|F64|BF16");
  static const struct {
    int32_t dtype;
    const char *parts;
  } others[] = {{NN_I64, "q_proj|I64|BF16"}, {NN_I32, "q_proj|I32|BF16"},
                {NN_I16, "q_proj|I16|BF16"}, {NN_I8, "q_proj|I8|BF16"},
                {NN_U8, "q_proj|U8|BF16"},   {NN_BOOL, "q_proj|BOOL|BF16"}};
  for (size_t i = 0; i < sizeof others / sizeof *others; i++)
    refuse(&mixtral, (oddity_t){.retype = query, .to_dtype = others[i].dtype}, NN_ERR_UNSUPPORTED,
           others[i].parts);
  refuse(&mixtral, (oddity_t){.skip = query, .extra = {"model.x", "model.y"}}, NN_ERR_FORMAT,
         "missing: tensor \"model.layers.1.self_attn.q_proj.weight\"; no parameter|"
         "\"model.x\" and 1 more");
  refuse(&mixtral, (oddity_t){.extra = {"model.x", "model.y", "model.z"}}, NN_ERR_FORMAT,
         "\"model.x\"|no parameter|2 more");
}

static void shapes_follow_config_json(void **state) {
  (void)state;
  stamped_t wider = stamped_make(files_mixtral(), 3);
  wider.config.vocab_size = 38;
  stamped_write_config(&wider, folder);
  stamped_write(&mixtral, folder, "model.safetensors", (oddity_t){0});
  refuse_folder(NN_ERR_FORMAT, "embed_tokens|[38, 10]");
  /* a claim that is out of all proportion takes no memory */
  files_write_text(folder, "config.json",
                   "{\"model_type\":\"mixtral\",\"num_hidden_layers\":65536,\"hidden_size\":2,"
                   "\"num_attention_heads\":1,\"num_key_value_heads\":1,\"intermediate_size\":1,"
                   "\"num_local_experts\":1024,\"vocab_size\":1}");
  refuse_folder(NN_ERR_FORMAT, "asks for|tensors");
  stamped_free(&wider);
}

static void missing_and_broken_files_are_named(void **state) {
  (void)state;
  refuse_folder(NN_ERR_NOT_FOUND, "config.json");
  files_write_text(folder, "config.json", "{");
  refuse_folder(NN_ERR_FORMAT, "config.json: line 1");
  stamped_write_config(&mixtral, folder);
  refuse_folder(NN_ERR_NOT_FOUND, "model.safetensors and no model.safetensors.index.json");
  files_write_text(folder, "model.safetensors", "12345678901234567890");
  refuse_folder(NN_ERR_FORMAT, "model.safetensors|header");
  folder_t opened = {0};
  CHECK_FAILS(NN_ERR_NOT_FOUND, "/none", folder_open(files_path(folder, "none"), &opened));
  CHECK_FAILS(NN_ERR_IO, "/config.json: is not a folder",
              folder_open(files_path(folder, "config.json"), &opened));
  assert_null(strstr(nn_last_error(), ".moenn"));
  CHECK_FAILS(NN_ERR_ARGUMENT, "path is empty", folder_open("", &opened));
}

static void write_index(const char *weight_map) {
  char text[2000];
  snprintf(text, sizeof text, "{\"metadata\":{\"total_size\":1},\"weight_map\":%s}", weight_map);
  files_write_text(folder, "model.safetensors.index.json", text);
}

static void an_index_must_agree_with_its_files(void **state) {
  (void)state;
  stamped_write_config(&mixtral, folder);
  files_write_text(folder, "model.safetensors.index.json", "{");
  refuse_folder(NN_ERR_FORMAT, "index.json: line 1");
  files_write_text(folder, "model.safetensors.index.json", "[]");
  refuse_folder(NN_ERR_FORMAT, "index.json|weight_map");
  write_index("{}");
  refuse_folder(NN_ERR_FORMAT, "weight_map is missing or empty");
  write_index("{\"a\":5}");
  refuse_folder(NN_ERR_FORMAT, "\"a\"");
  write_index("{\"a\":\"../model.safetensors\"}");
  refuse_folder(NN_ERR_FORMAT, "../model.safetensors");
  write_index("{\"a\":\"/etc/passwd\"}");
  refuse_folder(NN_ERR_FORMAT, "/etc/passwd");
  write_index("{\"a\":\".hidden.safetensors\"}");
  refuse_folder(NN_ERR_FORMAT, ".hidden");
  write_index("{\"a\":\"x.safetensors\",\"a\":\"y.safetensors\"}");
  refuse_folder(NN_ERR_FORMAT, "duplicate");
  write_index("{\"a\":\"none.safetensors\"}");
  refuse_folder(NN_ERR_NOT_FOUND, "none.safetensors");
  stamped_write(&mixtral, folder, "all.safetensors", (oddity_t){0});
  write_index("{\"model.norm.weight\":\"all.safetensors\"}");
  refuse_folder(NN_ERR_FORMAT, "all.safetensors|nothing of it");
}

/* Files of a sharded save, put together wrongly. */
static void shards_must_agree_with_each_other(void **state) {
  (void)state;
  CHECK(stamped_save(&mixtral, folder, 6000));
  size_t bytes;
  char *index = files_read(folder, "model.safetensors.index.json", &bytes);
  char *first = strstr(index, "model-00001");
  assert_non_null(first);
  first[10] = '2'; /* the tensor is said to be in the second file */
  files_write(folder, "model.safetensors.index.json", index, bytes);
  refuse_folder(NN_ERR_FORMAT, "weight_map says model-00002");
  first[10] = '1';
  char *entry = strstr(index, "\"model.norm.weight\"");
  memcpy(entry, "\"model.norm.weighs\"", 19);
  files_write(folder, "model.safetensors.index.json", index, bytes);
  refuse_folder(NN_ERR_FORMAT, "model.norm.weight|nothing of it");
  memcpy(entry, "\"model.norm.weight\"", 19);
  files_write(folder, "model.safetensors.index.json", index, bytes);
  assert_true(stamped_is(&mixtral, folder));

  /* one entry more than there are tensors */
  char *more = fixture_memory(bytes + 100), *map = strstr(index, "\"weight_map\": {") + 15;
  size_t before = (size_t)(map - index);
  int added = snprintf(more, bytes + 100, "%.*s\"more\": \"model-00001-of-00002.safetensors\",%s",
                       (int)before, index, map);
  char *name = strstr(map, "model-00001");
  memcpy(strstr(more, "model-00001"), name, 32); /* of as many files as there are */
  files_write(folder, "model.safetensors.index.json", more, (size_t)added);
  refuse_folder(NN_ERR_FORMAT, "weight_map lists");
  free(more);
  free(index);
}

/* ---- long calls ------------------------------------------------------------------------------ */

static void progress_counts_all_bytes_and_cancels(void **state) {
  (void)state;
  files_watch_t watch = {0};
  CHECK(folder_save(folder, &gpt2.config, &gpt2.table, NN_F32, gpt2.values, 0, files_watch_progress,
                    &watch, NULL, NULL, NULL));
  assert_int_equal(watch.done, gpt2.table.elements * 4);
  assert_int_equal(watch.total, watch.done);
  watch = (files_watch_t){.stop_at = 3};
  CHECK_FAILS(NN_ERR_CANCELLED, "cancelled",
              folder_save(folder, &mixtral.config, &mixtral.table, NN_F32, mixtral.values, 0,
                          files_watch_progress, &watch, NULL, NULL, NULL));
  assert_int_equal(watch.calls, 3);
  atomic_int cancel = 1;
  CHECK_STATUS(NN_ERR_CANCELLED, folder_save(folder, &mixtral.config, &mixtral.table, NN_F32,
                                             mixtral.values, 0, NULL, NULL, &cancel, NULL, NULL));
  assert_true(stamped_is(&gpt2, folder));
  assert_int_equal(files_count(folder), 3);

  float *values = fixture_memory((size_t)gpt2.table.elements * 4);
  folder_t opened = {0};
  CHECK(folder_open(folder, &opened));
  watch = (files_watch_t){0};
  CHECK(folder_read(&opened, NN_F32, values, files_watch_progress, &watch, NULL, NULL));
  assert_int_equal(watch.done, gpt2.table.elements * 4);
  watch = (files_watch_t){.stop_at = 1};
  CHECK_STATUS(NN_ERR_CANCELLED,
               folder_read(&opened, NN_F32, values, files_watch_progress, &watch, NULL, NULL));
  CHECK_STATUS(NN_ERR_CANCELLED, folder_read(&opened, NN_F32, values, NULL, NULL, &cancel, NULL));
  folder_close(&opened);
  free(values);
}

static void opening_needs_its_memory(void **state) {
  (void)state;
  CHECK(stamped_save(&mixtral, folder, 6000));
  int64_t after = 0;
  for (nn_status_t status = NN_ERR_MEMORY; status != NN_OK; after++) {
    folder_t opened = {0};
    mem_fail_after(after);
    status = folder_open(folder, &opened);
    mem_fail_after(-1);
    if (status != NN_OK) {
      CHECK_STATUS(NN_ERR_MEMORY, status);
      assert_null(opened.files);
    }
    folder_close(&opened);
  }
  assert_true(after > 10);
}

static void saving_refuses_what_it_cannot_do(void **state) {
  (void)state;
  CHECK_FAILS(NN_ERR_ARGUMENT, "shard_bytes is -1", stamped_save(&mixtral, folder, -1));
  char missing[600];
  snprintf(missing, sizeof missing, "%s/no/where", folder);
  CHECK_FAILS(NN_ERR_NOT_FOUND, "no/where", stamped_save(&mixtral, missing, 0));
  files_write_text(folder, "file", "");
  snprintf(missing, sizeof missing, "%s/file", folder);
  CHECK_STATUS(NN_ERR_IO, stamped_save(&mixtral, missing, 0));
  CHECK_FAILS(NN_ERR_ARGUMENT, "path is empty", stamped_save(&mixtral, "", 0));
  assert_int_equal(files_count(folder), 1);
}

/* Found before anything is written: the earlier model is as it was, and the message says what has
 * to go. */
static void what_is_in_the_way_of_a_save_is_named(void **state) {
  (void)state;
  static const char *const files[] = {".moenn-saving", ".moenn-saved", ".moenn-moving"};
  static const char *const folders[] = {"config.json", "model.safetensors",
                                        "model.safetensors.index.json",
                                        "model-00007-of-00009.safetensors"};
  CHECK(stamped_save(&gpt2, folder, 0));
  for (int i = 0; i < 3; i++) {
    files_write_text(folder, files[i], "mine");
    CHECK_FAILS(NN_ERR_IO, files[i], stamped_save(&mixtral, folder, 0));
    files_check_message("a save needs this name|is not a folder", __FILE__, __LINE__);
    assert_true(stamped_is(&gpt2, folder));
    assert_int_equal(files_count(folder), 4);
    assert_int_equal(unlink(files_path(folder, files[i])), 0);

    char *other = fixture_folder();
    files_write_text(other, "precious", "mine");
    assert_int_equal(symlink(other, files_path(folder, files[i])), 0);
    CHECK_FAILS(NN_ERR_IO, "a save needs this name|is a symbolic link",
                stamped_save(&mixtral, folder, 0));
    assert_true(files_exists(other, "precious"));
    assert_int_equal(unlink(files_path(folder, files[i])), 0);
    fixture_folder_remove(other);
  }
  for (int i = 0; i < 4; i++) {
    char *other = fixture_folder();
    assert_int_equal(mkdir(files_path(other, folders[i]), 0700), 0);
    CHECK_FAILS(NN_ERR_IO, folders[i], stamped_save(&mixtral, other, 0));
    files_check_message("a save needs this name for a file|is a folder", __FILE__, __LINE__);
    assert_int_equal(rmdir(files_path(other, folders[i])), 0);
    assert_int_equal(mkfifo(files_path(other, folders[i]), 0600), 0);
    CHECK_FAILS(NN_ERR_IO, folders[i], stamped_save(&mixtral, other, 0));
    files_check_message("a save needs this name for a file|a pipe", __FILE__, __LINE__);
    assert_int_equal(files_count(other), 1);
    fixture_folder_remove(other);
  }
  CHECK(stamped_save(&mixtral, folder, 0));
  assert_true(stamped_is(&mixtral, folder));
}

static void long_names_leave_room_for_the_reason(void **state) {
  (void)state;
  char name[500] = "";
  memset(name, 'n', sizeof name - 1);
  refuse(&mixtral, (oddity_t){.extra = {name}}, NN_ERR_FORMAT, "nnn...\"|no parameter");
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void) {
  const struct CMUnitTest tests[] = {
      TEST(what_is_saved_is_read_again),
      TEST(one_tensor_may_be_larger_than_a_shard),
      TEST(saved_files_have_their_published_form),
      TEST(dtypes_are_converted),
      TEST(models_of_16_bits_are_saved_as_they_are),
      TEST(folders_of_transformers_are_opened),
      TEST(other_files_of_the_folder_are_left_alone),
      TEST(gpt2_is_read_as_it_was_published),
      TEST(old_mixtral_files_may_hold_frequencies),
      TEST(every_parameter_must_be_there_and_every_tensor_used),
      TEST(shapes_follow_config_json),
      TEST(missing_and_broken_files_are_named),
      TEST(an_index_must_agree_with_its_files),
      TEST(shards_must_agree_with_each_other),
      TEST(progress_counts_all_bytes_and_cancels),
      TEST(opening_needs_its_memory),
      TEST(saving_refuses_what_it_cannot_do),
      TEST(what_is_in_the_way_of_a_save_is_named),
      TEST(long_names_leave_room_for_the_reason),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
