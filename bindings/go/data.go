package moenn

// #include "bridge.h"
import "C"

import (
	"runtime"
	"sync/atomic"
	"unsafe"
)

// Ids of the byte tokenizer's specials, and its vocabulary.
const (
	ByteBOS   = C.NN_BYTE_BOS   // Beginning of a text.
	ByteEOS   = C.NN_BYTE_EOS   // End of a text.
	BytePad   = C.NN_BYTE_PAD   // Padding.
	ByteVocab = C.NN_BYTE_VOCAB // Ids in all.
)

// Tokenizer turns text into ids and back.
type Tokenizer struct {
	shared
	ptr    *C.nn_tokenizer_t
	closed atomic.Bool
}

// NewByteTokenizer makes the tokenizer whose ids are bytes, and the specials above.
func NewByteTokenizer() (*Tokenizer, error) {
	return newTokenizer(func(ptr **C.nn_tokenizer_t) C.nn_status_t {
		return C.nn_tokenizer_create_bytes(ptr)
	})
}

// LoadTokenizer loads a tokenizer file, or the folder that holds one.
func LoadTokenizer(path string) (*Tokenizer, error) {
	cpath, err := cstring(path)
	if err != nil {
		return nil, err
	}
	return newTokenizer(func(ptr **C.nn_tokenizer_t) C.nn_status_t {
		return C.nn_tokenizer_load(cpath, ptr)
	})
}

// LoadTiktoken loads a tiktoken rank file, whose words are the matches of a pattern.
func LoadTiktoken(path, pattern string) (*Tokenizer, error) {
	cpath, err := cstring(path)
	if err != nil {
		return nil, err
	}
	cpattern, err := cstring(pattern)
	if err != nil {
		return nil, err
	}
	return newTokenizer(func(ptr **C.nn_tokenizer_t) C.nn_status_t {
		return C.nn_tokenizer_load_tiktoken(cpath, cpattern, ptr)
	})
}

// Save writes tokenizer.json; into a folder also tokenizer_config.json.
func (t *Tokenizer) Save(path string) error {
	cpath, err := cstring(path)
	if err != nil {
		return err
	}
	return t.do(func() C.nn_status_t { return C.nn_tokenizer_save(t.ptr, cpath) })
}

// SaveLLMC writes a tokenizer file of llm.c.
func (t *Tokenizer) SaveLLMC(path string) error {
	cpath, err := cstring(path)
	if err != nil {
		return err
	}
	return t.do(func() C.nn_status_t { return C.nn_tokenizer_save_llmc(t.ptr, cpath) })
}

func newTokenizer(make func(ptr **C.nn_tokenizer_t) C.nn_status_t) (*Tokenizer, error) {
	t := &Tokenizer{}
	if err := call(func() C.nn_status_t { return make(&t.ptr) }); err != nil {
		return nil, err
	}
	ptr := t.ptr
	t.users.Store(1)
	t.destroy = func() { C.nn_tokenizer_destroy(ptr) }
	runtime.SetFinalizer(t, (*Tokenizer).Close)
	return t, nil
}

// Close gives the handle back, once calls under way have ended. It always returns nil.
func (t *Tokenizer) Close() error {
	if t.destroy != nil && !t.closed.Swap(true) {
		t.release()
	}
	return nil
}

func (t *Tokenizer) with(f func() error) error {
	if t.closed.Load() || !t.retain() {
		return ErrClosed
	}
	defer t.release()
	return f()
}

// VocabSize is one past the largest id.
func (t *Tokenizer) VocabSize() (size int) {
	_ = t.with(func() error { size = int(C.nn_tokenizer_vocab_size(t.ptr)); return nil })
	return size
}

// SpecialToken is a token that programs ask for.
type SpecialToken int32

// Special tokens.
const (
	BOS SpecialToken = C.NN_TOKEN_BOS // Beginning of a text.
	EOS SpecialToken = C.NN_TOKEN_EOS // End of a text.
	Pad SpecialToken = C.NN_TOKEN_PAD // Padding.
	Unk SpecialToken = C.NN_TOKEN_UNK // What the vocabulary cannot express.
)

