package moenn

// #include "bridge.h"
import "C"

import (
	"context"
	"runtime"
)

// Model is a configuration and its parameters; gradients once training is prepared.
type Model struct {
	handle
	ptr            *C.nn_model_t
	vocab, experts int
}

// FileOptions are the options of loading and saving a model.
type FileOptions struct {
	ShardBytes int64 // Model.Save: most bytes of tensor data in a file. 0: 5e10.
	// Progress hears of bytes read or written, or is nil. Its error ends the call: the call's error is
	// then both ErrCancelled and that one.
	Progress func(done, total int64) error
}

// Loss is the result of a forward pass with targets.
type Loss struct {
	Loss    float64 // Cross-entropy in nats, mean over the targets that count.
	AuxLoss float64 // Load-balancing loss, coefficient included.
	ZLoss   float64 // Router z-loss, coefficient included.
	Targets int     // Targets that counted.
}

// ExpertStats says how evenly one layer's experts were used.
type ExpertStats struct {
	Tokens  int64   // Tokens routed.
	Dropped int64   // Slots that a capacity factor dropped.
	Entropy float64 // Of the experts' shares, over ln(experts): 1 is even.
	MaxLoad float64 // Largest share times experts: 1 is even.
}

// newModel wraps the model that f makes.
func (d *Device) newModel(f func(ptr **C.nn_model_t) error) (*Model, error) {
	var m *Model
	err := d.with(func() error {
		var ptr *C.nn_model_t
		if err := f(&ptr); err != nil {
			return err
		}
		config, err := getConfig(func(c *C.nn_model_config_t) C.nn_status_t {
			return C.nn_model_config(ptr, c)
		})
		if err != nil {
			C.nn_model_destroy(ptr)
			return err
		}
		m = &Model{makeHandle(newGate(), d.place, func() { C.nn_model_destroy(ptr) }), ptr,
			config.VocabSize, config.Experts}
		runtime.SetFinalizer(m, (*Model).forget)
		return nil
	})
	return m, err
}

// NewModel makes a model with random weights; the same seed gives the same bits.
func (d *Device) NewModel(config Config, dtype DType, seed uint64) (*Model, error) {
	c := config.c()
	return d.newModel(func(ptr **C.nn_model_t) error {
		return d.place.compute(context.Background(), func() C.nn_status_t {
			return C.nn_model_create(d.ptr, &c, C.int32_t(dtype), C.uint64_t(seed), ptr)
		})
	})
}

func (d *Device) load(ctx context.Context, load C.moenn_load_fn, path string, dtype DType,
	options *FileOptions) (*Model, error) {
	cpath, err := cstring(path)
	if err != nil {
		return nil, err
	}
	return d.newModel(func(ptr **C.nn_model_t) error {
		return options.calling(ctx, d.place).run(func(user C.uintptr_t) C.nn_status_t {
			return C.moenn_load(load, d.ptr, cpath, C.int32_t(dtype), user, ptr)
		})
	})
}

func (options *FileOptions) calling(ctx context.Context, place *place) *calling {
	c := &calling{ctx: ctx, place: place}
	if options != nil {
		c.progress = options.Progress
	}
	return c
}

// LoadModel reads a Hugging Face folder.
func (d *Device) LoadModel(ctx context.Context, folder string, dtype DType,
	options *FileOptions) (*Model, error) {
	return d.load(ctx, C.moenn_load_fn(C.nn_model_load), folder, dtype, options)
}

// LoadLLMC reads a model checkpoint of llm.c.
func (d *Device) LoadLLMC(ctx context.Context, path string, dtype DType,
	options *FileOptions) (*Model, error) {
	return d.load(ctx, C.moenn_load_fn(C.nn_model_load_llmc), path, dtype, options)
}

func (m *Model) save(ctx context.Context, save C.moenn_save_fn, path string,
	options *FileOptions) error {
	cpath, err := cstring(path)
	if err != nil {
		return err
	}
	var shard C.int64_t
	if options != nil {
		shard = C.int64_t(options.ShardBytes)
	}
	return m.with(ctx, func() error {
		return options.calling(ctx, m.place).run(func(user C.uintptr_t) C.nn_status_t {
			return C.moenn_save(save, m.ptr, cpath, shard, user)
		})
	})
}

