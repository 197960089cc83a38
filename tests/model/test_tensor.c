/* Tensors: creation, wrapping, slices, copies through strides, DLPack both ways, lifetimes. */
#include <string.h>

#include "fixture.h"

static nn_tensor_info_t info_of(const nn_tensor_t *tensor) {
  nn_tensor_info_t info = STRUCT(nn_tensor_info_t);
  CHECK(nn_tensor_info(tensor, &info));
  return info;
}

static void test_dtypes(void **state) {
  (void)state;
  static const size_t bytes[] = {4, 2, 2, 8, 8, 4, 2, 1, 1, 1};
  for (int32_t i = 0; i < 10; i++) assert_int_equal(nn_dtype_bytes(i), bytes[i]);
  assert_int_equal(nn_dtype_bytes(-1), 0);
  assert_int_equal(nn_dtype_bytes(10), 0);
}

static void test_create_gives_zeros(void **state) {
  (void)state;
  nn_device_t *device = fixture_device(1, 0);
  const int64_t shape[3] = {2, 3, 5};
  nn_tensor_t *tensor;
  CHECK(nn_tensor_create(device, NN_F32, 3, shape, &tensor));
  nn_tensor_info_t info = info_of(tensor);
  assert_int_equal(info.dtype, NN_F32);
  assert_int_equal(info.ndim, 3);
  assert_int_equal(info.elements, 30);
  static const int64_t strides[3] = {15, 5, 1};
  assert_memory_equal(info.shape, shape, sizeof shape);
  assert_memory_equal(info.strides, strides, sizeof strides);
  assert_int_equal(fixture_device_memory(device).current_bytes, 30 * 4);
  const float *data = info.data;
  for (int i = 0; i < 30; i++) assert_true(data[i] == 0);
  nn_tensor_destroy(tensor);
  assert_int_equal(fixture_device_memory(device).current_bytes, 0);
  nn_device_destroy(device);
}

static void test_scalar_and_empty(void **state) {
  (void)state;
  nn_device_t *device = fixture_device(1, 0);
  nn_tensor_t *scalar, *empty, *view;
  CHECK(nn_tensor_create(device, NN_F64, 0, NULL, &scalar));
  assert_int_equal(info_of(scalar).elements, 1);
  double in = 2.5, out = 0;
  CHECK(nn_tensor_copy_in(scalar, &in, sizeof in));
  CHECK(nn_tensor_copy_out(scalar, &out, sizeof out));
  assert_true(out == 2.5);
  CHECK(nn_tensor_create(device, NN_I8, 3, (const int64_t[]){4, 0, 2}, &empty));
  assert_int_equal(info_of(empty).elements, 0);
  CHECK(nn_tensor_copy_in(empty, NULL, 0));
  CHECK(nn_tensor_copy_out(empty, NULL, 0));
  CHECK(nn_tensor_slice(empty, 0, 1, 3, &view));
  assert_int_equal(info_of(view).elements, 0);
  nn_tensor_destroy(view);
  nn_tensor_destroy(empty);
  nn_tensor_destroy(scalar);
  nn_device_destroy(device);
}

/* Element [i, j, l] of a [3, 4, 5] tensor holds 100 i + 10 j + l. */
static nn_tensor_t *numbered(nn_device_t *device) {
  int32_t values[60];
  for (int i = 0; i < 60; i++) values[i] = i / 20 * 100 + i / 5 % 4 * 10 + i % 5;
  nn_tensor_t *tensor;
  CHECK(nn_tensor_create(device, NN_I32, 3, (const int64_t[]){3, 4, 5}, &tensor));
  CHECK(nn_tensor_copy_in(tensor, values, sizeof values));
  return tensor;
}

