/* Datasets: what an epoch holds in order and shuffled, positions, batches across epochs, every kind
 * of stream, hostile files, bad options, and each allocation failing in turn. */
#include "fixture.h"

#include <stdio.h>
#include <string.h>

#include "base/mem.h"

static nn_dataset_options_t options_of(int64_t batch, int64_t seq_len, int32_t shuffle) {
  nn_dataset_options_t options = STRUCT(nn_dataset_options_t);
  options.batch = batch;
  options.seq_len = seq_len;
  options.shuffle = shuffle;
  options.seed = 42;
  return options;
}

/* Ids that say where they stand: id i at token i. */
static nn_dataset_t *counting(int64_t tokens, const nn_dataset_options_t *options) {
  int32_t *ids = fixture_memory((size_t)tokens * sizeof *ids);
  for (int64_t i = 0; i < tokens; i++) ids[i] = (int32_t)i;
  nn_dataset_t *dataset = NULL;
  CHECK(nn_dataset_from_tokens(ids, tokens, options, &dataset));
  free(ids);
  return dataset;
}

static nn_dataset_info_t info_of(const nn_dataset_t *dataset) {
  nn_dataset_info_t info = STRUCT(nn_dataset_info_t);
  CHECK(nn_dataset_info(dataset, &info));
  return info;
}

enum { MOST = 4096 };
static int32_t tokens[MOST], targets[MOST];

/* ---- in order -------------------------------------------------------------------------------- */

static void check_epoch_in_order(int64_t count, int64_t batch, int64_t seq_len) {
  nn_dataset_options_t options = options_of(batch, seq_len, 0);
  nn_dataset_t *dataset = counting(count, &options);
  nn_dataset_info_t info = info_of(dataset);
  assert_int_equal(info.tokens, count);
  assert_int_equal(info.windows, (count - 1 + seq_len - 1) / seq_len);
  assert_int_equal(info.batches, (info.windows + batch - 1) / batch);
  assert_int_equal(info.max_id, count - 1);

  for (int epoch = 0; epoch < 2; epoch++) {
    int64_t expected = 0;
    for (int64_t b = 0; b < info.batches; b++) {
      CHECK(nn_dataset_next(dataset, tokens, targets));
      for (int64_t i = 0; i < batch * seq_len; i++) {
        if (expected < count - 1) {
          assert_int_equal(tokens[i], expected);
          assert_int_equal(targets[i], ++expected);
        } else {
          assert_in_range(tokens[i], 0, count - 1);
          assert_int_equal(targets[i], -1);
        }
      }
    }
    assert_int_equal(expected, count - 1);
  }
  nn_dataset_destroy(dataset);
}

static void test_in_order(void **state) {
  (void)state;
  for (int64_t count = 2; count < 40; count++)
    for (int64_t batch = 1; batch < 5; batch++)
      for (int64_t seq_len = 1; seq_len < 12; seq_len++)
        check_epoch_in_order(count, batch, seq_len);
  check_epoch_in_order(2, 1, MOST);
}

/* ---- shuffled -------------------------------------------------------------------------------- */

/* Reads a whole number of epochs as rows; returns the first token of each row. */
static int64_t *read_rows(nn_dataset_t *dataset, int64_t batch, int64_t seq_len, int64_t rows) {
  int64_t *first = fixture_memory((size_t)(rows + batch) * sizeof *first);
  for (int64_t row = 0; row < rows; row += batch) {
    CHECK(nn_dataset_next(dataset, tokens, targets));
    for (int64_t r = 0; r < batch; r++) {
      first[row + r] = tokens[r * seq_len];
      for (int64_t i = 0; i < seq_len; i++) {
        assert_int_equal(tokens[r * seq_len + i], first[row + r] + i);
        assert_int_equal(targets[r * seq_len + i], first[row + r] + i + 1);
      }
    }
  }
  return first;
}

