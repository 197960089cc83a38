package moenn

import (
	"bytes"
	"io"
	"testing"
)

func TestSession(t *testing.T) {
	d := testDevice(t)
	m := testModel(t, d, 1)
	s := must[*Session](t)(m.NewSession(&SessionOptions{Batch: 2, MaxLen: 32}))
	_, err := s.Sample(bg, 0, nil)
	fails(t, err, ErrState)
	logits := make([]float32, 2*ByteVocab)
	ok(t, s.Prefill(bg, 0, ids("abc"), logits[:ByteVocab]))
	ok(t, s.Decode(bg, []int32{'d', -1}, logits))
	equal(t, []int{s.Len(0), s.Len(1), s.Len(9)}, []int{4, 0, 0})
	best := 0
	for i, value := range logits[:ByteVocab] {
		if value > logits[best] {
			best = i
		}
	}
	equal(t, must[int32](t)(s.Sample(bg, 0, nil)), int32(best))
	ok(t, s.Truncate(0, 1))
	equal(t, s.Len(0), 1)
	fails(t, s.Truncate(0, 5), ErrArgument)
	fails(t, s.Decode(bg, []int32{1}, nil), ErrArgument)
	fails(t, s.Prefill(bg, 0, nil, nil), ErrArgument)
	fails(t, s.Prefill(bg, 0, ids("a"), logits), ErrArgument)
	fails(t, s.Prefill(bg, 0, make([]int32, 33), nil), ErrCapacity)
	stats := must[ExpertStats](t)(s.ExpertStats(0, make([]int64, 4), nil))
	equal(t, stats.Tokens, 4)

	ok(t, m.Close())
	ok(t, d.Close())
	ok(t, s.Decode(bg, []int32{'a', -1}, nil)) // a session keeps what it needs
	ok(t, s.Close())
	ok(t, s.Close())
	fails(t, s.Prefill(bg, 0, ids("a"), nil), ErrClosed)
	equal(t, s.Len(0), 0)
	_, _, err = s.Generate(bg, 0, ids("a"), nil, nil)
	fails(t, err, ErrClosed)
}

// Into a slice, to a callback, to a writer.
func TestGenerate(t *testing.T) {
	s := must[*Session](t)(testModel(t, testDevice(t), 1).NewSession(
		&SessionOptions{Batch: 2, MaxLen: 32}))
	defer s.Close()
	sampling := &SampleOptions{Temperature: 1, TopK: 50, TopP: 0.9, MinP: 0.01, RepetitionPenalty: 1.1,
		Seed: 3}
	made := make([]int32, 5)
	n, reason, err := s.Generate(bg, 1, ids("ab"), made, &GenerateOptions{Sampling: sampling})
	ok(t, err)
	equal(t, n, 5)
	equal(t, reason, StopLength)
	var heard []int32
	ok(t, s.Truncate(1, 0))
	n, reason, err = s.Generate(bg, 1, ids("ab"), nil, &GenerateOptions{Sampling: sampling,
		OnToken: func(token int32, index int64) bool {
			heard = append(heard, token)
			return index < 2
		}})
	ok(t, err)
	equal(t, reason, StopCallback)
	equal(t, heard, made[:n])
	equal(t, n, 3)
	ok(t, s.Truncate(1, 0))
	_, reason, err = s.Generate(bg, 1, ids("ab"), nil,
		&GenerateOptions{Sampling: sampling, StopIDs: made[1:2]})
	ok(t, err)
	equal(t, reason, StopID)
	ok(t, s.Truncate(1, 0))
	_, reason, err = s.Generate(bg, 1, ids("ab"), nil, nil)
	ok(t, err)
	equal(t, reason, StopContext)

	bytesTokenizer := must[*Tokenizer](t)(NewByteTokenizer())
	ok(t, s.Truncate(1, 0))
	var text bytes.Buffer
	reason = must[StopReason](t)(s.GenerateText(bg, &text, bytesTokenizer, 1, "ab",
		&GenerateOptions{Sampling: sampling, MaxTokens: 5}))
	equal(t, reason, StopLength)
	equal(t, text.Bytes(), streamed(t, bytesTokenizer, made))
	ok(t, s.Truncate(1, 0))
	_, err = s.GenerateText(bg, failingWriter{}, bytesTokenizer, 1, "ab", nil)
	fails(t, err, io.ErrShortWrite)
	_, _, err = s.Generate(bg, 7, ids("a"), nil, nil)
	fails(t, err, ErrArgument)
	_, _, err = s.Generate(bg, 0, ids("a"), []int32{}, nil)
	fails(t, err, ErrArgument)
}

func TestGenerateCallback(t *testing.T) {
	m := testModel(t, testDevice(t), 1)
	s := must[*Session](t)(m.NewSession(&SessionOptions{MaxLen: 32}))
	defer s.Close()
	// A panic in a callback is the caller's, and the session goes on.
	func() {
		defer func() { equal(t, recover(), any("oops")) }()
		s.Generate(bg, 0, ids("ab"), nil, &GenerateOptions{OnToken: func(int32, int64) bool {
			panic("oops")
		}})
	}()
	ok(t, s.Truncate(0, 0))
	// A callback may use other handles of the device.
	_, _, err := s.Generate(bg, 0, ids("ab"), nil, &GenerateOptions{OnToken: func(int32, int64) bool {
		return m.Prepare(&TrainOptions{SeqLen: 8}) == nil && m.ZeroGrad() == nil && false
	}})
	ok(t, err)
}

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, io.ErrShortWrite }
