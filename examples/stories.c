/* The grammar of the stories, its expansion and its entropy. */
#include "stories.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define COUNT(...) ((int)(sizeof((const char *[]){__VA_ARGS__}) / sizeof(char *)))
#define RULE(name, kept, ...) {name, kept, COUNT(__VA_ARGS__), (const char *const[]){__VA_ARGS__}}

/* Every story names its hero, animal and toy: stories_entropy counts kept rules once a story. */
static const stories_rule_t rules[] = {
    RULE("story", 0, "{opening} {treasure} {loss}\n{meeting} {search} {ending}\n\n"),
    RULE("opening", 0,
         "Once a {mood} [girl|boy] named {hero} lived in a {look} {home}.",
         "In a {look} {home} by the {place} lived {hero}, a {mood} [girl|boy].",
         "{hero} was a {mood} [girl|boy] who loved {food} and {game}.",
         "There was once a {mood} [girl|boy] called {hero}."),
    RULE("treasure", 0,
         "[She|He] had a {look} {color} {toy} from [her|his] {family}.",
         "[Her|His] {family} made [her|him] a {look} {color} {toy}.",
         "Every {daytime} [she|he] took a {color} {toy} to the {look} {place}."),
    RULE("loss", 0,
         "One {weather} {daytime} {hero} lost it near the {look} {place}.",
         "But one {weather} {daytime} it {fell} into the {look} {place}.",
         "Then the wind took the {toy} {spot}."),
    RULE("meeting", 0,
         "A {mood} {look} {animal} saw that [she|he] was {sad}.",
         "\"Why are you so {sad}?\" asked a {mood} {look} {animal}.",
         "{hero} felt {sad} and told a {mood} {animal}."),
    RULE("search", 0,
         "They looked {spot} and {spot}.",
         "They looked {spot} and found {food}.",
         "They {moved} {spot} and then {moved} {spot}."),
    RULE("ending", 0,
         "At last {hero} saw the {toy} {spot}, and they ate {food}.",
         "\"Here it is, {spot}!\" said the {animal}, and {hero} was {glad}.",
         "It was {spot}! [She|He] was {glad} and got {food} for the {animal}."),
    RULE("spot", 0, "{near} the {look} {thing}", "{near} the {color} {thing}"),
    RULE("hero", 1, "Lily", "Ben", "Mia", "Tom", "Anna", "Max", "Rosie", "Sam"),
    RULE("animal", 1, "fox", "bear", "rabbit", "frog", "duck", "mouse", "cat", "goat"),
    RULE("toy", 1, "ball", "kite", "boat", "drum", "doll", "hat", "bell", "ring"),
    RULE("mood", 0, "happy", "brave", "quiet", "clever", "gentle", "funny", "shy", "kind", "young",
         "polite", "lively", "cheeky", "patient", "busy", "wise", "merry"),
    RULE("look", 0, "little", "big", "fine", "pretty", "tiny", "lovely", "strange", "tall", "new",
         "round", "hidden", "shiny", "dusty", "crooked", "lonely", "famous"),
    RULE("color", 0, "red", "blue", "yellow", "golden", "silver", "purple", "pink", "wooden",
         "green", "white", "black", "brown", "gray", "striped", "painted", "bright"),
    RULE("home", 0, "house", "hut", "castle", "cottage", "tent", "tower", "cabin", "barn"),
    RULE("place", 0, "river", "forest", "garden", "meadow", "pond", "lake", "mill", "sea", "valley",
         "desert", "jungle", "cave", "field", "swamp", "harbor", "market"),
    RULE("family", 0, "mother", "father", "grandmother", "uncle", "sister", "brother", "aunt",
         "cousin"),
    RULE("food", 0, "honey", "cake", "bread", "soup", "cheese", "plums", "milk", "jam", "nuts",
         "rice", "berries", "apples", "pie", "cookies", "figs", "tea"),
    RULE("game", 0, "songs", "games", "books", "riddles", "dancing", "running", "stars", "flowers"),
    RULE("weather", 0, "sunny", "windy", "rainy", "warm", "cold", "stormy", "foggy", "frosty"),
    RULE("daytime", 0, "day", "morning", "evening", "night"),
    RULE("fell", 0, "fell", "rolled", "flew", "dropped", "slid", "sank", "vanished", "tumbled"),
    RULE("sad", 0, "sad", "upset", "worried", "unhappy", "angry", "tired", "scared", "hurt"),
    RULE("glad", 0, "glad", "proud", "thankful", "cheerful", "calm", "delighted", "excited",
         "full of joy"),
    RULE("near", 0, "under", "behind", "beside", "over", "inside", "around", "below", "above"),
    RULE("moved", 0, "ran", "jumped", "hopped", "walked", "climbed", "crept", "raced", "hurried"),
    RULE("thing", 0, "bridge", "tree", "rock", "fence", "well", "bush", "log", "wall", "gate",
         "bench", "cart", "nest", "roof", "stairs", "door", "basket"),
};
enum { RULES = sizeof rules / sizeof *rules };

const stories_rule_t *stories_rules(int *count) {
  *count = RULES;
  return rules;
}

