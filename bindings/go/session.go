package moenn

// #include "bridge.h"
import "C"

import (
	"context"
	"io"
	"runtime"
)

// Session is a key-value cache and a sampler over a model.
type Session struct {
	handle
	ptr                   *C.nn_session_t
	batch, vocab, experts int
}

// SampleOptions say how the next token is chosen. Zero: the largest logit.
type SampleOptions struct {
	Temperature       float32 // Divides the logits. 0: greedy.
	TopK              int32   // Keep the k largest. 0: all.
	TopP              float32 // Keep the fewest whose probabilities reach p. 0 or 1: all.
	MinP              float32 // Drop those below MinP times the largest probability. 0: none.
	RepetitionPenalty float32 // Of ids already in the sequence. 0: 1.
	Seed              uint64
}

func (options *SampleOptions) c() *C.nn_sample_options_t {
	if options == nil {
		return nil
	}
	return &C.nn_sample_options_t{
		struct_size: C.sizeof_nn_sample_options_t, temperature: C.float(options.Temperature),
		top_k: C.int32_t(options.TopK), top_p: C.float(options.TopP), min_p: C.float(options.MinP),
		repetition_penalty: C.float(options.RepetitionPenalty), seed: C.uint64_t(options.Seed),
	}
}

// GenerateOptions are the options of [Session.Generate] and [Session.GenerateText].
type GenerateOptions struct {
	Sampling  *SampleOptions // nil: greedy.
	MaxTokens int            // Most tokens to make. 0: as many as fit.
	StopIDs   []int32        // Ids that end the text and are not part of it.
	// OnToken is called for every token made, index counting from 0, or is nil; false stops after it.
	OnToken func(token int32, index int64) bool
}

// StopReason is why generation ended.
type StopReason int32

// Why generation ended.
const (
	StopLength   StopReason = C.NN_STOP_LENGTH   // MaxTokens were made, or the slice is full.
	StopID       StopReason = C.NN_STOP_ID       // A stop id was chosen.
	StopCallback StopReason = C.NN_STOP_CALLBACK // OnToken asked for it.
	StopContext  StopReason = C.NN_STOP_CONTEXT  // The sequence reached MaxLen.
)

// NewSession allocates the cache and workspace of a session.
func (m *Model) NewSession(options *SessionOptions) (*Session, error) {
	var ptr *C.nn_session_t
	err := m.compute(context.Background(), func() C.nn_status_t {
		return C.nn_session_create(m.ptr, options.c(), &ptr)
	})
	if err != nil {
		return nil, err
	}
	destroy := func() { C.nn_session_destroy(ptr) }
	s := &Session{handle: makeHandle(newGate(), m.place, destroy), ptr: ptr,
		batch: 1, vocab: m.vocab, experts: m.experts}
	if options != nil && options.Batch != 0 {
		s.batch = options.Batch
	}
	runtime.SetFinalizer(s, (*Session).forget)
	return s, nil
}

func checkLogits(logits []float32, size int) error {
	if logits != nil && len(logits) != size {
		return argumentError("logits has %d elements and needs %d", len(logits), size)
	}
	return nil
}

// Prefill appends tokens to a sequence and computes them. Logits, [vocab], receives those after the
// last token, or is nil.
func (s *Session) Prefill(ctx context.Context, sequence int, tokens []int32,
	logits []float32) error {
	if err := checkLogits(logits, s.vocab); err != nil {
		return err
	}
	if len(tokens) == 0 {
		return argumentError("Prefill: no tokens")
	}
	return s.compute(ctx, func() C.nn_status_t {
		return C.nn_session_prefill(s.ptr, C.int64_t(sequence), (*C.int32_t)(first(tokens)),
			C.int64_t(len(tokens)), (*C.float)(first(logits)))
	})
}

// Decode appends one token to each sequence; a negative one leaves its sequence alone. Logits,
// [batch, vocab], receives the others' rows, or is nil.
func (s *Session) Decode(ctx context.Context, tokens []int32, logits []float32) error {
	if len(tokens) != s.batch {
		return argumentError("Decode: %d tokens for %d sequences", len(tokens), s.batch)
	}
	if err := checkLogits(logits, s.batch*s.vocab); err != nil {
		return err
	}
	return s.compute(ctx, func() C.nn_status_t {
		return C.nn_session_decode(s.ptr, (*C.int32_t)(first(tokens)), (*C.float)(first(logits)))
	})
}