/* One epoch's rows are windows side by side from one phase, each once. Returns the phase. */
static int64_t check_permutation(const int64_t *first, int64_t windows, int64_t seq_len) {
  unsigned char *seen = fixture_memory((size_t)windows);
  int64_t phase = first[0] % seq_len;
  for (int64_t i = 0; i < windows; i++) {
    int64_t window = (first[i] - phase) / seq_len;
    assert_int_equal((first[i] - phase) % seq_len, 0);
    assert_in_range(window, 0, windows - 1);
    assert_int_equal(seen[window]++, 0);
  }
  free(seen);
  return phase;
}

static void check_epochs_shuffled(int64_t count, int64_t batch, int64_t seq_len) {
  nn_dataset_options_t options = options_of(batch, seq_len, 1);
  nn_dataset_t *dataset = counting(count, &options);
  nn_dataset_info_t info = info_of(dataset);
  assert_true(info.windows >= 1 && info.windows * seq_len < count);
  /* No more is left out than the phase needs. */
  assert_true(info.windows == 1 || (info.windows + 2) * seq_len > count);
  int64_t epochs = 3, *first = read_rows(dataset, batch, seq_len, epochs * info.windows);
  for (int64_t epoch = 0; epoch < epochs; epoch++)
    check_permutation(first + epoch * info.windows, info.windows, seq_len);
  free(first);
  nn_dataset_destroy(dataset);
}

static void test_shuffled(void **state) {
  (void)state;
  for (int64_t seq_len = 1; seq_len < 8; seq_len++)
    for (int64_t count = seq_len + 1; count < 60; count++)
      for (int64_t batch = 1; batch < 5; batch++) check_epochs_shuffled(count, batch, seq_len);
  check_epochs_shuffled(100000, 7, 13);
}

/* Over many epochs every phase comes up, and every window comes first, about equally often. */
static void test_shuffle_is_even(void **state) {
  (void)state;
  enum { SEQ_LEN = 5, WINDOWS = 6, EPOCHS = 6000 };
  nn_dataset_options_t options = options_of(1, SEQ_LEN, 1);
  nn_dataset_t *dataset = counting((WINDOWS + 1) * SEQ_LEN, &options);
  assert_int_equal(info_of(dataset).windows, WINDOWS);
  int64_t *first = read_rows(dataset, 1, SEQ_LEN, (int64_t)EPOCHS * WINDOWS);
  int phases[SEQ_LEN] = {0}, leading[WINDOWS] = {0}, ascents = 0;
  for (int epoch = 0; epoch < EPOCHS; epoch++) {
    const int64_t *rows = first + epoch * WINDOWS;
    int64_t phase = check_permutation(rows, WINDOWS, SEQ_LEN);
    phases[phase]++;
    leading[(rows[0] - phase) / SEQ_LEN]++;
    for (int i = 1; i < WINDOWS; i++) ascents += rows[i] > rows[i - 1];
  }
  /* Five standard deviations of the counts: sqrt(6000 * 1/5 * 4/5) = 31 and
   * sqrt(6000 * 1/6 * 5/6) = 29. The ascents of a permutation of 6 have mean 5/2 and variance 7/12:
   * sqrt(6000 * 7/12) = 59. */
  for (int i = 0; i < SEQ_LEN; i++) assert_in_range(phases[i], 1200 - 155, 1200 + 155);
  for (int i = 0; i < WINDOWS; i++) assert_in_range(leading[i], 1000 - 145, 1000 + 145);
  assert_in_range(ascents, 15000 - 296, 15000 + 296);
  free(first);
  nn_dataset_destroy(dataset);
}

static void test_seeds(void **state) {
  (void)state;
  enum { COUNT = 4001, SEQ_LEN = 4, WINDOWS = COUNT / SEQ_LEN - 1 };
  int64_t *rows[3];
  for (int i = 0; i < 3; i++) {
    nn_dataset_options_t options = options_of(1, SEQ_LEN, 1);
    options.seed = (uint64_t)(i == 2);
    nn_dataset_t *dataset = counting(COUNT, &options);
    rows[i] = read_rows(dataset, 1, SEQ_LEN, WINDOWS);
    nn_dataset_destroy(dataset);
  }
  assert_memory_equal(rows[0], rows[1], WINDOWS * sizeof **rows);
  int64_t same = 0;
  for (int64_t i = 0; i < WINDOWS; i++) same += rows[0][i] / SEQ_LEN == rows[2][i] / SEQ_LEN;
  assert_true(same < 12); /* of two random orders one match is expected, 12 once in 1e9 times */
  for (int i = 0; i < 3; i++) free(rows[i]);
}