// Special is the id of a special token; -1 when there is none.
func (t *Tokenizer) Special(which SpecialToken) int32 {
	id := int32(-1)
	_ = t.with(func() error {
		id = int32(C.nn_tokenizer_special(t.ptr, C.int32_t(which)))
		return nil
	})
	return id
}

// ID is the id of a token as the vocabulary spells it; -1 when there is none.
func (t *Tokenizer) ID(token string) int32 {
	id := int32(-1)
	data := *(**C.char)(unsafe.Pointer(&token))
	_ = t.with(func() error {
		id = int32(C.nn_tokenizer_id(t.ptr, data, C.size_t(len(token))))
		return nil
	})
	runtime.KeepAlive(token)
	return id
}

// Token is how the vocabulary spells a token.
func (t *Tokenizer) Token(id int32) (token string, err error) {
	err = t.with(func() error {
		var text *C.char
		var bytes C.size_t
		err := call(func() C.nn_status_t {
			return C.nn_tokenizer_token(t.ptr, C.int32_t(id), &text, &bytes)
		})
		if err == nil {
			token = C.GoStringN(text, C.int(bytes))
		}
		return err
	})
	return token, err
}

// EncodeOptions are options of EncodeWith.
type EncodeOptions struct {
	AddSpecial   bool // With the ids that the tokenizer puts around a text.
	ParseSpecial bool // Special tokens that the text spells become their ids.
}

// EncodeWith gives the ids of a text and, of each, where its text begins and ends, in bytes.
func (t *Tokenizer) EncodeWith(text string, options EncodeOptions) (
	ids []int32, offsets [][2]int64, err error) {
	c := C.nn_encode_options_t{struct_size: C.sizeof_nn_encode_options_t,
		add_special: toInt32(options.AddSpecial), parse_special: toInt32(options.ParseSpecial)}
	data := *(**C.char)(unsafe.Pointer(&text))
	err = grow(&ids, len(text), func(room []int32) (int, error) {
		var count C.int64_t
		offsets = make([][2]int64, len(room))
		err := t.do(func() C.nn_status_t {
			return C.nn_tokenizer_encode_with(t.ptr, data, C.size_t(len(text)), &c,
				(*C.int32_t)(first(room)),
				(*C.int64_t)(first(offsets)), C.int64_t(len(room)), &count)
		})
		return int(count), err
	})
	runtime.KeepAlive(text)
	if err != nil {
		return nil, nil, err
	}
	return ids, offsets[:len(ids)], nil
}

// Encode appends the ids of a text to ids.
func (t *Tokenizer) Encode(ids []int32, text string) ([]int32, error) {
	data := *(**C.char)(unsafe.Pointer(&text)) // a string begins with the pointer to its bytes
	err := grow(&ids, len(text), func(room []int32) (int, error) {
		var count C.int64_t
		err := t.do(func() C.nn_status_t {
			return C.nn_tokenizer_encode(t.ptr, data, C.size_t(len(text)), (*C.int32_t)(first(room)),
				C.int64_t(len(room)), &count)
		})
		return int(count), err
	})
	runtime.KeepAlive(text)
	return ids, err
}

// Decode appends the text of ids to text; specials have none.
func (t *Tokenizer) Decode(text []byte, ids []int32) ([]byte, error) {
	err := grow(&text, len(ids), func(room []byte) (int, error) {
		var bytes C.size_t
		err := t.do(func() C.nn_status_t {
			return C.nn_tokenizer_decode(t.ptr, (*C.int32_t)(first(ids)), C.int64_t(len(ids)),
				(*C.char)(first(room)), C.size_t(len(room)), &bytes)
		})
		return int(bytes), err
	})
	return text, err
}