static void test_slices_share(void **state) {
  (void)state;
  nn_device_t *device = fixture_device(1, 0);
  nn_tensor_t *tensor = numbered(device), *rows, *block;
  CHECK(nn_tensor_slice(tensor, 1, 1, 3, &rows));
  CHECK(nn_tensor_slice(rows, 2, 2, 5, &block)); /* [3, 2, 3], strides 20, 5, 1 */
  nn_tensor_info_t info = info_of(block);
  assert_int_equal(info.elements, 18);
  assert_int_equal(info.strides[0], 20);
  assert_int_equal(info.strides[1], 5);
  int32_t values[18];
  CHECK(nn_tensor_copy_out(block, values, sizeof values));
  for (int i = 0; i < 18; i++)
    assert_int_equal(values[i], i / 6 * 100 + (i / 3 % 2 + 1) * 10 + i % 3 + 2);
  for (int i = 0; i < 18; i++) values[i] = -values[i];
  CHECK(nn_tensor_copy_in(block, values, sizeof values));
  int32_t all[60];
  CHECK(nn_tensor_copy_out(tensor, all, sizeof all));
  for (int i = 0; i < 60; i++) {
    int j = i / 5 % 4, l = i % 5, inside = j >= 1 && j < 3 && l >= 2;
    int32_t want = i / 20 * 100 + j * 10 + l;
    assert_int_equal(all[i], inside ? -want : want);
  }
  /* The storage lives with its last view, the device with its last tensor. */
  nn_tensor_destroy(tensor);
  nn_tensor_destroy(rows);
  CHECK(nn_tensor_copy_out(block, values, sizeof values));
  nn_device_destroy(device);
  CHECK(nn_tensor_copy_out(block, values, sizeof values));
  assert_int_equal(values[0], -12);
  nn_tensor_destroy(block);
}

static void test_wrap_with_strides(void **state) {
  (void)state;
  nn_device_t *device = fixture_device(1, 0);
  float data[12], out[12];
  for (int i = 0; i < 12; i++) data[i] = (float)i;
  /* A [4, 3] transpose of [3, 4] rows. */
  nn_tensor_t *tensor, *column;
  CHECK(nn_tensor_wrap(device, data, NN_F32, 2, (const int64_t[]){4, 3}, (const int64_t[]){1, 4},
                       &tensor));
  assert_ptr_equal(info_of(tensor).data, data);
  assert_int_equal(fixture_device_memory(device).current_bytes, 0);
  CHECK(nn_tensor_copy_out(tensor, out, sizeof out));
  for (int i = 0; i < 12; i++) assert_true(out[i] == (float)(i % 3 * 4 + i / 3));
  CHECK(nn_tensor_slice(tensor, 0, 2, 3, &column));
  const float row[3] = {-1, -2, -3};
  CHECK(nn_tensor_copy_in(column, row, sizeof row));
  assert_true(data[2] == -1 && data[6] == -2 && data[10] == -3 && data[3] == 3);
  /* A stride of 0 repeats a row on the way out. */
  nn_tensor_t *repeated;
  CHECK(nn_tensor_wrap(device, data, NN_F32, 2, (const int64_t[]){3, 2}, (const int64_t[]){0, 1},
                       &repeated));
  CHECK(nn_tensor_copy_out(repeated, out, 6 * sizeof *out));
  for (int i = 0; i < 6; i++) assert_true(out[i] == data[i % 2]);
  nn_tensor_destroy(repeated);
  nn_tensor_destroy(column);
  nn_tensor_destroy(tensor);
  nn_device_destroy(device);
}