/* ---- positions ------------------------------------------------------------------------------- */

static void test_seek(void **state) {
  (void)state;
  enum { BATCH = 3, SEQ_LEN = 4, BATCHES = 40, IDS = BATCH * SEQ_LEN };
  for (int32_t shuffle = 0; shuffle < 2; shuffle++) {
    nn_dataset_options_t options = options_of(BATCH, SEQ_LEN, shuffle);
    nn_dataset_t *dataset = counting(53, &options);
    int32_t kept[BATCHES][2][IDS];
    for (int64_t i = 0; i < BATCHES; i++) {
      assert_int_equal(nn_dataset_position(dataset), i);
      CHECK(nn_dataset_next(dataset, kept[i][0], kept[i][1]));
    }
    for (int64_t i = BATCHES - 1; i >= 0; i--) {
      nn_dataset_t *other = counting(53, &options);
      CHECK(nn_dataset_seek(other, i));
      CHECK(nn_dataset_seek(dataset, i));
      assert_int_equal(nn_dataset_position(dataset), i);
      CHECK(nn_dataset_next(dataset, tokens, targets));
      assert_memory_equal(tokens, kept[i][0], sizeof kept[i][0]);
      assert_memory_equal(targets, kept[i][1], sizeof kept[i][1]);
      CHECK(nn_dataset_next(other, tokens, targets));
      assert_memory_equal(tokens, kept[i][0], sizeof kept[i][0]);
      nn_dataset_destroy(other);
    }
    nn_dataset_destroy(dataset);
  }
}

static void test_far_positions(void **state) {
  (void)state;
  for (int32_t shuffle = 0; shuffle < 2; shuffle++) {
    nn_dataset_options_t options = options_of(5, 7, shuffle);
    nn_dataset_t *dataset = counting(1000, &options);
    CHECK(nn_dataset_seek(dataset, INT64_MAX - 1));
    CHECK(nn_dataset_next(dataset, tokens, targets));
    for (int i = 0; i < 35; i++) assert_in_range(tokens[i], 0, 999);
    assert_true(nn_dataset_position(dataset) == INT64_MAX);
    CHECK_STATUS(NN_ERR_CAPACITY, nn_dataset_next(dataset, tokens, targets));
    CHECK_STATUS(NN_ERR_ARGUMENT, nn_dataset_seek(dataset, -1));
    assert_true(nn_dataset_position(dataset) == INT64_MAX);
    nn_dataset_destroy(dataset);
  }
}

/* ---- ranges and options ---------------------------------------------------------------------- */

static void test_range(void **state) {
  (void)state;
  nn_dataset_options_t options = options_of(1, 4, 0);
  options.begin = 10;
  options.end = 17;
  nn_dataset_t *dataset = counting(100, &options);
  nn_dataset_info_t info = info_of(dataset);
  assert_int_equal(info.tokens, 7);
  assert_int_equal(info.windows, 2);
  assert_int_equal(info.max_id, 16);
  const int32_t expected[2][4] = {{11, 12, 13, 14}, {15, 16, -1, -1}};
  for (int i = 0; i < 2; i++) {
    CHECK(nn_dataset_next(dataset, tokens, targets));
    assert_int_equal(tokens[0], expected[i][0] - 1);
    assert_memory_equal(targets, expected[i], sizeof expected[i]);
  }
  nn_dataset_destroy(dataset);

  options.shuffle = 1;
  dataset = counting(100, &options);
  for (int i = 0; i < 50; i++) {
    CHECK(nn_dataset_next(dataset, tokens, targets));
    assert_in_range(tokens[0], 10, 12);
    assert_int_equal(targets[3], tokens[0] + 4);
  }
  nn_dataset_destroy(dataset);
}

static void refuse(int64_t count, nn_dataset_options_t options) {
  static const int32_t ids[64];
  nn_dataset_t *dataset = NULL;
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_dataset_from_tokens(ids, count, &options, &dataset));
  assert_null(dataset);
}

