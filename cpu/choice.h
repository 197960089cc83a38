/* The choice of a token's experts by their scores, as op_router_t defines it: one for all paths, so
 * that they differ in nothing but the scores. */
#ifndef NN_CPU_CHOICE_H
#define NN_CPU_CHOICE_H

#include <math.h>

#include "backend.h"

enum { CHOICE_EXPERTS = 1024 }; /* at most */

/* Takes candidate e into the best so far, best first: `kept` of them, at most k; returns how many
 * there are then. What compares false (equals, NaN) goes behind, so that the indices are valid and
 * distinct whatever the scores are. */
static inline int64_t choice_insert(const float *score, int64_t e, int64_t k, int32_t *best,
                                    int64_t kept) {
  if (kept == k && !(score[e] > score[best[k - 1]])) return kept;
  int64_t j = kept < k ? kept++ : k - 1;
  for (; j > 0 && score[e] > score[best[j - 1]]; j--) best[j] = best[j - 1];
  best[j] = (int32_t)e;
  return kept;
}

/* The largest of a group's scores, or the sum of the two largest. */
static inline float choice_group(int32_t kind, const float *score, int64_t size) {
  int32_t best[2];
  int64_t most = kind == NN_GROUP_TOP2 && size > 1 ? 2 : 1, kept = 0;
  for (int64_t e = 0; e < size; e++) kept = choice_insert(score, e, most, best, kept);
  return most == 2 ? score[best[0]] + score[best[1]] : score[best[0]];
}

/* expert: [k] those with the largest scores in the groups that remain, in falling order. */
static inline void choice_make(const op_router_t *router, const float *score, int64_t experts,
                               int64_t k, int32_t *expert) {
  int64_t kept = 0, chosen = 0;
  if (!router->groups) {
    for (int64_t e = 0; e < experts; e++) chosen = choice_insert(score, e, k, expert, chosen);
    return;
  }
  int64_t size = experts / router->groups;
  float group[CHOICE_EXPERTS];
  int32_t best[CHOICE_EXPERTS];
  uint8_t remains[CHOICE_EXPERTS] = {0};
  for (int64_t g = 0; g < router->groups; g++) {
    group[g] = choice_group(router->group_score, score + g * size, size);
    kept = choice_insert(group, g, router->top_groups, best, kept);
  }
  for (int64_t g = 0; g < router->top_groups; g++) remains[best[g]] = 1;
  for (int64_t e = 0; e < experts; e++)
    if (remains[e / size]) chosen = choice_insert(score, e, k, expert, chosen);
}

/* ---- the sparse mixer ------------------------------------------------------------------------ */

/* Whether the logit of expert e counts beside the choice number `turn`, which is 0 or 1: unless it
 * is far from the choice's, or the first choice where the second is made. */
static inline int choice_mixes(const float *logit, int64_t e, const int32_t *expert, int turn,
                               float eps) {
  double most = logit[expert[turn]], l = logit[e];
  if (turn && e == expert[0]) return 0;
  return !((most - l) / fmax(fabs(l), most) > 2 * (double)eps);
}

/* Token t's two choices and their weights, from the logits that lie where prob will. */
static inline void choice_mix(const op_route_t *op, int64_t t) {
  const float *logit = op->prob + t * op->experts;
  int32_t *expert = op->out.expert + 2 * t;
  double scale = (double)backend_factor(op->router.scale);
  int64_t kept = 0;
  for (int64_t e = 0; e < op->experts; e++) kept = choice_insert(logit, e, 2, expert, kept);
  for (int turn = 0; turn < 2; turn++) {
    double sum = 0;
    for (int64_t e = 0; e < op->experts; e++)
      if (choice_mixes(logit, e, expert, turn, op->router.eps))
        sum += exp((double)logit[e] - (double)logit[expert[turn]]);
    op->out.weight[2 * t + turn] = (float)(scale * (1 / sum));
  }
}

/* dlogit += the gradient of <dweight, weight>. */
static inline void choice_mix_bwd(const float *logit, int64_t experts, float eps,
                                  const int32_t *expert, const float *dweight, float scale,
                                  float *dlogit) {
  for (int turn = 0; turn < 2; turn++) {
    double sum = 0, most = logit[expert[turn]];
    for (int64_t e = 0; e < experts; e++)
      if (choice_mixes(logit, e, expert, turn, eps)) sum += exp((double)logit[e] - most);
    double d = (double)scale * (double)dweight[turn] / sum;
    for (int64_t e = 0; e < experts; e++)
      if (choice_mixes(logit, e, expert, turn, eps))
        dlogit[e] -= (float)(d * exp((double)logit[e] - most) / sum);
    dlogit[expert[turn]] += (float)d;
  }
}

#endif
