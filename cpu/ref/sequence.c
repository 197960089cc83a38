/* Operations that follow one another, by whatever the device has for each. */
#include "ref.h"

nn_status_t ref_project(backend_device_t *device, const op_project_t *op,
                        backend_scratch_t scratch) {
  const backend_t *table = &device->table;
  STATUS_TRY(table->norm(device, &op->norm, scratch));
  STATUS_TRY(table->matmul(device, &op->matmul, scratch));
  if (op->rope.n) STATUS_TRY(table->rope(device, &op->rope, scratch));
  return op->store.n ? table->kv_store(device, &op->store, scratch) : NN_OK;
}

nn_status_t ref_moe(backend_device_t *device, const op_moe_t *op, backend_scratch_t scratch) {
  const backend_t *table = &device->table;
  STATUS_TRY(table->norm(device, &op->norm, scratch));
  STATUS_TRY(table->route(device, &op->route, scratch));
  return table->experts(device, &op->experts, scratch);
}