static void test_bad_options(void **state) {
  (void)state;
  nn_dataset_options_t bad;
#define REFUSE(member, value) (bad = options_of(2, 8, 0), bad.member = (value), refuse(64, bad))
  REFUSE(batch, -1);
  REFUSE(batch, INT64_MAX);
  REFUSE(batch, INT64_MAX / 8);
  REFUSE(seq_len, 0);
  REFUSE(seq_len, -1);
  REFUSE(seq_len, INT64_MAX);
  REFUSE(begin, -1);
  REFUSE(begin, 63); /* one token is left */
  REFUSE(begin, 64);
  REFUSE(begin, 65);
  REFUSE(begin, INT64_MAX);
  REFUSE(end, -1);
  REFUSE(end, 1);
  REFUSE(end, 65);
  REFUSE(end, INT64_MAX);
  REFUSE(end, INT64_MIN);
  REFUSE(shuffle, 2);
  REFUSE(shuffle, -1);
  bad = options_of(2, 8, 0);
  bad.begin = 20;
  bad.end = 19;
  refuse(64, bad);
  refuse(0, options_of(1, 1, 0));
  refuse(1, options_of(1, 1, 0));
  refuse(-1, options_of(1, 1, 0));
  refuse(INT64_MIN, options_of(1, 1, 0));
  refuse(8, options_of(1, 8, 1));

  const int32_t negative[] = {1, 2, -3, 4};
  nn_dataset_options_t good = options_of(1, 1, 0);
  nn_dataset_t *dataset = NULL;
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_dataset_from_tokens(negative, 4, &good, &dataset));
  assert_null(dataset);
}

static void test_struct_sizes(void **state) {
  (void)state;
  const int32_t ids[] = {5, 6, 7, 8};
  nn_dataset_t *dataset = NULL;
  nn_dataset_options_t options = options_of(0, 2, 0);
  options.struct_size = 0;
  CHECK_STATUS(NN_ERR_STRUCT_SIZE, nn_dataset_from_tokens(ids, 4, &options, &dataset));
  options.struct_size = offsetof(nn_dataset_options_t, shuffle); /* no release had this size */
  CHECK_STATUS(NN_ERR_STRUCT_SIZE, nn_dataset_from_tokens(ids, 4, &options, &dataset));
  options.struct_size = sizeof options;
  CHECK(nn_dataset_from_tokens(ids, 4, &options, &dataset));
  nn_dataset_info_t info = {.struct_size = 0};
  CHECK_STATUS(NN_ERR_STRUCT_SIZE, nn_dataset_info(dataset, &info));
  nn_dataset_destroy(dataset);
}

static void test_null(void **state) {
  (void)state;
  const int32_t ids[] = {1, 2, 3};
  nn_dataset_options_t options = options_of(1, 1, 0);
  nn_dataset_info_t info = STRUCT(nn_dataset_info_t);
  nn_dataset_t *dataset = NULL;
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_dataset_from_tokens(NULL, 3, &options, &dataset));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_dataset_from_tokens(ids, 3, NULL, &dataset));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_dataset_from_tokens(ids, 3, &options, NULL));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_dataset_open_text(NULL, NULL, &options, &dataset));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_dataset_open_text("x", NULL, NULL, &dataset));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_dataset_open_text("x", NULL, &options, NULL));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_dataset_open_tokens(NULL, &options, &dataset));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_dataset_open_tokens("x", NULL, &dataset));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_dataset_open_tokens("x", &options, NULL));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_dataset_info(NULL, &info));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_dataset_next(NULL, tokens, targets));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_dataset_seek(NULL, 0));
  assert_int_equal(nn_dataset_position(NULL), 0);
  nn_dataset_destroy(NULL);

  CHECK(nn_dataset_from_tokens(ids, 3, &options, &dataset));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_dataset_info(dataset, NULL));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_dataset_next(dataset, NULL, targets));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_dataset_next(dataset, tokens, NULL));
  assert_int_equal(nn_dataset_position(dataset), 0);
  nn_dataset_destroy(dataset);
}

