/* Short English-like stories from a grammar whose entropy is known, for training a small model: the
 * loss of the best possible model is a number that can be printed beside the loss reached.
 *
 * A story is made by expanding the rule "story". In a rule's texts `{name}` stands for a rule, of
 * which one text is taken, each as likely as any other; a rule that is `kept` is decided at its
 * first place in a story and repeats its text after that. `[she|he]` takes the first form when the
 * text taken for the rule "hero" has an even index, else the second. No two ways of choosing give
 * the same story, so -ln of a story's probability is the sum of ln(count) over its choices. */
#ifndef STORIES_H
#define STORIES_H

#include <stddef.h>
#include <stdint.h>

/* A text of whole stories. */
typedef struct stories {
  char *text;    /* ends in NUL, which bytes does not count; free() gives it back */
  size_t bytes;
  double nats;   /* -ln of the text's probability, given that it begins and ends with a story */
} stories_t;

/* Makes stories until there are at least `bytes` bytes; the same seed gives the same text. Returns
 * 0, or -1 when memory is short. */
int stories_make(uint64_t seed, size_t bytes, stories_t *stories);

/* The entropy rate of the endless stream of stories, in nats per byte: the expected nats of a story
 * over its expected bytes. */
double stories_entropy(void);

/* The grammar, for those who want to check it. */
typedef struct stories_rule {
  const char *name;
  int kept;
  int count;
  const char *const *texts; /* [count] */
} stories_rule_t;

/* The rules; the first is "story". */
const stories_rule_t *stories_rules(int *count);

#endif
