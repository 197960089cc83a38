/* Names out of files as they may stand in a message: long ones are cut, so that the reason is not.
 */
#ifndef NN_FORMAT_NAME_SHOW_H
#define NN_FORMAT_NAME_SHOW_H

#include <stdio.h>
#include <string.h>

typedef struct name_shown {
  char text[100];
} name_shown_t;

/* At most 96 bytes, the last three of them dots where more was there. */
static inline name_shown_t name_show(const char *name) {
  enum { MOST = 96, DOTS = 3 };
  name_shown_t shown;
  size_t kept = strlen(name);
  if (kept > MOST) {
    kept = MOST - DOTS;
    while (((unsigned char)name[kept] & 0xc0) == 0x80) kept--; /* no part of a character */
    snprintf(shown.text, sizeof shown.text, "%.*s...", (int)kept, name);
  } else {
    snprintf(shown.text, sizeof shown.text, "%s", name);
  }
  return shown;
}

#endif