// Save writes a Hugging Face folder that LoadModel and transformers read; whatever happens, an
// earlier model there stays whole until the new one takes its place.
func (m *Model) Save(ctx context.Context, folder string, options *FileOptions) error {
	return m.save(ctx, C.moenn_save_fn(C.nn_model_save), folder, options)
}

// SaveLLMC writes a model checkpoint that LoadLLMC and llm.c read.
func (m *Model) SaveLLMC(ctx context.Context, path string, options *FileOptions) error {
	return m.save(ctx, C.moenn_save_fn(C.nn_model_save_llmc), path, options)
}

// Config is the model's configuration, defaults filled in.
func (m *Model) Config() (config Config, err error) {
	err = m.with(context.Background(), func() error {
		config, err = getConfig(func(c *C.nn_model_config_t) C.nn_status_t {
			return C.nn_model_config(m.ptr, c)
		})
		return err
	})
	return config, err
}

// ParameterCount is the number of named parameters.
func (m *Model) ParameterCount() (count int) {
	m.read(func() { count = int(C.nn_model_parameter_count(m.ptr)) })
	return count
}

// ParameterName is the name of parameter i, as in the family's files, or "" when there is none.
func (m *Model) ParameterName(i int) (name string) {
	m.read(func() { name = C.GoString(C.nn_model_parameter_name(m.ptr, C.int64_t(i))) })
	return name
}

// Parameter is a parameter as a tensor that views the model's memory: writing changes the model.
func (m *Model) Parameter(name string) (*Tensor, error) {
	return m.tensor(name, func(cname *C.char, ptr **C.nn_tensor_t) C.nn_status_t {
		return C.nn_model_parameter(m.ptr, cname, ptr)
	})
}

// Gradient is a parameter's gradient as a tensor that views the gradients' memory, F32.
func (m *Model) Gradient(name string) (*Tensor, error) {
	return m.tensor(name, func(cname *C.char, ptr **C.nn_tensor_t) C.nn_status_t {
		return C.nn_model_gradient(m.ptr, cname, ptr)
	})
}

// tensor wraps a view of what the handle owns.
func (h *handle) tensor(name string, f func(*C.char, **C.nn_tensor_t) C.nn_status_t) (
	t *Tensor, err error) {
	cname, err := cstring(name)
	if err != nil {
		return nil, err
	}
	err = h.with(context.Background(), func() error {
		var ptr *C.nn_tensor_t
		err := call(func() C.nn_status_t { return f(cname, &ptr) })
		if err == nil {
			t = makeTensor(h.gate, h.place, ptr)
		}
		return err
	})
	return t, err
}

// Prepare allocates gradients and activations for batches up to a shape; nil gives them back.
func (m *Model) Prepare(options *TrainOptions) error {
	return m.compute(context.Background(), func() C.nn_status_t {
		return C.nn_model_prepare(m.ptr, options.c())
	})
}

// shapeOf checks that tokens are [batch, seqLen] and returns the shape for C.
func shapeOf(tokens []int32, batch int) (b, seqLen C.int64_t, err error) {
	if batch < 1 || len(tokens) == 0 || len(tokens)%batch != 0 {
		return 0, 0, argumentError("%d tokens are not a batch of %d sequences", len(tokens), batch)
	}
	return C.int64_t(batch), C.int64_t(len(tokens) / batch), nil
}

// Forward computes the logits, [batch, seqLen, vocab], of tokens, [batch, seqLen].
func (m *Model) Forward(ctx context.Context, tokens []int32, batch int, logits []float32) error {
	b, seqLen, err := shapeOf(tokens, batch)
	if err != nil {
		return err
	}
	if len(logits) != len(tokens)*m.vocab {
		return argumentError("Forward: logits has %d elements and needs %d", len(logits),
			len(tokens)*m.vocab)
	}
	return m.compute(ctx, func() C.nn_status_t {
		return C.nn_model_forward(m.ptr, (*C.int32_t)(first(tokens)), b, seqLen,
			(*C.float)(first(logits)))
	})
}

type passFunc func(tokens, targets *C.int32_t, batch, seqLen C.int64_t,
	loss *C.nn_loss_t) C.nn_status_t

