package moenn

// #include "bridge.h"
// #include <stdlib.h>
import "C"

import (
	"context"
	"runtime/cgo"
	"unsafe"
)

// TokenizerKind is a kind of vocabulary that can be learnt.
type TokenizerKind int32

// Kinds of vocabularies.
const (
	BPE     TokenizerKind = C.NN_TOKENIZER_BPE     // Byte-level BPE: knows every text.
	Unigram TokenizerKind = C.NN_TOKENIZER_UNIGRAM // Unigram; needs a special for unknown characters.
)

// TokenizerTrainOptions are the options of TrainTokenizer.
type TokenizerTrainOptions struct {
	Kind         TokenizerKind
	VocabSize    int      // Ids in all, if the texts have enough to learn. 0: 32,000.
	MinFrequency int      // How often what is learnt must come. 0: 2.
	Specials     []string // Special tokens, which get the first ids.
	Pattern      string   // BPE: regular expression whose matches are words. "": GPT-2's.
	Coverage     float32  // Unigram: share of the text that known characters make up. 0: 0.9995.
	Bos          string   // Which special begins a text. "": "<s>".
	Eos          string   // Which special ends a text. "": "</s>".
	Pad          string   // Which special is padding. "": "<pad>".
	Unk          string   // Which special is what the vocabulary cannot express. "": "<unk>".
	// Progress hears of bytes read, and while learning, or is nil. Its error ends the call: the call's
	// error is then both ErrCancelled and that one.
	Progress func(done, total int64) error
}

// TrainTokenizer learns a vocabulary from texts; words do not go from one to the next.
func TrainTokenizer(ctx context.Context, texts []string,
	options *TokenizerTrainOptions) (*Tokenizer, error) {
	memory := cMemory{}
	defer memory.free()
	// bytes are never nil: without them data would be paths
	data, bytes := memory.pointers(len(texts)), memory.sizes(len(texts)+1)
	for i, text := range texts {
		data[i], bytes[i] = memory.text(text), C.size_t(len(text))
	}
	return train(ctx, &memory, data, first(bytes), options)
}

// TrainTokenizerFiles is TrainTokenizer with files, of which each line with its end is a text.
func TrainTokenizerFiles(ctx context.Context, paths []string,
	options *TokenizerTrainOptions) (*Tokenizer, error) {
	memory := cMemory{}
	defer memory.free()
	names, err := memory.strings(paths)
	if err != nil {
		return nil, err
	}
	return train(ctx, &memory, names, nil, options)
}

func train(ctx context.Context, memory *cMemory, data []*C.char, bytes unsafe.Pointer,
	options *TokenizerTrainOptions) (*Tokenizer, error) {
	if options == nil {
		options = &TokenizerTrainOptions{}
	}
	specials, err := memory.strings(options.Specials)
	if err != nil {
		return nil, err
	}
	given := []string{options.Pattern, options.Bos, options.Eos, options.Pad, options.Unk}
	names, err := memory.strings(given)
	if err != nil {
		return nil, err
	}
	for i, name := range given {
		if name == "" {
			names[i] = nil
		}
	}
	l := &learning{ctx: ctx, progress: options.Progress}
	user := cgo.NewHandle(l)
	defer user.Delete()
	t, err := newTokenizer(func(ptr **C.nn_tokenizer_t) C.nn_status_t {
		var made *C.nn_tokenizer_t
		status := C.moenn_tokenizer_train((**C.char)(first(data)), (*C.size_t)(bytes),
			C.int64_t(len(data)),
			C.int32_t(options.Kind), C.int64_t(options.VocabSize), C.int64_t(options.MinFrequency),
			(**C.char)(first(specials)), C.int64_t(len(specials)), C.float(options.Coverage),
			(**C.char)(first(names)), C.uintptr_t(user), &made)
		*ptr = made
		return status
	})
	if l.panicked != nil {
		panic(l.panicked)
	}
	if l.err != nil {
		return nil, l.err
	}
	return t, explain(ctx, err)
}

// learning is a training under way.
type learning struct {
	ctx      context.Context
	progress func(done, total int64) error
	err      error // why the callback stopped the call
	panicked any
}

//export moennLearning
func moennLearning(done, total C.int64_t, user C.uintptr_t) (stop C.int32_t) {
	l := cgo.Handle(user).Value().(*learning)
	finished := false
	defer func() {
		if !finished { // a panic must not unwind C: it goes on in train
			l.panicked = recover()
			stop = 1
		}
	}()
	err := l.ctx.Err()
	if err == nil && l.progress != nil {
		err = l.progress(int64(done), int64(total))
	}
	if err != nil {
		l.err = cancelled(err)
	}
	finished = true
	return toInt32(err != nil)
}

// cMemory is memory of C's, all freed at once.
type cMemory []unsafe.Pointer

func (m *cMemory) free() {
	for _, block := range *m {
		C.free(block)
	}
}

func (m *cMemory) take(bytes uintptr) unsafe.Pointer {
	block := C.malloc(C.size_t(bytes) + 1)
	*m = append(*m, block)
	return block
}

func (m *cMemory) pointers(count int) []*C.char {
	if count == 0 {
		return nil
	}
	return unsafe.Slice((**C.char)(m.take(uintptr(count)*unsafe.Sizeof((*C.char)(nil)))), count)
}

func (m *cMemory) sizes(count int) []C.size_t {
	return unsafe.Slice((*C.size_t)(m.take(uintptr(count)*unsafe.Sizeof(C.size_t(0)))), count)
}

func (m *cMemory) text(text string) *C.char {
	block := m.take(uintptr(len(text)))
	copied := unsafe.Slice((*byte)(block), len(text)+1)
	copied[copy(copied, text)] = 0
	return (*C.char)(block)
}

// strings are pointers to texts without NUL bytes.
func (m *cMemory) strings(texts []string) ([]*C.char, error) {
	pointers := m.pointers(len(texts))
	for i, text := range texts {
		if _, err := cstring(text); err != nil {
			return nil, err
		}
		pointers[i] = m.text(text)
	}
	return pointers, nil
}
