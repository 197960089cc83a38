/* What of a program's tests runs, by the environment: for tools under which an instruction takes a
 * thousand times as long, as compute-sanitizer's. Without these variables everything does.
 *
 *   MOENN_TEST_ONLY=test_cache*  tests of such names alone
 *   MOENN_TEST_SHARE=2/15        of the cases only the third of each fifteen: 0/15 to 14/15, side
 *                                by side, are all of them
 *   MOENN_TEST_WORK=1e8          cases of at most so many multiply-adds alone
 *   MOENN_TEST_DRAWS=2           at most so many of the tokens that a case draws */
#ifndef NN_TEST_SELECT_H
#define NN_TEST_SELECT_H

/* Before the tests are run. */
void select_tests(void);

/* Whether a case runs; to be asked once for each. */
int select_case(double work);

/* How many tokens a case draws that asks for so many. */
int select_draws(int count);

#endif