/* ---- files ----------------------------------------------------------------------------------- */

static char *folder, path[512];

static int make_folder(void **state) {
  (void)state;
  folder = fixture_folder();
  snprintf(path, sizeof path, "%s/data", folder);
  return 0;
}

static int remove_folder(void **state) {
  (void)state;
  fixture_folder_remove(folder);
  return 0;
}

static void write_file(const void *data, size_t bytes) {
  FILE *file = fopen(path, "wb");
  assert_non_null(file);
  assert_int_equal(fwrite(data, 1, bytes, file), bytes);
  assert_int_equal(fclose(file), 0);
}

static void test_text(void **state) {
  (void)state;
  static const char text[] = "caf\xc3\xa9 \xff\x01"; /* 9 bytes with its NUL, one of them 0xff */
  write_file(text, sizeof text);
  nn_tokenizer_t *tokenizers[2] = {NULL, NULL};
  CHECK(nn_tokenizer_create_bytes(&tokenizers[1]));
  for (int i = 0; i < 2; i++) {
    nn_dataset_options_t options = options_of(1, sizeof text, 0);
    nn_dataset_t *dataset;
    CHECK(nn_dataset_open_text(path, tokenizers[i], &options, &dataset));
    nn_tokenizer_destroy(tokenizers[i]); /* a dataset does not need it any more */
    nn_dataset_info_t info = info_of(dataset);
    assert_int_equal(info.tokens, sizeof text);
    assert_int_equal(info.max_id, 0xff);
    CHECK(nn_dataset_next(dataset, tokens, targets));
    for (size_t j = 0; j + 1 < sizeof text; j++) {
      assert_int_equal(tokens[j], (unsigned char)text[j]);
      assert_int_equal(targets[j], (unsigned char)text[j + 1]);
    }
    assert_int_equal(targets[sizeof text - 1], -1);
    nn_dataset_destroy(dataset);
  }
}

static void test_bad_text(void **state) {
  (void)state;
  nn_dataset_options_t options = options_of(1, 4, 0);
  nn_dataset_t *dataset = NULL;
  nn_tokenizer_t *tokenizer;
  CHECK(nn_tokenizer_create_bytes(&tokenizer));
  for (int i = 0; i < 2; i++) {
    write_file("x", (size_t)i); /* empty, then one byte */
    CHECK_STATUS(NN_ERR_ARGUMENT, nn_dataset_open_text(path, NULL, &options, &dataset));
    assert_non_null(strstr(nn_last_error(), path));
    CHECK_STATUS(NN_ERR_ARGUMENT, nn_dataset_open_text(path, tokenizer, &options, &dataset));
  }
  nn_tokenizer_destroy(tokenizer);
  CHECK_STATUS(NN_ERR_IO, nn_dataset_open_text(folder, NULL, &options, &dataset));
  remove(path);
  CHECK_STATUS(NN_ERR_NOT_FOUND, nn_dataset_open_text(path, NULL, &options, &dataset));
  CHECK_STATUS(NN_ERR_NOT_FOUND, nn_dataset_open_tokens(path, &options, &dataset));
  assert_non_null(strstr(nn_last_error(), path));
  assert_null(dataset);
}

/* A token file: what the header says, and what follows. */
static struct {
  int32_t header[256];
  uint16_t ids[6];
} token_file;

static void write_token_file(int32_t magic, int32_t version, int32_t count, size_t bytes) {
  static const uint16_t ids[6] = {0, 50256, 65535, 32768, 7, 1};
  memset(&token_file, 0, sizeof token_file);
  token_file.header[0] = magic;
  token_file.header[1] = version;
  token_file.header[2] = count;
  memcpy(token_file.ids, ids, sizeof ids);
  write_file(&token_file, bytes);
}

enum { MAGIC = 20240520, HEADER = sizeof token_file.header, WHOLE = HEADER + 12 };