/* Outputs are written only on success. */
static void test_bad_arguments(void **state) {
  (void)state;
  nn_device_t *device = fixture_device(1, 0);
  nn_tensor_t *tensor = numbered(device), *const untouched = tensor, *got = untouched;
  const int64_t shape[2] = {2, 3}, negative[2] = {2, -1}, huge[2] = {INT64_MAX / 2, 3};
  float data[6];
  int32_t values[60];
#define REFUSED(call)                      \
  do {                                     \
    CHECK_STATUS(NN_ERR_ARGUMENT, call);   \
    assert_ptr_equal(got, untouched);      \
    assert_true(nn_last_error()[0] != 0);  \
  } while (0)
  REFUSED(nn_tensor_create(NULL, NN_F32, 2, shape, &got));
  REFUSED(nn_tensor_create(device, NN_F32, 2, shape, NULL));
  REFUSED(nn_tensor_create(device, NN_F32, 2, NULL, &got));
  REFUSED(nn_tensor_create(device, 10, 2, shape, &got));
  REFUSED(nn_tensor_create(device, -1, 2, shape, &got));
  REFUSED(nn_tensor_create(device, NN_F32, -1, shape, &got));
  REFUSED(nn_tensor_create(device, NN_F32, NN_MAX_DIMS + 1, shape, &got));
  REFUSED(nn_tensor_create(device, NN_F32, 2, negative, &got));
  REFUSED(nn_tensor_create(device, NN_F32, 2, huge, &got));
  REFUSED(nn_tensor_create(device, NN_F32, 3, (const int64_t[]){0, INT64_MAX, INT64_MAX}, &got));
  REFUSED(nn_tensor_wrap(device, data, NN_F32, 2, (const int64_t[]){0, 10},
                         (const int64_t[]){1, INT64_MAX}, &got));
  REFUSED(nn_tensor_wrap(device, NULL, NN_F32, 2, shape, NULL, &got));
  REFUSED(nn_tensor_wrap(device, (char *)data + 1, NN_F32, 2, shape, NULL, &got));
  REFUSED(nn_tensor_wrap(device, data, NN_F32, 2, shape, (const int64_t[]){-3, 1}, &got));
  REFUSED(nn_tensor_wrap(device, data, NN_F32, 2, shape, (const int64_t[]){INT64_MAX, 1}, &got));
  REFUSED(nn_tensor_slice(tensor, 3, 0, 1, &got));
  REFUSED(nn_tensor_slice(tensor, -1, 0, 1, &got));
  REFUSED(nn_tensor_slice(tensor, 0, -1, 1, &got));
  REFUSED(nn_tensor_slice(tensor, 0, 2, 1, &got));
  REFUSED(nn_tensor_slice(tensor, 0, 0, 4, &got));
  REFUSED(nn_tensor_slice(NULL, 0, 0, 1, &got));
  REFUSED(nn_tensor_copy_in(tensor, values, sizeof values - 1));
  REFUSED(nn_tensor_copy_in(tensor, NULL, sizeof values));
  REFUSED(nn_tensor_copy_in(NULL, values, sizeof values));
  REFUSED(nn_tensor_copy_out(tensor, values, sizeof values + 4));
  REFUSED(nn_tensor_copy_out(tensor, NULL, sizeof values));
  REFUSED(nn_tensor_copy_out(NULL, values, sizeof values));
  REFUSED(nn_tensor_info(tensor, NULL));
  REFUSED(nn_tensor_info(NULL, &(nn_tensor_info_t){.struct_size = sizeof(nn_tensor_info_t)}));
  REFUSED(nn_tensor_to_dlpack(NULL, (void *[1]){NULL}));
  REFUSED(nn_tensor_to_dlpack(tensor, NULL));
  REFUSED(nn_tensor_from_dlpack(device, NULL, &got));
#undef REFUSED
  nn_tensor_info_t sizeless = {0};
  CHECK_STATUS(NN_ERR_STRUCT_SIZE, nn_tensor_info(tensor, &sizeless));
  nn_tensor_destroy(NULL);
  nn_tensor_destroy(tensor);
  nn_device_destroy(device);
}

/* ---- DLPack: the published layout, written down once more ----
 * github.com/dmlc/dlpack, include/dlpack/dlpack.h, DLManagedTensor of version 0.8. */

typedef struct {
  int32_t device_type; /* kDLCPU = 1 */
  int32_t device_id;
} DLDevice;

typedef struct {
  uint8_t code; /* kDLInt 0, kDLUInt 1, kDLFloat 2, kDLBfloat 4, kDLBool 6 */
  uint8_t bits;
  uint16_t lanes;
} DLDataType;

typedef struct {
  void *data;
  DLDevice device;
  int32_t ndim;
  DLDataType dtype;
  int64_t *shape;
  int64_t *strides;
  uint64_t byte_offset;
} DLTensor;

