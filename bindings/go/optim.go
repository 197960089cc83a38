package moenn

// #include "bridge.h"
import "C"

import (
	"context"
	"runtime"
)

// Optimizer is AdamW and its state for one model.
type Optimizer struct {
	handle
	ptr *C.nn_optim_t
}

// OptimizerOptions are the options of [Model.NewOptimizer].
type OptimizerOptions struct {
	Beta1       float32 // 0: 0.9.
	Beta2       float32 // 0: 0.95.
	Eps         float32 // 0: 1e-8.
	WeightDecay float32 // Of matrices; norms and biases have none. 0: none.
	GradClip    float32 // Largest global gradient norm. 0: no clip.
}

// NewOptimizer makes an optimizer with moments of zero for a model that is prepared for training.
func (m *Model) NewOptimizer(options *OptimizerOptions) (*Optimizer, error) {
	c := C.nn_optim_options_t{struct_size: C.sizeof_nn_optim_options_t}
	if options != nil {
		c.beta1, c.beta2, c.eps = C.float(options.Beta1), C.float(options.Beta2), C.float(options.Eps)
		c.weight_decay, c.grad_clip = C.float(options.WeightDecay), C.float(options.GradClip)
	}
	var ptr *C.nn_optim_t
	err := m.compute(context.Background(), func() C.nn_status_t {
		return C.nn_optim_create(m.ptr, &c, &ptr)
	})
	if err != nil {
		return nil, err
	}
	o := &Optimizer{makeHandle(m.gate, m.place, func() { C.nn_optim_destroy(ptr) }), ptr}
	runtime.SetFinalizer(o, (*Optimizer).forget)
	return o, nil
}

// Step updates all parameters from the model's gradients, which stay as they are, and returns their
// global norm before the clip. Once begun it is not cancelled.
func (o *Optimizer) Step(ctx context.Context, lr float32) (gradNorm float64, err error) {
	var norm C.double
	err = o.compute(ctx, func() C.nn_status_t { return C.nn_optim_step(o.ptr, C.float(lr), &norm) })
	return float64(norm), err
}

// Moment is one of the optimizer's running means.
type Moment int32

// Moments.
const (
	MomentFirst  Moment = C.NN_MOMENT_FIRST  // Of gradients.
	MomentSecond Moment = C.NN_MOMENT_SECOND // Of squared gradients.
)

// Moment is a moment of one parameter as a tensor that views the optimizer's memory, F32.
func (o *Optimizer) Moment(name string, moment Moment) (*Tensor, error) {
	return o.tensor(name, func(cname *C.char, ptr **C.nn_tensor_t) C.nn_status_t {
		return C.nn_optim_moment(o.ptr, cname, C.int32_t(moment), ptr)
	})
}

// Steps is the number of updates made so far.
func (o *Optimizer) Steps() (steps int64) {
	o.read(func() { steps = int64(C.nn_optim_steps(o.ptr)) })
	return steps
}

// SetSteps sets the number of updates made so far, as when state was restored by hand.
func (o *Optimizer) SetSteps(steps int64) error {
	return o.do(func() C.nn_status_t { return C.nn_optim_set_steps(o.ptr, C.int64_t(steps)) })
}

// Save writes the state to one safetensors file, whole or not at all.
func (o *Optimizer) Save(ctx context.Context, path string) error {
	cpath, err := cstring(path)
	if err != nil {
		return err
	}
	return o.compute(ctx, func() C.nn_status_t { return C.nn_optim_save(o.ptr, cpath) })
}

// Load reads what Save wrote for a model of the same configuration.
func (o *Optimizer) Load(ctx context.Context, path string) error {
	cpath, err := cstring(path)
	if err != nil {
		return err
	}
	return o.compute(ctx, func() C.nn_status_t { return C.nn_optim_load(o.ptr, cpath) })
}

// ScheduleKind is the form of a learning-rate schedule.
type ScheduleKind int32

// Schedules.
const (
	ScheduleConstant ScheduleKind = C.NN_SCHEDULE_CONSTANT // LR after the warm-up.
	ScheduleLinear   ScheduleKind = C.NN_SCHEDULE_LINEAR   // From LR to MinLR in a straight line.
	ScheduleCosine   ScheduleKind = C.NN_SCHEDULE_COSINE   // From LR to MinLR along half a cosine.
)

// Schedule is a learning rate as a function of the step.
type Schedule struct {
	Kind        ScheduleKind
	LR          float32 // Peak.
	MinLR       float32 // At and after TotalSteps.
	WarmupSteps int64   // Step s < WarmupSteps has LR * (s + 1) / WarmupSteps.
	TotalSteps  int64   // Where the decay ends.
}

// At is the learning rate of a step, counted from 0.
func (s Schedule) At(step int64) (float32, error) {
	c := C.nn_schedule_t{
		struct_size: C.sizeof_nn_schedule_t, kind: C.int32_t(s.Kind), lr: C.float(s.LR),
		min_lr: C.float(s.MinLR), warmup_steps: C.int64_t(s.WarmupSteps),
		total_steps: C.int64_t(s.TotalSteps),
	}
	var lr C.float
	err := call(func() C.nn_status_t { return C.nn_schedule_lr(&c, C.int64_t(step), &lr) })
	return float32(lr), err
}
