/* Writing JSON. */
#ifndef NN_TEXT_JSON_PUT_H
#define NN_TEXT_JSON_PUT_H

#include <stdbool.h>

#include "text/index.h"
#include "text/output.h"

void json_put_string(output_t *output, text_t text); /* UTF-8 */
void json_put_integer(output_t *output, int64_t number);
void json_put_double(output_t *output, double number); /* finite; reads back as the same bits */

/* Members of an object behind its first: a comma, the name, and what it says. */
void json_put_name(output_t *output, const char *name);
void json_put_flag(output_t *output, const char *name, bool flag);
void json_put_member(output_t *output, const char *name, text_t text);
void json_put_number(output_t *output, const char *name, int64_t number);
void json_put_text_or_null(output_t *output, const char *name, text_t text); /* null: empty */
void json_put_close(output_t *output);

/* A member of the outermost object, on a line of its own, that is null. */
void json_put_null(output_t *output, const char *name);

#endif
