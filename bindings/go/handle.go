package moenn

// #include "bridge.h"
import "C"

import (
	"context"
	"sync/atomic"
)

// gate lets one goroutine through at a time; waiting at it ends with the context.
type gate chan struct{}

func newGate() gate { return make(gate, 1) }

func (g gate) enter(ctx context.Context) error {
	if g == nil { // a handle that no constructor made
		return ErrClosed
	}
	if err := ctx.Err(); err != nil {
		return cancelled(err)
	}
	select {
	case g <- struct{}{}:
		return nil
	case <-ctx.Done():
		return cancelled(ctx.Err())
	}
}

func (g gate) leave() { <-g }

// handle is what is used by one call at a time: all but devices and tokenizers.
type handle struct {
	gate    gate   // shared by a model, its optimizers and the tensors that view their memory
	place   *place // nil for a dataset
	live    bool
	destroy func()
}

// makeHandle takes over what destroy gives back, and a reference of its own to the place.
func makeHandle(gate gate, place *place, destroy func()) handle {
	if place != nil {
		place.retain()
	}
	return handle{gate, place, true, destroy}
}

// Close gives the handle back, once a call under way on it has ended. It always returns nil.
func (h *handle) Close() error {
	if h.gate.enter(context.Background()) != nil {
		return nil
	}
	h.end()
	return nil
}

// end gives the handle back and leaves the gate, which was entered.
func (h *handle) end() {
	defer h.gate.leave()
	if h.live {
		h.live = false
		h.destroy()
		if h.place != nil {
			h.place.release()
		}
	}
}

// forget is the finalizer of handles. It does not wait for a model's other views: finalizers take
// turns.
func (h *handle) forget() {
	select {
	case h.gate <- struct{}{}:
		h.end()
	default:
		go h.Close()
	}
}

// with runs f when the handle is free, if it is open.
func (h *handle) with(ctx context.Context, f func() error) error {
	if err := h.gate.enter(ctx); err != nil {
		return err
	}
	defer h.gate.leave()
	if !h.live {
		return ErrClosed
	}
	return f()
}

// do makes a call that does not compute.
func (h *handle) do(f func() C.nn_status_t) error {
	return h.with(context.Background(), func() error { return call(f) })
}

// compute makes a call that takes its turn on the device.
func (h *handle) compute(ctx context.Context, f func() C.nn_status_t) error {
	return h.with(ctx, func() error { return h.place.compute(ctx, f) })
}

// read calls a getter that cannot fail; it is not called after Close.
func (h *handle) read(f func()) {
	_ = h.with(context.Background(), func() error { f(); return nil })
}

// shared is what any number of calls use at once: it goes when it is closed and the last has ended.
type shared struct {
	users   atomic.Int64
	destroy func()
}

func (s *shared) retain() bool {
	for {
		users := s.users.Load()
		if users == 0 {
			return false
		}
		if s.users.CompareAndSwap(users, users+1) {
			return true
		}
	}
}

func (s *shared) release() {
	if s.users.Add(-1) == 0 {
		s.destroy()
	}
}
