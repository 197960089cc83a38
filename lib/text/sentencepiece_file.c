#include "text/sentencepiece_file.h"

#include <math.h>
#include <string.h>

#include "base/mem.h"

/* ---- the wire format of protobuf ------------------------------------------------------------- */

enum { WIRE_VARINT = 0, WIRE_64 = 1, WIRE_BYTES = 2, WIRE_32 = 5 };

typedef struct field {
  uint64_t number;
  uint32_t wire;
  uint64_t value; /* of a varint; the bits of the fixed widths */
  text_t bytes;
} field_t;

typedef struct message {
  const unsigned char *at, *end;
} message_t;

static message_t message_of(text_t bytes) {
  const unsigned char *at = (const unsigned char *)bytes.data;
  return (message_t){at, at + bytes.bytes};
}

static bool message_varint(message_t *message, uint64_t *value) {
  *value = 0;
  for (int shift = 0; shift < 64 && message->at < message->end; shift += 7) {
    unsigned char byte = *message->at++;
    *value |= (uint64_t)(byte & 127) << shift;
    if (byte < 128) return true;
  }
  return false;
}

static bool message_fixed(message_t *message, size_t width, uint64_t *value) {
  if ((size_t)(message->end - message->at) < width) return false;
  *value = 0;
  memcpy(value, message->at, width); /* little-endian, as this library's hosts are */
  message->at += width;
  return true;
}

static bool message_bytes(message_t *message, text_t *bytes) {
  uint64_t length;
  if (!message_varint(message, &length) || length > (uint64_t)(message->end - message->at))
    return false;
  *bytes = (text_t){(const char *)message->at, (size_t)length};
  message->at += length;
  return true;
}

/* The next field; *more is false at the message's end. */
static nn_status_t message_next(message_t *message, field_t *field, bool *more) {
  *more = message->at < message->end;
  if (!*more) return NN_OK;
  uint64_t key;
  bool whole = message_varint(message, &key);
  if (whole) {
    *field = (field_t){.number = key >> 3, .wire = key & 7};
    switch (field->wire) {
      case WIRE_VARINT: whole = message_varint(message, &field->value); break;
      case WIRE_64: whole = message_fixed(message, 8, &field->value); break;
      case WIRE_BYTES: whole = message_bytes(message, &field->bytes); break;
      case WIRE_32: whole = message_fixed(message, 4, &field->value); break;
      default:
        return status_fail(NN_ERR_FORMAT,
                           "field %llu has the wire type %u; a SentencePiece model has 0, 1, 2, 5",
                           (unsigned long long)field->number, field->wire);
    }
  }
  if (!whole || !field->number)
    return status_fail(NN_ERR_FORMAT, "a protobuf message of the file is cut short or broken");
  return NN_OK;
}

/* A member by its field number; what has another wire type than its number calls for is refused. */
typedef enum member_kind { MEMBER_BOOL, MEMBER_I32, MEMBER_BYTES } member_kind_t;

typedef struct member {
  uint64_t number;
  member_kind_t kind;
  size_t offset; /* in sp_file_t */
} member_t;

static nn_status_t message_members(text_t bytes, const member_t *members, size_t count,
                                   sp_file_t *file) {
  message_t message = message_of(bytes);
  field_t field;
  for (bool more;;) {
    STATUS_TRY(message_next(&message, &field, &more));
    if (!more) return NN_OK;
    for (size_t i = 0; i < count; i++) {
      if (members[i].number != field.number) continue;
      uint32_t wire = members[i].kind == MEMBER_BYTES ? WIRE_BYTES : WIRE_VARINT;
      if (field.wire != wire)
        return status_fail(NN_ERR_FORMAT, "field %llu of a specification has the wire type %u",
                           (unsigned long long)field.number, field.wire);
      void *target = (char *)file + members[i].offset;
      switch (members[i].kind) {
        case MEMBER_BOOL: *(bool *)target = field.value != 0; break;
        case MEMBER_I32: *(int32_t *)target = (int32_t)field.value; break;
        case MEMBER_BYTES: *(text_t *)target = field.bytes; break;
      }
    }
  }
}

/* ---- the messages ---------------------------------------------------------------------------- */

enum { MODEL_PIECES = 1, MODEL_TRAINER = 2, MODEL_NORMALIZER = 3 };
enum { PIECE_TEXT = 1, PIECE_SCORE = 2, PIECE_TYPE = 3 };