static void test_token_file(void **state) {
  (void)state;
  write_token_file(MAGIC, 1, 6, WHOLE);
  nn_dataset_options_t options = options_of(1, 5, 0);
  nn_dataset_t *dataset;
  CHECK(nn_dataset_open_tokens(path, &options, &dataset));
  assert_int_equal(info_of(dataset).tokens, 6);
  assert_int_equal(info_of(dataset).max_id, 65535);
  CHECK(nn_dataset_next(dataset, tokens, targets));
  for (int i = 0; i < 5; i++) {
    assert_int_equal(tokens[i], token_file.ids[i]);
    assert_int_equal(targets[i], token_file.ids[i + 1]);
  }
  nn_dataset_destroy(dataset);
}

/* What is saved is the file that another writer makes of the same ids. */
static void test_save_tokens(void **state) {
  (void)state;
  const int32_t ids[] = {0, 1, 65535, 2, 50256, 3}, above[] = {1, 65536}, below[] = {-1};
  nn_dataset_options_t options = options_of(1, 5, 0);
  nn_dataset_t *dataset;
  CHECK(nn_dataset_save_tokens(path, ids, 6));
  CHECK(nn_dataset_open_tokens(path, &options, &dataset));
  CHECK(nn_dataset_next(dataset, tokens, targets));
  assert_memory_equal(tokens, ids, 5 * sizeof *ids);
  assert_int_equal(targets[4], 3);
  nn_dataset_destroy(dataset);

  FILE *file = fopen(path, "rb");
  int32_t header[256], expected[256] = {MAGIC, 1, 6};
  uint16_t saved[7];
  assert_non_null(file);
  assert_int_equal(fread(header, 1, sizeof header, file), sizeof header);
  assert_memory_equal(header, expected, sizeof header);
  assert_int_equal(fread(saved, sizeof *saved, 7, file), 6);
  for (int i = 0; i < 6; i++) assert_int_equal(saved[i], ids[i]);
  fclose(file);

  CHECK_STATUS(NN_ERR_UNSUPPORTED, nn_dataset_save_tokens(path, above, 2));
  assert_non_null(strstr(nn_last_error(), "65536"));
  CHECK_STATUS(NN_ERR_UNSUPPORTED, nn_dataset_save_tokens(path, below, 1));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_dataset_save_tokens(path, ids, -1));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_dataset_save_tokens(NULL, ids, 1));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_dataset_save_tokens(path, NULL, 1));
  CHECK(nn_dataset_open_tokens(path, &options, &dataset)); /* the file from before */
  nn_dataset_destroy(dataset);
}

/* More ids than one write takes. */
static void test_save_many_tokens(void **state) {
  (void)state;
  enum { COUNT = 100000 };
  nn_dataset_options_t options = options_of(1, 1000, 0);
  nn_dataset_t *dataset;
  int32_t *ids = fixture_memory(COUNT * sizeof *ids);
  for (int i = 0; i < COUNT; i++) ids[i] = i % 60000;
  CHECK(nn_dataset_save_tokens(path, ids, COUNT));
  CHECK(nn_dataset_open_tokens(path, &options, &dataset));
  assert_int_equal(info_of(dataset).tokens, COUNT);
  for (int at = 0; at + 1000 < COUNT; at += 1000) {
    CHECK(nn_dataset_next(dataset, tokens, targets));
    assert_memory_equal(tokens, ids + at, 1000 * sizeof *ids);
  }
  nn_dataset_destroy(dataset);
  free(ids);
}

