/* Threads of the library's own. */
#ifndef NN_BASE_THREADS_H
#define NN_BASE_THREADS_H

#include <pthread.h>
#include <stdint.h>

/* pthread_create, and its error number. The thread takes none of the application's signals. */
int threads_start(pthread_t *handle, void *(*run)(void *context), void *context);

/* Calls work(context, 0) on this thread and, meanwhile, work(context, 1) to work(context, threads -
 * 1) on threads that end with it; fewer where the system gives no more, or beyond THREADS_MOST. */
enum { THREADS_MOST = 16 };
typedef void (*threads_fn)(void *context, int32_t thread);
void threads_run(int32_t threads, threads_fn work, void *context);

#endif