// DecodeSpecial is Decode with the spelling of special tokens.
func (t *Tokenizer) DecodeSpecial(text []byte, ids []int32) ([]byte, error) {
	c := C.nn_decode_options_t{struct_size: C.sizeof_nn_decode_options_t, keep_special: 1}
	err := grow(&text, len(ids), func(room []byte) (int, error) {
		var bytes C.size_t
		err := t.do(func() C.nn_status_t {
			return C.nn_tokenizer_decode_with(t.ptr, (*C.int32_t)(first(ids)), C.int64_t(len(ids)), &c,
				(*C.char)(first(room)), C.size_t(len(room)), &bytes)
		})
		return int(bytes), err
	})
	return text, err
}

// TextStream turns ids into text one by one: each piece as soon as its characters are whole.
type TextStream struct {
	tokenizer *Tokenizer
	state     C.nn_decode_stream_t
	window    []int32
}

// NewTextStream begins a text; with keepSpecial special tokens give their spelling.
func (t *Tokenizer) NewTextStream(keepSpecial bool) *TextStream {
	state := C.nn_decode_stream_t{struct_size: C.sizeof_nn_decode_stream_t,
		keep_special: toInt32(keepSpecial)}
	return &TextStream{tokenizer: t, state: state}
}

// Push appends to text what has become certain with one more id.
func (s *TextStream) Push(text []byte, id int32) ([]byte, error) {
	s.window = append(s.window, id)
	text, err := s.next(text, 0)
	// nothing to come depends on the others
	s.window = append(s.window[:0], s.window[s.state.first:]...)
	s.state.first = 0
	return text, err
}

// Finish appends the rest to text; what ends within a character ends with U+FFFD.
func (s *TextStream) Finish(text []byte) ([]byte, error) {
	return s.next(text, 1)
}

func (s *TextStream) next(text []byte, finish C.int32_t) ([]byte, error) {
	state := s.state // C gets no pointer to what holds Go pointers
	err := grow(&text, 64, func(room []byte) (int, error) {
		var bytes C.size_t
		err := s.tokenizer.do(func() C.nn_status_t {
			return C.nn_tokenizer_decode_next(s.tokenizer.ptr, &state, (*C.int32_t)(first(s.window)),
				C.int64_t(len(s.window)), finish, (*C.char)(first(room)), C.size_t(len(room)), &bytes)
		})
		return int(bytes), err
	})
	s.state = state
	return text, err
}

func (t *Tokenizer) do(f func() C.nn_status_t) error {
	return t.with(func() error { return call(f) })
}

// grow appends what f writes: f gets the room behind the slice and returns the elements it needs.
// The first room has a guess of them at least.
func grow[T any](s *[]T, guess int, f func(room []T) (int, error)) error {
	for {
		used := len(*s)
		if cap(*s)-used < guess {
			*s = append(*s, make([]T, guess)...)[:used]
		}
		needed, err := f((*s)[used:cap(*s)])
		if needed <= cap(*s)-used {
			if err == nil {
				*s = (*s)[:used+needed]
			}
			return err
		}
		guess = needed
	}
}

// Dataset is a token stream cut into windows, in an order that can be resumed.
type Dataset struct {
	handle
	ptr      *C.nn_dataset_t
	elements int // of a batch
}

// DatasetOptions are the options of the dataset constructors.
type DatasetOptions struct {
	Batch   int    // Sequences per batch. 0: 1.
	SeqLen  int    // Tokens per sequence. Required.
	Begin   int64  // First token of the stream to use.
	End     int64  // One past the last. 0: the end of the stream.
	Shuffle bool   // Windows in a random order, at a random phase in each epoch.
	Seed    uint64 // Of the shuffle.
}

// DatasetInfo are the sizes of a dataset.
type DatasetInfo struct {
	Tokens  int64 // Tokens between Begin and End.
	Windows int64 // Windows in an epoch.
	Batches int64 // Batches that cover an epoch, rounded up.
	MaxID   int32 // Largest id between Begin and End.
}

