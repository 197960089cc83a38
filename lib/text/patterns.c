#include "text/patterns.h"

#include "text/scan.h"

/* Those that scan.h has no function for. CUT_GPT2 is in PRE_BYTE_LEVEL. */
static const char *const deepseek_llm[] = {
    "[\\r\\n]",
    ("\\s?[\\x{41}-\\x{5A}\\x{61}-\\x{7A}\\x{B5}\\x{C0}-\\x{D6}\\x{D8}-\\x{F6}\\x{F8}-\\x{"
    "1BA}\\x{1BC}-\\x{1BF}\\x{1C4}-\\x{293}\\x{295}-\\x{2AF}\\x{370}-\\x{373}\\x{376}\\x{"
    "377}\\x{37B}-\\x{37D}\\x{37F}\\x{386}\\x{388}-\\x{38A}\\x{38C}\\x{38E}-\\x{3A1}\\x{3"
    "A3}-\\x{3F5}\\x{3F7}-\\x{481}\\x{48A}-\\x{52F}\\x{531}-\\x{556}\\x{10A0}-\\x{10C5}"
    "\\x{13A0}-\\x{13F5}\\x{13F8}-\\x{13FD}\\x{1C90}-\\x{1CBA}\\x{1CBD}-\\x{1CBF}\\x{1D00"
    "}-\\x{1D2B}\\x{1D6B}-\\x{1D77}\\x{1D79}-\\x{1D9A}\\x{1E00}-\\x{1F15}\\x{1F18}-\\x{1F"
    "1D}\\x{1F20}-\\x{1F45}\\x{1F48}-\\x{1F4D}\\x{1F50}-\\x{1F57}\\x{1F59}\\x{1F5B}\\x{1F"
    "5D}\\x{1F5F}-\\x{1F7D}\\x{1F80}-\\x{1FB4}\\x{1FB6}-\\x{1FBC}\\x{1FBE}\\x{1FC2}-\\x{1"
    "FC4}\\x{1FC6}-\\x{1FCC}\\x{1FD0}-\\x{1FD3}\\x{1FD6}-\\x{1FDB}\\x{1FE0}-\\x{1FEC}\\x{"
    "1FF2}-\\x{1FF4}\\x{1FF6}-\\x{1FFC}\\x{2102}\\x{2107}\\x{210A}-\\x{2113}\\x{2115}\\x{"
    "2119}-\\x{211D}\\x{2124}\\x{2126}\\x{2128}\\x{212A}-\\x{212D}\\x{212F}-\\x{2134}\\x{"
    "2139}\\x{213C}-\\x{213F}\\x{2145}-\\x{2149}\\x{214E}\\x{2183}\\x{2184}\\x{2C00}-\\x{"
    "2C7B}\\x{2C7E}-\\x{2CE4}\\x{2CEB}-\\x{2CEE}\\x{2CF2}\\x{2CF3}\\x{A640}-\\x{A66D}\\x{"
    "A680}-\\x{A69B}\\x{A722}-\\x{A76F}\\x{A771}-\\x{A787}\\x{A78B}-\\x{A78E}\\x{AB70}-"
    "\\x{ABBF}\\x{FB00}-\\x{FB06}\\x{FB13}-\\x{FB17}\\x{FF21}-\\x{FF3A}\\x{FF41}-\\x{FF5A"
    "}\\x{10400}-\\x{1044F}\\x{104B0}-\\x{104D3}\\x{104D8}-\\x{104FB}\\x{10C80}-\\x{10CB2"
    "}\\x{10CC0}-\\x{10CF2}\\x{118A0}-\\x{118DF}\\x{1E900}-\\x{1E943}]+"),
    ("\\s?[\\x{21}-\\x{2F}\\x{3A}-\\x{7E}\\x{FF01}-\\x{FF0F}\\x{FF1A}-\\x{FF5E}\\x{2018}-"
    "\\x{201F}\\x{3000}-\\x{3002}]+"),
    "\\s+$",
    "[\\x{4E00}-\\x{9FA5}\\x{800}-\\x{4E00}\\x{AC00}-\\x{D7FF}]+"};
static const char *const default_cut[] = {
    "[\\p{P}\\$\\+<=>\\^~\\|]+",
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)", "\\p{N}+",
    "[0-9][0-9][0-9]"};

/* ---- steps ----------------------------------------------------------------------------------- */

static nn_status_t add_split(pipeline_t *pipeline, const char *regex) {
  return pipeline_add_pre(
      pipeline, &(pre_step_t){.kind = PRE_SPLIT,
                              .pattern = {.text = {regex, strlen(regex)}, .regex = true},
                              .behavior = SPLIT_ISOLATED});
}

static nn_status_t add_splits(pipeline_t *pipeline, const char *const *regexes, size_t count) {
  for (size_t i = 0; i < count; i++) STATUS_TRY(add_split(pipeline, regexes[i]));
  return NN_OK;
}

static nn_status_t add_digits(pipeline_t *pipeline) {
  return pipeline_add_pre(
      pipeline,
      &(pre_step_t){.kind = PRE_DIGITS, .behavior = SPLIT_ISOLATED, .single = true});
}

static nn_status_t add_bytes(pipeline_t *pipeline, bool gpt2) {
  STATUS_TRY(pipeline_add_pre(pipeline, &(pre_step_t){.kind = PRE_BYTE_LEVEL, .split = gpt2}));
  return pipeline_add_decoder(pipeline, &(decoder_step_t){.kind = DECODE_BYTE_LEVEL});
}

#define ADD_SPLITS(pipeline, list) add_splits(pipeline, list, sizeof(list) / sizeof *(list))

nn_status_t patterns_add(pipeline_t *pipeline, word_cut_t cut) {
  switch (cut) {
    case CUT_GPT2: return add_bytes(pipeline, true);
    case CUT_LLAMA3: STATUS_TRY(add_split(pipeline, scan_pattern(SCAN_LLAMA3))); break;
    case CUT_QWEN2: STATUS_TRY(add_split(pipeline, scan_pattern(SCAN_QWEN2))); break;
    case CUT_O200K: STATUS_TRY(add_split(pipeline, scan_pattern(SCAN_O200K))); break;
    case CUT_TEKKEN: STATUS_TRY(add_split(pipeline, scan_pattern(SCAN_TEKKEN))); break;
    case CUT_DEEPSEEK_V3:
      STATUS_TRY(add_split(pipeline, scan_pattern(SCAN_NUMBERS)));
      STATUS_TRY(add_split(pipeline, scan_pattern(SCAN_CJK)));
      STATUS_TRY(add_split(pipeline, scan_pattern(SCAN_DEEPSEEK_V3)));
      break;
    case CUT_DEEPSEEK_LLM:
      STATUS_TRY(ADD_SPLITS(pipeline, deepseek_llm));
      STATUS_TRY(add_digits(pipeline));
      break;
    case CUT_DEFAULT: STATUS_TRY(ADD_SPLITS(pipeline, default_cut)); break;
    case CUT_DIGITS_GPT2: STATUS_TRY(add_digits(pipeline)); return add_bytes(pipeline, true);
  }
  return add_bytes(pipeline, false);
}

nn_status_t patterns_add_regex(pipeline_t *pipeline, text_t regex) {
  STATUS_TRY(pipeline_add_pre(pipeline, &(pre_step_t){.kind = PRE_SPLIT,
                                                      .pattern = {.text = regex, .regex = true},
                                                      .behavior = SPLIT_ISOLATED}));
  return add_bytes(pipeline, false);
}