static const member_t trainer[] = {
    {3, MEMBER_I32, offsetof(sp_file_t, model_type)},
    {24, MEMBER_BOOL, offsetof(sp_file_t, whitespace_as_suffix)},
    {35, MEMBER_BOOL, offsetof(sp_file_t, byte_fallback)},
    {44, MEMBER_BYTES, offsetof(sp_file_t, unk_surface)},
    {46, MEMBER_BYTES, offsetof(sp_file_t, bos_piece)},
    {47, MEMBER_BYTES, offsetof(sp_file_t, eos_piece)},
    {48, MEMBER_BYTES, offsetof(sp_file_t, pad_piece)},
};

static const member_t normalizer[] = {
    {2, MEMBER_BYTES, offsetof(sp_file_t, charsmap)},
    {3, MEMBER_BOOL, offsetof(sp_file_t, add_dummy_prefix)},
    {4, MEMBER_BOOL, offsetof(sp_file_t, remove_extra_whitespaces)},
    {5, MEMBER_BOOL, offsetof(sp_file_t, escape_whitespaces)},
};

static nn_status_t piece_parse(text_t bytes, sp_piece_t *piece) {
  message_t message = message_of(bytes);
  field_t field;
  *piece = (sp_piece_t){.type = SP_NORMAL};
  for (bool more;;) {
    STATUS_TRY(message_next(&message, &field, &more));
    if (!more) break;
    if (field.number == PIECE_TEXT && field.wire == WIRE_BYTES) piece->text = field.bytes;
    if (field.number == PIECE_SCORE && field.wire == WIRE_32)
      memcpy(&piece->score, &field.value, sizeof piece->score);
    if (field.number == PIECE_TYPE && field.wire == WIRE_VARINT)
      piece->type = field.value > SP_BYTE ? 0 : (int32_t)field.value;
  }
  if (!piece->text.bytes) return status_fail(NN_ERR_FORMAT, "it has no text");
  if (!isfinite(piece->score)) return status_fail(NN_ERR_FORMAT, "its score is not finite");
  if (piece->type < SP_NORMAL)
    return status_fail(NN_ERR_UNSUPPORTED, "its type is none of 1 to %d", SP_BYTE);
  return NN_OK;
}

/* One pass over the file: counts the pieces, or fills in those of file->pieces. */
static nn_status_t model_walk(text_t bytes, sp_file_t *file) {
  message_t message = message_of(bytes);
  field_t field;
  file->count = 0;
  for (bool more;;) {
    STATUS_TRY(message_next(&message, &field, &more));
    if (!more) return NN_OK;
    if (field.wire != WIRE_BYTES) continue;
    if (field.number == MODEL_PIECES) {
      sp_piece_t piece;
      nn_status_t status = piece_parse(field.bytes, &piece);
      if (status != NN_OK) return status_prefix(status, "piece %lld", (long long)file->count);
      if (file->pieces) file->pieces[file->count] = piece;
      file->count++;
    } else if (field.number == MODEL_TRAINER) {
      STATUS_TRY(message_members(field.bytes, trainer, sizeof trainer / sizeof *trainer, file));
    } else if (field.number == MODEL_NORMALIZER) {
      STATUS_TRY(message_members(field.bytes, normalizer, sizeof normalizer / sizeof *normalizer,
                                 file));
    }
  }
}

nn_status_t sp_file_parse(const void *data, size_t bytes, sp_file_t *file) {
  sp_file_t parsed = {.model_type = SP_MODEL_UNIGRAM,
                      .add_dummy_prefix = true,
                      .remove_extra_whitespaces = true,
                      .escape_whitespaces = true,
                      .bos_piece = TEXT("<s>"),
                      .eos_piece = TEXT("</s>"),
                      .pad_piece = TEXT("<pad>"),
                      .unk_surface = TEXT(" \xe2\x81\x87 ")};
  void *pieces;
  STATUS_TRY(model_walk((text_t){data, bytes}, &parsed));
  if (!parsed.count || parsed.count > INT32_MAX)
    return status_fail(NN_ERR_FORMAT, "%lld pieces: no SentencePiece model",
                       (long long)parsed.count);
  STATUS_TRY(mem_alloc((size_t)parsed.count, sizeof *parsed.pieces, &pieces));
  parsed.pieces = pieces;
  (void)model_walk((text_t){data, bytes}, &parsed); /* went well the first time */
  *file = parsed;
  return NN_OK;
}

void sp_file_free(sp_file_t *file) {
  mem_free(file->pieces);
  *file = (sp_file_t){0};
}