typedef struct DLManagedTensor {
  DLTensor dl_tensor;
  void *manager_ctx;
  void (*deleter)(struct DLManagedTensor *self);
} DLManagedTensor;

static void test_dlpack_export(void **state) {
  (void)state;
  static const DLDataType types[] = {{2, 32, 1}, {4, 16, 1}, {2, 16, 1}, {2, 64, 1}, {0, 64, 1},
                                     {0, 32, 1}, {0, 16, 1}, {0, 8, 1},  {1, 8, 1},  {6, 8, 1}};
  nn_device_t *device = fixture_device(1, 0);
  for (int32_t dtype = 0; dtype < 10; dtype++) {
    nn_tensor_t *tensor, *view;
    CHECK(nn_tensor_create(device, dtype, 2, (const int64_t[]){4, 6}, &tensor));
    CHECK(nn_tensor_slice(tensor, 1, 2, 5, &view));
    void *out;
    CHECK(nn_tensor_to_dlpack(view, &out));
    DLManagedTensor *managed = out;
    assert_int_equal(managed->dl_tensor.device.device_type, 1);
    assert_int_equal(managed->dl_tensor.device.device_id, 0);
    assert_memory_equal(&managed->dl_tensor.dtype, &types[dtype], sizeof types[dtype]);
    assert_int_equal(managed->dl_tensor.ndim, 2);
    assert_int_equal(managed->dl_tensor.shape[0], 4);
    assert_int_equal(managed->dl_tensor.shape[1], 3);
    assert_int_equal(managed->dl_tensor.strides[0], 6);
    assert_int_equal(managed->dl_tensor.strides[1], 1);
    assert_ptr_equal((char *)managed->dl_tensor.data + managed->dl_tensor.byte_offset,
                     info_of(view).data);
    /* The consumer outlives every handle. */
    nn_tensor_destroy(view);
    nn_tensor_destroy(tensor);
    assert_true(fixture_device_memory(device).current_bytes > 0);
    memset((char *)managed->dl_tensor.data + managed->dl_tensor.byte_offset, 1,
           nn_dtype_bytes(dtype));
    managed->deleter(managed);
    assert_int_equal(fixture_device_memory(device).current_bytes, 0);
  }
  nn_device_destroy(device);
}

typedef struct foreign {
  DLManagedTensor managed;
  int64_t shape[3], strides[3];
  float data[24];
  int deleted;
} foreign_t;

static void foreign_delete(DLManagedTensor *self) { ((foreign_t *)self->manager_ctx)->deleted++; }

/* [2, 3, 4] of 0, 1, 2, ... behind a byte offset of four elements. */
static void foreign_open(foreign_t *f) {
  *f = (foreign_t){.shape = {2, 2, 4}, .strides = {12, 4, 1}};
  for (int i = 0; i < 24; i++) f->data[i] = (float)i;
  f->managed.dl_tensor = (DLTensor){.data = f->data,
                                    .device = {1, 0},
                                    .ndim = 3,
                                    .dtype = {2, 32, 1},
                                    .shape = f->shape,
                                    .strides = f->strides,
                                    .byte_offset = 4 * sizeof(float)};
  f->managed.manager_ctx = f;
  f->managed.deleter = foreign_delete;
}

static void test_dlpack_import(void **state) {
  (void)state;
  nn_device_t *device = fixture_device(1, 0);
  foreign_t f;
  foreign_open(&f);
  nn_tensor_t *tensor;
  CHECK(nn_tensor_from_dlpack(device, &f.managed, &tensor));
  nn_tensor_info_t info = info_of(tensor);
  assert_ptr_equal(info.data, f.data + 4);
  assert_int_equal(info.elements, 16);
  float out[16];
  CHECK(nn_tensor_copy_out(tensor, out, sizeof out));
  for (int i = 0; i < 16; i++) assert_true(out[i] == (float)(4 + i / 8 * 12 + i % 8));
  assert_int_equal(f.deleted, 0);
  nn_tensor_destroy(tensor);
  assert_int_equal(f.deleted, 1);

  /* strides NULL: row-major; a NULL deleter: nothing to call. */
  foreign_open(&f);
  f.managed.dl_tensor.strides = NULL;
  f.managed.deleter = NULL;
  CHECK(nn_tensor_from_dlpack(device, &f.managed, &tensor));
  assert_int_equal(info_of(tensor).strides[0], 8);
  nn_tensor_destroy(tensor);
  nn_device_destroy(device);
}