static void test_bad_token_files(void **state) {
  (void)state;
  static const struct {
    int32_t magic, version, count;
    size_t bytes;
    nn_status_t status;
  } cases[] = {
      {MAGIC, 1, 6, 0, NN_ERR_FORMAT},
      {MAGIC, 1, 6, 4, NN_ERR_FORMAT},
      {MAGIC, 1, 0, HEADER - 1, NN_ERR_FORMAT},
      {MAGIC, 1, 6, WHOLE - 1, NN_ERR_FORMAT},  /* truncated */
      {MAGIC, 1, 5, WHOLE, NN_ERR_FORMAT},      /* oversized */
      {MAGIC, 1, 7, WHOLE, NN_ERR_FORMAT},
      {MAGIC, 1, INT32_MAX, WHOLE, NN_ERR_FORMAT},
      {MAGIC, 1, -1, WHOLE, NN_ERR_FORMAT},
      {MAGIC, 1, INT32_MIN, WHOLE, NN_ERR_FORMAT},
      {20240326, 1, 6, WHOLE, NN_ERR_FORMAT},   /* an llm.c checkpoint */
      {MAGIC, 2, 6, WHOLE, NN_ERR_UNSUPPORTED},
      {MAGIC, 0, 6, WHOLE, NN_ERR_UNSUPPORTED},
      {MAGIC, 1, 0, HEADER, NN_ERR_ARGUMENT},   /* sound, but nothing to train on */
      {MAGIC, 1, 1, HEADER + 2, NN_ERR_ARGUMENT},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    nn_dataset_options_t options = options_of(1, 2, 0);
    nn_dataset_t *dataset = NULL;
    write_token_file(cases[i].magic, cases[i].version, cases[i].count, cases[i].bytes);
    CHECK_STATUS(cases[i].status, nn_dataset_open_tokens(path, &options, &dataset));
    assert_non_null(strstr(nn_last_error(), path));
    assert_null(dataset);
  }
}

/* ---- memory ---------------------------------------------------------------------------------- */

typedef nn_status_t (*open_fn)(nn_dataset_t **dataset);

static nn_status_t open_ids(nn_dataset_t **dataset) {
  static const int32_t ids[] = {1, 2, 3, 4};
  nn_dataset_options_t options = options_of(1, 2, 0);
  return nn_dataset_from_tokens(ids, 4, &options, dataset);
}

static nn_status_t open_mapped(nn_dataset_t **dataset) {
  nn_dataset_options_t options = options_of(1, 2, 0);
  return nn_dataset_open_text(path, NULL, &options, dataset);
}

static nn_tokenizer_t *encoder; /* made before allocations are counted */

static nn_status_t open_encoded(nn_dataset_t **dataset) {
  nn_dataset_options_t options = options_of(1, 2, 0);
  return nn_dataset_open_text(path, encoder, &options, dataset);
}

static nn_status_t open_token_file(nn_dataset_t **dataset) {
  nn_dataset_options_t options = options_of(1, 2, 0);
  return nn_dataset_open_tokens(path, &options, dataset);
}

/* Each allocation fails in turn until the call gets through; the sanitizer looks for leaks. */
static void check_memory(open_fn open, int allocations) {
  nn_dataset_t *dataset = NULL;
  int failures = -1;
  nn_status_t status;
  do {
    mem_fail_after(++failures);
    status = open(&dataset);
    mem_fail_after(-1);
    if (status != NN_OK) assert_int_equal(status, NN_ERR_MEMORY);
    if (status != NN_OK) assert_null(dataset);
  } while (status != NN_OK);
  assert_int_equal(failures, allocations);
  mem_fail_after(0); /* a batch allocates nothing */
  CHECK(nn_dataset_next(dataset, tokens, targets));
  mem_fail_after(-1);
  nn_dataset_destroy(dataset);
}

static void test_memory(void **state) {
  (void)state;
  write_file("abcdefgh", 8);
  check_memory(open_ids, 2);
  check_memory(open_mapped, 1);
  CHECK(nn_tokenizer_create_bytes(&encoder));
  check_memory(open_encoded, 4);
  nn_tokenizer_destroy(encoder);
  write_token_file(MAGIC, 1, 6, WHOLE);
  check_memory(open_token_file, 1);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_in_order),        cmocka_unit_test(test_shuffled),
      cmocka_unit_test(test_shuffle_is_even), cmocka_unit_test(test_seeds),
      cmocka_unit_test(test_seek),            cmocka_unit_test(test_far_positions),
      cmocka_unit_test(test_range),           cmocka_unit_test(test_bad_options),
      cmocka_unit_test(test_struct_sizes),    cmocka_unit_test(test_null),
      cmocka_unit_test(test_text),            cmocka_unit_test(test_bad_text),
      cmocka_unit_test(test_token_file),      cmocka_unit_test(test_save_tokens),
      cmocka_unit_test(test_save_many_tokens), cmocka_unit_test(test_bad_token_files),
      cmocka_unit_test(test_memory),
  };
  return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
