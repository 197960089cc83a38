/* A training step and a decoding step, once they are steady, ask the system for nothing but
 * futexes: a filter on every thread of a child process traps any other call. Nor do they allocate:
 * the library's first allocation would fail. */
#define _GNU_SOURCE
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/mem.h"
#include "fixture.h"

enum { BATCH = 4, SEQ = 64, TOKENS = BATCH * SEQ, WARM = 3, STEADY = 10 };
enum { TRAPPED = 2, UNFILTERED = 78 }; /* exit codes of a child */

static void on_trap(int number, siginfo_t *info, void *context) {
  static const char words[] = "a steady step made system call ";
  char digits[16];
  int value = info->si_syscall, length = 0;
  (void)number, (void)context;
  for (int rest = value; rest || !length; rest /= 10) digits[length++] = (char)('0' + rest % 10);
  if (write(STDERR_FILENO, words, sizeof words - 1) < 0) _exit(3);
  while (length) /* digits lie backwards */
    if (write(STDERR_FILENO, &digits[--length], 1) < 0) _exit(3);
  _exit(TRAPPED);
}

/* Everything but futex, and what ends the process, raises SIGSYS from now on. */
static int trap_calls(void) {
  struct sigaction action = {.sa_sigaction = on_trap, .sa_flags = SA_SIGINFO};
  static const int allowed[] = {SYS_futex, SYS_write, SYS_exit_group, SYS_rt_sigreturn};
  enum { ALLOWED = sizeof allowed / sizeof *allowed };
  struct sock_filter code[ALLOWED + 3];
  unsigned short n = 0;
  code[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
                                           offsetof(struct seccomp_data, nr));
  for (unsigned char i = 0; i < ALLOWED; i++)
    code[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)allowed[i],
                                             (unsigned char)(ALLOWED - i), 0);
  code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP);
  code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
  struct sock_fprog program = {.len = n, .filter = code};
  if (sigaction(SIGSYS, &action, NULL) || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) return -1;
  return (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program);
}

static void step(nn_model_t *model, nn_optim_t *optim, const int32_t *tokens) {
  nn_loss_t loss = STRUCT(nn_loss_t);
  if (nn_model_zero_grad(model) || nn_model_backward(model, tokens, tokens, BATCH, SEQ, 1, &loss) ||
      nn_optim_step(optim, 1e-3f, NULL))
    _exit(4);
}

static void decode(nn_session_t *session) {
  int32_t token;
  if (nn_session_sample(session, 0, NULL, &token) || nn_session_decode(session, &token, NULL))
    _exit(5);
}

/* Warms up, closes the door, goes on. */
static void run(int32_t dtype) {
  nn_device_t *device = fixture_device(3, 0);
  nn_model_config_t config = STRUCT(nn_model_config_t);
  CHECK(nn_config_preset("small", &config));
  nn_model_t *model;
  CHECK(nn_model_create(device, &config, dtype, 1, &model));
  fixture_prepare(model, BATCH, SEQ, NN_RECOMPUTE_NONE);
  nn_optim_t *optim;
  nn_session_t *session;
  CHECK(nn_optim_create(model, NULL, &optim));
  CHECK(nn_session_create(model, NULL, &session));
  CHECK(nn_session_prefill(session, 0, (const int32_t[]){1, 2, 3}, 3, NULL));
  int32_t tokens[TOKENS];
  fixture_tokens(tokens, TOKENS, 200, 1);
  for (int i = 0; i < WARM; i++) step(model, optim, tokens), decode(session);
  if (trap_calls()) _exit(UNFILTERED);
  mem_fail_after(0);
  for (int i = 0; i < STEADY; i++) step(model, optim, tokens), decode(session);
  _exit(0);
}

/* How a child ended that does this work. */
static int child_code(void (*work)(int32_t dtype), int32_t dtype) {
  pid_t child = fork();
  if (!child) work(dtype);
  int status = 0;
  return child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) ? WEXITSTATUS(status)
                                                                               : -1;
}

/* A call that no step has reason to make. */
static void run_a_call(int32_t dtype) {
  (void)dtype;
  if (trap_calls()) _exit(UNFILTERED);
  syscall(SYS_getppid);
  _exit(0);
}

static void test_the_filter_traps(void **state) {
  (void)state;
  assert_int_equal(child_code(run_a_call, 0), TRAPPED);
}

static void test_fp32(void **state) {
  (void)state;
  assert_int_equal(child_code(run, NN_F32), 0);
}

static void test_bf16(void **state) {
  (void)state;
  assert_int_equal(child_code(run, NN_BF16), 0);
}

static void test_fp16(void **state) {
  (void)state;
  assert_int_equal(child_code(run, NN_F16), 0);
}

/* Why nothing can be tested here, or NULL. */
static const char *reason_to_skip(void) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  return "a sanitizer's run time makes calls of its own";
#else
  return child_code(run_a_call, 0) == UNFILTERED ? "this system lets no filter be set" : NULL;
#endif
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_the_filter_traps),
      cmocka_unit_test(test_fp32),
      cmocka_unit_test(test_bf16),
      cmocka_unit_test(test_fp16),
  };
  const char *reason = reason_to_skip();
  if (reason) {
    print_message("skipped: %s\n", reason);
    return 77; /* as CTest knows */
  }
  return cmocka_run_group_tests_name("system calls", tests, NULL, NULL);
}