// Len is the number of tokens in a sequence.
func (s *Session) Len(sequence int) (length int) {
	s.read(func() { length = int(C.nn_session_length(s.ptr, C.int64_t(sequence))) })
	return length
}

// Truncate shortens a sequence to its first length tokens.
func (s *Session) Truncate(sequence, length int) error {
	return s.do(func() C.nn_status_t {
		return C.nn_session_truncate(s.ptr, C.int64_t(sequence), C.int64_t(length))
	})
}

// Sample chooses a token from the logits after a sequence's last token, without appending it.
func (s *Session) Sample(ctx context.Context, sequence int, options *SampleOptions) (int32, error) {
	var token C.int32_t
	err := s.compute(ctx, func() C.nn_status_t {
		return C.nn_session_sample(s.ptr, C.int64_t(sequence), options.c(), &token)
	})
	return int32(token), err
}

// Generate prefills a prompt and generates after it into tokens, as many as fit; with nil, OnToken
// alone hears of them. It returns how many were made, on failure too. Unless a stop id ended the
// text, the last of them is not yet part of the sequence: it is the prompt to go on with.
func (s *Session) Generate(ctx context.Context, sequence int, prompt, tokens []int32,
	options *GenerateOptions) (int, StopReason, error) {
	if options == nil {
		options = &GenerateOptions{}
	}
	if tokens != nil && len(tokens) == 0 {
		return 0, 0, argumentError("Generate: tokens has no room")
	}
	var count C.int64_t
	var reason C.int32_t
	err := s.with(ctx, func() error {
		c := &calling{ctx: ctx, place: s.place, token: options.OnToken}
		return c.run(func(user C.uintptr_t) C.nn_status_t {
			return C.moenn_generate(s.ptr, C.int64_t(sequence), (*C.int32_t)(first(prompt)),
				C.int64_t(len(prompt)), options.Sampling.c(), C.int64_t(options.MaxTokens),
				(*C.int32_t)(first(options.StopIDs)), C.int64_t(len(options.StopIDs)), user,
				(*C.int32_t)(first(tokens)), C.int64_t(len(tokens)), &count, &reason)
		})
	})
	return int(count), StopReason(reason), err
}

// GenerateText generates after a prompt and writes the text as it comes, in whole characters. A
// write that fails ends it with the writer's error.
func (s *Session) GenerateText(ctx context.Context, w io.Writer, tokenizer *Tokenizer, sequence int,
	prompt string, options *GenerateOptions) (StopReason, error) {
	ids, err := tokenizer.Encode(nil, prompt)
	if err != nil {
		return 0, err
	}
	streaming := GenerateOptions{}
	if options != nil {
		streaming = *options
	}
	var text []byte
	var failed error
	stream := tokenizer.NewTextStream(false)
	streaming.OnToken = func(token int32, index int64) bool {
		if text, failed = stream.Push(text[:0], token); failed == nil && len(text) > 0 {
			_, failed = w.Write(text)
		}
		return failed == nil &&
			(options == nil || options.OnToken == nil || options.OnToken(token, index))
	}
	_, reason, err := s.Generate(ctx, sequence, ids, nil, &streaming)
	if failed == nil {
		if text, failed = stream.Finish(text[:0]); failed == nil && len(text) > 0 {
			_, failed = w.Write(text)
		}
	}
	if failed != nil {
		err = failed
	}
	return reason, err
}

// ExpertStats is [Model.ExpertStats] over this session's calls since its creation.
func (s *Session) ExpertStats(layer int, counts []int64, meanProb []float64) (ExpertStats, error) {
	return s.expertStats(layer, s.experts, counts, meanProb,
		func(layer C.int64_t, counts *C.int64_t, meanProb *C.double,
			c *C.nn_expert_stats_t) C.nn_status_t {
			return C.nn_session_expert_stats(s.ptr, layer, counts, meanProb, c)
		})
}
