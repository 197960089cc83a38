/* Which devices and shapes the products of sm90.cuh take. */
#include "sm90.cuh"

/* Rows of all matrices begin at multiples of 16 bytes; what a tile has beyond a matrix is copied as
 * zeroes. Fewer rows are few.cu's. */
int sm90_fits(const backend_device_t *device, const grouped_t *grouped) {
  return device->capability == 90 && device->shared_bytes >= SM90_SHARED &&
         device->multiprocessors >= SM90_PAIR && grouped->hidden >= 64 &&
         grouped->hidden % 8 == 0 && grouped->ffn >= 64 && grouped->ffn % 8 == 0 &&
         grouped->stride % 8 == 0 && grouped->rows > FEW_ROWS;
}
