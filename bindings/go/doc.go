// Package moenn trains and serves mixture-of-experts language models. It binds libmoenn, a C
// library, and adds no numerical code; moenn.h says what each call computes.
//
//	device, err := moenn.OpenDevice("cpu", nil)
//	model, err := device.LoadModel(ctx, "tiny-model", moenn.F32, nil)
//	session, err := model.NewSession(nil)
//	bytes, err := moenn.NewByteTokenizer()
//	reason, err := session.GenerateText(ctx, os.Stdout, bytes, 0, "Once upon a time", nil)
//
// # Building
//
// cgo finds the library by pkg-config, as "cmake --install" lays it down. With the build tag
// moenn_flags it asks CGO_CFLAGS and CGO_LDFLAGS alone.
//
// # Handles
//
// A [Device], [Tensor], [Model], [Optimizer], [Tokenizer], [Dataset] or [Session] is a handle:
// Close gives it back, in any order, as often as one likes; what it depends on lives until it is
// closed itself. A finalizer closes a handle that was forgotten, some time. After Close every
// method that returns an error returns [ErrClosed], and the counters that return none read zero.
//
// # Goroutines
//
// Every handle may be used from any number of goroutines. Calls on one handle take turns, where a
// model, its optimizers and the tensors that view their memory count as one; so do calls that
// compute on one device. A goroutine that waits for its turn leaves when its context ends. A
// callback may use any handle but the one whose call it serves, where it would wait for itself.
//
// # Contexts
//
// The end of a context ends its call within about 50 ms on a CPU, and no other goroutine's: the
// error is both [ErrCancelled] and the context's own. A training step is never half done: see
// nn_device_cancel in moenn.h.
//
// # Memory
//
// Slices of ids, logits and tensor elements are read and written in place by the C library; nothing
// is copied on the way, and nothing of them is kept after the call.
//
// Zero in any option means the default that moenn.h documents, and a nil *Options all of them.
package moenn