func newDataset(options DatasetOptions,
	f func(*C.nn_dataset_options_t, **C.nn_dataset_t) C.nn_status_t) (*Dataset, error) {
	c := C.nn_dataset_options_t{
		struct_size: C.sizeof_nn_dataset_options_t, batch: C.int64_t(options.Batch),
		seq_len: C.int64_t(options.SeqLen), begin: C.int64_t(options.Begin), end: C.int64_t(options.End),
		shuffle: toInt32(options.Shuffle), seed: C.uint64_t(options.Seed),
	}
	var ptr *C.nn_dataset_t
	if err := call(func() C.nn_status_t { return f(&c, &ptr) }); err != nil {
		return nil, err
	}
	batch := options.Batch
	if batch == 0 {
		batch = 1
	}
	destroy := func() { C.nn_dataset_destroy(ptr) }
	d := &Dataset{makeHandle(newGate(), nil, destroy), ptr, batch * options.SeqLen}
	runtime.SetFinalizer(d, (*Dataset).forget)
	return d, nil
}

// OpenText opens a text file, encoded whole by a tokenizer; nil means bytes, and maps the file,
// which must then not be truncated.
func OpenText(path string, tokenizer *Tokenizer, options DatasetOptions) (d *Dataset, err error) {
	cpath, err := cstring(path)
	if err != nil {
		return nil, err
	}
	open := func(ptr *C.nn_tokenizer_t) error {
		d, err = newDataset(options, func(
			c *C.nn_dataset_options_t, data **C.nn_dataset_t) C.nn_status_t {
			return C.nn_dataset_open_text(cpath, ptr, c, data)
		})
		return err
	}
	if tokenizer == nil {
		return d, open(nil)
	}
	err = tokenizer.with(func() error { return open(tokenizer.ptr) })
	return d, err
}

// OpenTokens opens an llm.c token file, which stays mapped and must not be truncated.
func OpenTokens(path string, options DatasetOptions) (*Dataset, error) {
	cpath, err := cstring(path)
	if err != nil {
		return nil, err
	}
	return newDataset(options, func(c *C.nn_dataset_options_t, data **C.nn_dataset_t) C.nn_status_t {
		return C.nn_dataset_open_tokens(cpath, c, data)
	})
}

// SaveTokens writes ids below 65,536 to an llm.c token file, which OpenTokens reads.
func SaveTokens(path string, ids []int32) error {
	cpath, err := cstring(path)
	if err != nil {
		return err
	}
	return call(func() C.nn_status_t {
		return C.nn_dataset_save_tokens(cpath, (*C.int32_t)(first(ids)), C.int64_t(len(ids)))
	})
}

// NewDataset makes a dataset of a copy of ids.
func NewDataset(ids []int32, options DatasetOptions) (*Dataset, error) {
	return newDataset(options, func(c *C.nn_dataset_options_t, data **C.nn_dataset_t) C.nn_status_t {
		return C.nn_dataset_from_tokens((*C.int32_t)(first(ids)), C.int64_t(len(ids)), c, data)
	})
}

// Info describes the dataset.
func (d *Dataset) Info() (DatasetInfo, error) {
	c := C.nn_dataset_info_t{struct_size: C.sizeof_nn_dataset_info_t}
	err := d.do(func() C.nn_status_t { return C.nn_dataset_info(d.ptr, &c) })
	return DatasetInfo{int64(c.tokens), int64(c.windows), int64(c.batches), int32(c.max_id)}, err
}

// Next fills tokens, [batch, seqLen], with the next batch, and targets with the id after each, or
// -1 where there is none. Epoch follows epoch.
func (d *Dataset) Next(tokens, targets []int32) error {
	if len(tokens) != d.elements || len(targets) != d.elements {
		return argumentError("Next: tokens has %d elements and targets %d; a batch has %d",
			len(tokens), len(targets), d.elements)
	}
	return d.do(func() C.nn_status_t {
		return C.nn_dataset_next(d.ptr, (*C.int32_t)(first(tokens)), (*C.int32_t)(first(targets)))
	})
}

// Position is the number of batches taken so far.
func (d *Dataset) Position() (position int64) {
	d.read(func() { position = int64(C.nn_dataset_position(d.ptr)) })
	return position
}

// SetPosition goes to a position that Position gave, or any other.
func (d *Dataset) SetPosition(position int64) error {
	return d.do(func() C.nn_status_t { return C.nn_dataset_seek(d.ptr, C.int64_t(position)) })
}
