package moenn

// Cancelling, calls from many goroutines, orders of closing, and what repeated use leaves behind.

import (
	"context"
	"errors"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestCancelFlag(t *testing.T) {
	d := testDevice(t)
	m := testModel(t, d, 1)
	ok(t, m.Prepare(&TrainOptions{Batch: 2, SeqLen: 16}))
	ok(t, d.Cancel(true))
	_, err := m.Evaluate(bg, tokens, targets, 2)
	fails(t, err, ErrCancelled)
	ctx, cancel := context.WithCancel(bg)
	_, err = m.Evaluate(ctx, tokens, targets, 2)
	fails(t, err, ErrCancelled)
	if errors.Is(err, context.Canceled) {
		t.Error("the context did not end")
	}
	cancel()
	_, err = m.Evaluate(ctx, tokens, targets, 2)
	fails(t, err, context.Canceled)
	ok(t, d.Cancel(false))
	must[Loss](t)(m.Evaluate(bg, tokens, targets, 2))
}

// The end of a context ends its own call, soon, and nobody else's.
func TestContext(t *testing.T) {
	d := testDevice(t)
	config := must[Config](t)(Preset("small"))
	m := must[*Model](t)(d.NewModel(config, F32, 1))
	defer m.Close()
	other := must[*Session](t)(testModel(t, d, 1).NewSession(nil))
	defer other.Close()
	ok(t, m.Prepare(&TrainOptions{Batch: 32}))
	long := make([]int32, 32*config.Context)

	done := make(chan struct{})
	var bystander sync.WaitGroup
	bystander.Add(1)
	go func() {
		defer bystander.Done()
		for {
			select {
			case <-done:
				return
			default:
			}
			if _, _, err := other.Generate(bg, 0, ids("a"), nil, nil); err != nil {
				t.Errorf("bystander: %v", err)
				return
			}
			if err := other.Truncate(0, 0); err != nil {
				t.Error(err)
			}
		}
	}()
	for i := 0; i < 5; i++ {
		ctx, cancel := context.WithTimeout(bg, 30*time.Millisecond)
		start := time.Now()
		_, err := m.Backward(ctx, long, long, 32, 1)
		fails(t, err, ErrCancelled)
		fails(t, err, context.DeadlineExceeded)
		if spent := time.Since(start); spent > 5*time.Second {
			t.Errorf("backward went on for %v", spent)
		}
		cancel()
		fails(t, func() error { _, err := m.Backward(bg, tokens, targets, 2, 1); return err }(), ErrState)
		ok(t, m.ZeroGrad())
	}
	close(done)
	bystander.Wait()
}

// A callback's cancel, a context that is over, and one that ends while its call waits for a handle.
func TestContextOfASession(t *testing.T) {
	s := must[*Session](t)(testModel(t, testDevice(t), 1).NewSession(nil))
	defer s.Close()
	ctx, cancel := context.WithCancel(bg)
	cancelAtThird := func(_ int32, index int64) bool {
		if index == 2 {
			cancel()
		}
		return true
	}
	n, _, err := s.Generate(ctx, 0, ids("a"), nil, &GenerateOptions{OnToken: cancelAtThird})
	fails(t, err, context.Canceled)
	equal(t, n, 3)
	fails(t, s.Prefill(ctx, 0, ids("a"), nil), context.Canceled)
	ok(t, s.Prefill(bg, 0, ids("a"), nil))

	// A goroutine that waits for a handle leaves when its context ends.
	waiting, leave := context.WithTimeout(bg, 10*time.Millisecond)
	defer leave()
	ok(t, s.Truncate(0, 0))
	_, _, err = s.Generate(bg, 0, ids("a"), nil, &GenerateOptions{OnToken: func(int32, int64) bool {
		fails(t, s.Prefill(waiting, 0, ids("a"), nil), context.DeadlineExceeded)
		return false
	}})
	ok(t, err)
}

// All handles from many goroutines at once; the race detector and the library's own checks listen.
func TestGoroutines(t *testing.T) {
	d := testDevice(t)
	m := testModel(t, d, 1)
	ok(t, m.Prepare(&TrainOptions{Batch: 2, SeqLen: 16}))
	o := must[*Optimizer](t)(m.NewOptimizer(nil))
	shared := must[*Session](t)(m.NewSession(nil))
	bytesTokenizer := must[*Tokenizer](t)(NewByteTokenizer())
	data := must[*Dataset](t)(NewDataset(tokens, DatasetOptions{SeqLen: 4}))
	var all sync.WaitGroup
	for g := 0; g < 8; g++ {
		all.Add(1)
		go func() {
			defer all.Done()
			own, err := m.NewSession(nil)
			if err != nil {
				t.Error(err)
				return
			}
			defer own.Close()
			a, b := make([]int32, 4), make([]int32, 4)
			for i := 0; i < 20; i++ {
				_, err1 := m.Backward(bg, tokens, targets, 2, 1)
				_, err2 := o.Step(bg, 1e-4)
				_, err3 := own.GenerateText(bg, io.Discard, bytesTokenizer, 0, "a",
					&GenerateOptions{MaxTokens: 2})
				err4 := own.Truncate(0, 0)
				err5 := data.Next(a, b)
				_, err6 := d.Memory()
				// each goroutine's messages are its own
				_, err7 := Preset("nobody")
				if err7 == nil || !strings.Contains(err7.Error(), "nobody") {
					t.Errorf("%v", err7)
				}
				for _, err := range []error{err1, err2, err3, err4, err5, err6} {
					if err != nil {
						t.Error(err)
					}
				}
				err := shared.Prefill(bg, 0, ids("a"), nil)
				if err != nil && !errors.Is(err, ErrCapacity) && !errors.Is(err, ErrClosed) {
					t.Error(err)
				}
				if i == 15 {
					shared.Close() // under the others
				}
			}
		}()
	}
	all.Wait()
	equal(t, o.Steps(), 160)
	equal(t, data.Position(), 160)
}

func TestAnyOrder(t *testing.T) {
	d := must[*Device](t)(OpenDevice("cpu", nil))
	m := must[*Model](t)(d.NewModel(testConfig, F32, 1))
	s := must[*Session](t)(m.NewSession(nil))
	p := must[*Tensor](t)(m.Parameter(m.ParameterName(0)))
	ok(t, d.Close())
	ok(t, m.Close())
	ok(t, s.Prefill(bg, 0, ids("ab"), nil))
	must[TensorInfo](t)(p.Info())
	ok(t, p.Close())
	ok(t, s.Close())
}

func resident(t testing.TB) int {
	fields := strings.Fields(string(must[[]byte](t)(os.ReadFile("/proc/self/statm"))))
	return must[int](t)(strconv.Atoi(fields[1])) * os.Getpagesize()
}

// Handles that come and go, closed or forgotten, leave nothing behind.
func TestLeaks(t *testing.T) {
	d := testDevice(t)
	log := func(LogLevel, string) {}
	round := func(closing bool) {
		place := must[*Device](t)(OpenDevice("cpu", &DeviceOptions{Threads: 2, Log: log}))
		m := must[*Model](t)(d.NewModel(testConfig, F32, 1))
		ok(t, m.Prepare(&TrainOptions{Batch: 2, SeqLen: 16}))
		o := must[*Optimizer](t)(m.NewOptimizer(nil))
		s := must[*Session](t)(m.NewSession(nil))
		p := must[*Tensor](t)(m.Parameter(m.ParameterName(0)))
		b := must[*Tokenizer](t)(NewByteTokenizer())
		data := must[*Dataset](t)(NewDataset(tokens, DatasetOptions{SeqLen: 4}))
		_, _, err := s.Generate(bg, 0, ids("a"), nil, &GenerateOptions{MaxTokens: 2})
		ok(t, err)
		_, err = Preset("nobody")
		fails(t, err, ErrNotFound)
		if closing {
			for _, c := range []io.Closer{place, m, o, s, p, b, data} {
				ok(t, c.Close())
			}
		}
	}
	settle := func() int {
		for i := 0; i < 50 && must[Memory](t)(d.Memory()).CurrentBytes > 0; i++ {
			runtime.GC() // finalizers run beside
			time.Sleep(10 * time.Millisecond)
		}
		equal(t, must[Memory](t)(d.Memory()).CurrentBytes, 0)
		return resident(t)
	}
	for _, closing := range []bool{true, false} {
		rounds := func(n int) int {
			for i := 0; i < n; i++ {
				round(closing)
				if i%50 == 49 {
					settle()
				}
			}
			return settle()
		}
		before := rounds(100)
		after := rounds(300)
		// What is forgotten goes when the collector likes, so that malloc keeps more or less for later.
		if closing && after > before+(8<<20) {
			t.Errorf("%d bytes resident, then %d", before, after)
		}
	}
}