static int rule_find(const char *name, size_t bytes) {
  int i = 0;
  while (strncmp(rules[i].name, name, bytes) || rules[i].name[bytes]) i++;
  return i;
}

/* A piece of a rule's text: a rule in braces, or two forms in brackets; bytes that stand for
 * themselves are two equal forms. */
typedef struct piece {
  int rule; /* -1: forms */
  const char *form[2];
  size_t bytes[2];
} piece_t;

/* Reads the piece at text and returns what follows it. */
static const char *piece_read(const char *text, piece_t *piece) {
  piece->rule = -1;
  piece->form[0] = piece->form[1] = text;
  piece->bytes[0] = piece->bytes[1] = strcspn(text, "{[");
  if (*text == '{') {
    size_t bytes = strcspn(text + 1, "}");
    piece->rule = rule_find(text + 1, bytes);
    return text + bytes + 2;
  }
  if (*text == '[') {
    piece->form[0] = text + 1;
    piece->bytes[0] = strcspn(text + 1, "|");
    piece->form[1] = piece->form[0] + piece->bytes[0] + 1;
    piece->bytes[1] = strcspn(piece->form[1], "]");
    return piece->form[1] + piece->bytes[1] + 1;
  }
  return text + piece->bytes[0];
}

/* ---- expansion ------------------------------------------------------------------------------- */

typedef struct writer {
  stories_t *stories;
  size_t capacity;
  int failed;
  uint64_t random;
  int hero;        /* the rule "hero" */
  int kept[RULES]; /* the text that a kept rule has in this story, or -1 */
} writer_t;

/* SplitMix64 (Steele et al., 2014). */
static uint64_t writer_random(writer_t *writer) {
  uint64_t x = writer->random += 0x9E3779B97F4A7C15u;
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
  x = (x ^ x >> 27) * 0x94D049BB133111EBu;
  return x ^ x >> 31;
}

/* The text to take for a rule. The remainder favours no text by more than one part in 2^60. */
static int writer_choose(writer_t *writer, int rule) {
  if (writer->kept[rule] >= 0) return writer->kept[rule];
  int choice = (int)(writer_random(writer) % (uint64_t)rules[rule].count);
  writer->stories->nats += log(rules[rule].count);
  if (rules[rule].kept) writer->kept[rule] = choice;
  return choice;
}

static void writer_append(writer_t *writer, const char *text, size_t bytes) {
  stories_t *stories = writer->stories;
  if (stories->bytes + bytes + 1 > writer->capacity) {
    size_t capacity = 2 * (stories->bytes + bytes + 1);
    char *grown = realloc(stories->text, capacity);
    if (!grown) {
      writer->failed = 1;
      return;
    }
    stories->text = grown;
    writer->capacity = capacity;
  }
  memcpy(stories->text + stories->bytes, text, bytes);
  stories->bytes += bytes;
  stories->text[stories->bytes] = 0;
}

static void writer_expand(writer_t *writer, int rule) {
  const char *text = rules[rule].texts[writer_choose(writer, rule)];
  while (*text && !writer->failed) {
    piece_t piece;
    text = piece_read(text, &piece);
    if (piece.rule >= 0) {
      writer_expand(writer, piece.rule);
    } else {
      int form = piece.form[0] != piece.form[1] && writer_choose(writer, writer->hero) % 2;
      writer_append(writer, piece.form[form], piece.bytes[form]);
    }
  }
}

int stories_make(uint64_t seed, size_t bytes, stories_t *stories) {
  *stories = (stories_t){0};
  writer_t writer = {.stories = stories, .random = seed, .hero = rule_find("hero", strlen("hero"))};
  while (!writer.failed && stories->bytes < bytes) {
    for (int i = 0; i < RULES; i++) writer.kept[i] = -1;
    writer_expand(&writer, 0);
  }
  if (writer.failed) free(stories->text);
  return writer.failed ? -1 : 0;
}

/* ---- entropy --------------------------------------------------------------------------------- */

/* Adds share times what a rule's place in a story is expected to take. Expectations add up whatever
 * depends on what, so kept rules need no more than that their nats are counted elsewhere. */
static void rule_expect(int rule, double share, double *nats, double *bytes) {
  const stories_rule_t *hero = &rules[rule_find("hero", strlen("hero"))];
  const double odd = hero->count / 2 / (double)hero->count;
  if (!rules[rule].kept) *nats += share * log(rules[rule].count);
  share /= rules[rule].count;
  for (int i = 0; i < rules[rule].count; i++)
    for (const char *text = rules[rule].texts[i]; *text;) {
      piece_t piece;
      text = piece_read(text, &piece);
      if (piece.rule >= 0) rule_expect(piece.rule, share, nats, bytes);
      else *bytes += share * ((1 - odd) * (double)piece.bytes[0] + odd * (double)piece.bytes[1]);
    }
}

double stories_entropy(void) {
  double nats = 0, bytes = 0;
  for (int i = 0; i < RULES; i++)
    if (rules[i].kept) nats += log(rules[i].count);
  rule_expect(0, 1, &nats, &bytes);
  return nats / bytes;
}
