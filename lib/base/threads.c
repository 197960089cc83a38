#define _POSIX_C_SOURCE 200809L
#include "base/threads.h"

#include <signal.h>
#include <stddef.h>

int threads_start(pthread_t *handle, void *(*run)(void *context), void *context) {
  /* Signals are the application's: its own threads shall take them. Those that an instruction of a
   * worker raises cannot go elsewhere: blocked, they would pass the application's handler by. */
  static const int own[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP};
  sigset_t blocked, old;
  sigfillset(&blocked);
  for (size_t i = 0; i < sizeof own / sizeof *own; i++) sigdelset(&blocked, own[i]);
  pthread_sigmask(SIG_SETMASK, &blocked, &old);
  int error = pthread_create(handle, NULL, run, context);
  pthread_sigmask(SIG_SETMASK, &old, NULL);
  return error;
}

typedef struct threads_call {
  pthread_t handle;
  threads_fn work;
  void *context;
  int32_t thread;
} threads_call_t;

static void *threads_main(void *data) {
  threads_call_t *call = data;
  call->work(call->context, call->thread);
  return NULL;
}

void threads_run(int32_t threads, threads_fn work, void *context) {
  threads_call_t calls[THREADS_MOST];
  int32_t started = 1;
  for (; started < threads && started < THREADS_MOST; started++) {
    calls[started] = (threads_call_t){.work = work, .context = context, .thread = started};
    if (threads_start(&calls[started].handle, threads_main, &calls[started])) break;
  }
  work(context, 0);
  for (int32_t i = 1; i < started; i++) pthread_join(calls[i].handle, NULL);
}