/* The deleter runs once, with the last of tensor, view and re-export, in each of six orders. */
static void test_dlpack_deleter_runs_once(void **state) {
  (void)state;
  static const int orders[6][3] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2},
                                   {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
  for (int order = 0; order < 6; order++) {
    nn_device_t *device = fixture_device(1, 0);
    foreign_t f;
    foreign_open(&f);
    nn_tensor_t *tensor, *view;
    void *managed;
    CHECK(nn_tensor_from_dlpack(device, &f.managed, &tensor));
    CHECK(nn_tensor_slice(tensor, 0, 1, 2, &view));
    CHECK(nn_tensor_to_dlpack(view, &managed));
    nn_device_destroy(device); /* lives on behind its tensors */
    for (int i = 0; i < 3; i++) {
      assert_int_equal(f.deleted, 0);
      if (orders[order][i] == 0) nn_tensor_destroy(tensor);
      if (orders[order][i] == 1) nn_tensor_destroy(view);
      if (orders[order][i] == 2) ((DLManagedTensor *)managed)->deleter(managed);
    }
    assert_int_equal(f.deleted, 1);
  }
}

static void test_dlpack_import_refuses(void **state) {
  (void)state;
  nn_device_t *device = fixture_device(1, 0);
  nn_tensor_t *tensor = NULL;
  for (int i = 0; i < 9; i++) {
    foreign_t f;
    foreign_open(&f);
    DLTensor *t = &f.managed.dl_tensor;
    nn_status_t want = NN_ERR_UNSUPPORTED;
    if (i == 0) t->device.device_type = 2; /* CUDA memory */
    if (i == 1) t->dtype.code = 5;         /* complex */
    if (i == 2) t->dtype.bits = 24;
    if (i == 3) t->dtype.lanes = 4;
    if (i >= 4) want = NN_ERR_ARGUMENT;
    if (i == 4) t->ndim = NN_MAX_DIMS + 1;
    if (i == 5) f.shape[1] = -2;
    if (i == 6) t->data = NULL;
    if (i == 7) t->byte_offset = 2;
    if (i == 8) f.shape[0] = INT64_MAX / 2;
    CHECK_STATUS(want, nn_tensor_from_dlpack(device, &f.managed, &tensor));
    assert_null(tensor);
    assert_int_equal(f.deleted, 0); /* still the caller's */
  }
  nn_device_destroy(device);
}

/* Out and in again is the same memory. */
static void test_dlpack_round_trip(void **state) {
  (void)state;
  nn_device_t *device = fixture_device(1, 0);
  nn_tensor_t *tensor = numbered(device), *back;
  void *managed;
  CHECK(nn_tensor_to_dlpack(tensor, &managed));
  CHECK(nn_tensor_from_dlpack(device, managed, &back));
  assert_ptr_equal(info_of(back).data, info_of(tensor).data);
  nn_tensor_destroy(tensor);
  int32_t values[60];
  CHECK(nn_tensor_copy_out(back, values, sizeof values));
  assert_int_equal(values[59], 234);
  nn_tensor_destroy(back);
  assert_int_equal(fixture_device_memory(device).current_bytes, 0);
  nn_device_destroy(device);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_dtypes),
      cmocka_unit_test(test_create_gives_zeros),
      cmocka_unit_test(test_scalar_and_empty),
      cmocka_unit_test(test_slices_share),
      cmocka_unit_test(test_wrap_with_strides),
      cmocka_unit_test(test_bad_arguments),
      cmocka_unit_test(test_dlpack_export),
      cmocka_unit_test(test_dlpack_import),
      cmocka_unit_test(test_dlpack_deleter_runs_once),
      cmocka_unit_test(test_dlpack_import_refuses),
      cmocka_unit_test(test_dlpack_round_trip),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