func (m *Model) pass(ctx context.Context, tokens, targets []int32, batch int,
	f passFunc) (Loss, error) {
	b, seqLen, err := shapeOf(tokens, batch)
	if err != nil {
		return Loss{}, err
	}
	if len(targets) != len(tokens) {
		return Loss{}, argumentError("%d targets for %d tokens", len(targets), len(tokens))
	}
	c := C.nn_loss_t{struct_size: C.sizeof_nn_loss_t}
	err = m.compute(ctx, func() C.nn_status_t {
		return f((*C.int32_t)(first(tokens)), (*C.int32_t)(first(targets)), b, seqLen, &c)
	})
	return Loss{float64(c.loss), float64(c.aux_loss), float64(c.z_loss), int(c.targets)}, err
}

// Evaluate computes the loss of a batch. Targets are the ids that should follow the tokens, both
// [batch, seqLen]; negative ones do not count.
func (m *Model) Evaluate(ctx context.Context, tokens, targets []int32, batch int) (Loss, error) {
	return m.pass(ctx, tokens, targets, batch,
		func(tokens, targets *C.int32_t, batch, seqLen C.int64_t, loss *C.nn_loss_t) C.nn_status_t {
			return C.nn_model_evaluate(m.ptr, tokens, targets, batch, seqLen, loss)
		})
}

// Backward is Evaluate, and adds the gradients, times scale, to the model's. After it was cancelled
// the gradients are undefined until [Model.ZeroGrad].
func (m *Model) Backward(ctx context.Context, tokens, targets []int32, batch int,
	scale float32) (Loss, error) {
	return m.pass(ctx, tokens, targets, batch,
		func(tokens, targets *C.int32_t, batch, seqLen C.int64_t, loss *C.nn_loss_t) C.nn_status_t {
			return C.nn_model_backward(m.ptr, tokens, targets, batch, seqLen, C.float(scale), loss)
		})
}

// Accumulate is Backward without the loss: a GPU's work is not waited for.
func (m *Model) Accumulate(ctx context.Context, tokens, targets []int32, batch int,
	scale float32) error {
	_, err := m.pass(ctx, tokens, targets, batch,
		func(tokens, targets *C.int32_t, batch, seqLen C.int64_t, _ *C.nn_loss_t) C.nn_status_t {
			return C.nn_model_backward(m.ptr, tokens, targets, batch, seqLen, C.float(scale), nil)
		})
	return err
}

// ZeroGrad sets all gradients to zero.
func (m *Model) ZeroGrad() error {
	return m.compute(context.Background(), func() C.nn_status_t { return C.nn_model_zero_grad(m.ptr) })
}

// LossScale is what the gradients are multiplied by: 1 unless parameters are F16.
func (m *Model) LossScale() (scale float64) {
	m.read(func() { scale = float64(C.nn_model_loss_scale(m.ptr)) })
	return scale
}

type statsFunc func(layer C.int64_t, counts *C.int64_t, meanProb *C.double,
	c *C.nn_expert_stats_t) C.nn_status_t

func (h *handle) expertStats(layer, experts int, counts []int64, meanProb []float64,
	f statsFunc) (ExpertStats, error) {
	if (counts != nil && len(counts) != experts) || (meanProb != nil && len(meanProb) != experts) {
		return ExpertStats{}, argumentError(
			"ExpertStats: counts has %d entries and meanProb %d; there are %d experts",
			len(counts), len(meanProb), experts)
	}
	c := C.nn_expert_stats_t{struct_size: C.sizeof_nn_expert_stats_t}
	err := h.compute(context.Background(), func() C.nn_status_t {
		return f(C.int64_t(layer), (*C.int64_t)(first(counts)), (*C.double)(first(meanProb)), &c)
	})
	return ExpertStats{int64(c.tokens), int64(c.dropped), float64(c.entropy), float64(c.max_load)}, err
}

// ExpertStats tells the use of one layer's experts since the last reset. Counts, [experts],
// receives their routed slots and meanProb, [experts], their mean router probability; either may be
// nil.
func (m *Model) ExpertStats(layer int, counts []int64, meanProb []float64) (ExpertStats, error) {
	return m.expertStats(layer, m.experts, counts, meanProb,
		func(layer C.int64_t, counts *C.int64_t, meanProb *C.double,
			c *C.nn_expert_stats_t) C.nn_status_t {
			return C.nn_model_expert_stats(m.ptr, layer, counts, meanProb, c)
		})
}

// ResetExpertStats sets every layer's expert counters to zero.
func (m *Model) ResetExpertStats() error {
	return m.compute(context.Background(), func() C.nn_status_t {
		return C.nn_model_expert_stats_reset(m.ptr)
	})
}
