#include "text/json_put.h"

#include <stdio.h>
#include <stdlib.h>

/* Only what JSON demands is escaped. */
void json_put_string(output_t *output, text_t text) {
  size_t done = 0;
  output_text(output, "\"");
  for (size_t i = 0; i < text.bytes; i++) {
    const unsigned char c = (unsigned char)text.data[i];
    char escaped[8] = {'\\', (char)c};
    if (c >= 0x20 && c != '"' && c != '\\') continue;
    output_add(output, text.data + done, i - done);
    if (c < 0x20) snprintf(escaped, sizeof escaped, "\\u%04x", c);
    output_text(output, escaped);
    done = i + 1;
  }
  output_add(output, text.data + done, text.bytes - done);
  output_text(output, "\"");
}

void json_put_integer(output_t *output, int64_t number) {
  char digits[24];
  snprintf(digits, sizeof digits, "%lld", (long long)number);
  output_text(output, digits);
}

void json_put_double(output_t *output, double number) {
  char digits[40];
  snprintf(digits, sizeof digits, "%.15g", number); /* where so few digits say it */
  if (strtod(digits, NULL) != number) snprintf(digits, sizeof digits, "%.17g", number);
  for (char *c = digits; *c; c++) /* of locales that write a comma */
    if (*c == ',') *c = '.';
  output_text(output, digits);
  if (!strpbrk(digits, ".e")) output_text(output, ".0");
}

/* Members of an object: `"name": value`, each after a comma. */
void json_put_name(output_t *output, const char *name) {
  output_text(output, ", ");
  json_put_string(output, (text_t){name, strlen(name)});
  output_text(output, ": ");
}

void json_put_flag(output_t *output, const char *name, bool flag) {
  json_put_name(output, name);
  output_text(output, flag ? "true" : "false");
}

void json_put_member(output_t *output, const char *name, text_t text) {
  json_put_name(output, name);
  json_put_string(output, text);
}

void json_put_number(output_t *output, const char *name, int64_t number) {
  json_put_name(output, name);
  json_put_integer(output, number);
}

void json_put_text_or_null(output_t *output, const char *name, text_t text) {
  json_put_name(output, name);
  if (text.bytes) json_put_string(output, text);
  else output_text(output, "null");
}

void json_put_close(output_t *output) { output_text(output, "}"); }

void json_put_null(output_t *output, const char *member) {
  output_text(output, ",\n  \"");
  output_text(output, member);
  output_text(output, "\": null");
}
