package moenn

// #include "bridge.h"
import "C"

import (
	"context"
	"runtime"
	"runtime/cgo"
	"sync"
	"sync/atomic"
	"unsafe"
)

// LogLevel is how urgent a message is.
type LogLevel int32

// Log levels.
const (
	LogDefault LogLevel = C.NN_LOG_DEFAULT // As an option: LogWarning.
	LogError   LogLevel = C.NN_LOG_ERROR   // Something failed that no status can carry.
	LogWarning LogLevel = C.NN_LOG_WARNING // Works, but probably not as meant.
	LogInfo    LogLevel = C.NN_LOG_INFO    // What a user may want to know once.
	LogDebug   LogLevel = C.NN_LOG_DEBUG   // What a developer of the library wants to know.
)

// CPUPaths is a mask of the ways to compute on a CPU.
type CPUPaths int32

// Paths of a CPU.
const (
	CPUDefault   CPUPaths = C.NN_CPU_DEFAULT   // Every path the processor has.
	CPUReference CPUPaths = C.NN_CPU_REFERENCE // Plain C. Always allowed.
	CPUAVX2      CPUPaths = C.NN_CPU_AVX2      // AVX2 and FMA.
	CPUAVX512    CPUPaths = C.NN_CPU_AVX512    // AVX-512 F, BW, DQ and VL.
	// With CPUAVX512: its bf16 products, for models of bf16 parameters.
	CPUAVX512BF16 CPUPaths = C.NN_CPU_AVX512_BF16
)

// DeviceOptions are the options of [OpenDevice].
type DeviceOptions struct {
	Threads  int      // Threads that compute, on a CPU. 0: one per core.
	CPUPaths CPUPaths // 0: MOENN_CPU from the environment, or every path.
	Affinity []int32  // The logical CPU of each of Threads threads, or nil.
	// Log receives messages until the last handle on the device is closed; several goroutines may call
	// it at once, and it must not panic. nil: they are written to standard error.
	Log      func(level LogLevel, message string)
	LogLevel LogLevel // The least urgent to pass on.
	TF32     bool     // Products of fp32 matrices on a CUDA device may round to TF32.
}

// DeviceInfo is what a device is.
type DeviceInfo struct {
	Threads  int
	CPUPaths CPUPaths // The paths in use.
	Name     string   // "cpu" or "cuda:N".
	Model    string   // The processor's or GPU's own name.
}

// Memory is the device memory that handles hold.
type Memory struct {
	CurrentBytes int64 // Held now.
	PeakBytes    int64 // Most ever held.
	Allocations  int64 // Allocations ever made: constant over steady steps.
}

// Device is a place to compute.
type Device struct {
	*place
	closed atomic.Bool
}

// place is an open device, which a Device shares with everything that lives on it.
type place struct {
	shared
	ptr      *C.nn_device_t
	host     bool // its memory can be read in place
	turn     gate // whose call may compute
	log      cgo.Handle
	exported atomic.Bool // a DLPack consumer may keep the device, and the log, alive

	mutex   sync.Mutex // guards the cancel flag:
	asked   bool       // by Device.Cancel
	expired bool       // by the context of the call whose turn it is
}

// OpenDevice opens "cpu", or "cuda:0", "cuda:1", ...
func OpenDevice(name string, options *DeviceOptions) (*Device, error) {
	if options == nil {
		options = &DeviceOptions{}
	}
	if options.Affinity != nil && len(options.Affinity) != options.Threads {
		return nil, argumentError("DeviceOptions: Affinity has %d entries for %d Threads",
			len(options.Affinity), options.Threads)
	}
	cname, err := cstring(name)
	if err != nil {
		return nil, err
	}
	p := &place{turn: newGate(), host: name == "cpu"}
	if options.Log != nil {
		p.log = cgo.NewHandle(options.Log)
	}
	err = call(func() C.nn_status_t {
		return C.moenn_device_create(cname, C.int32_t(options.Threads), C.int32_t(options.CPUPaths),
			(*C.int32_t)(first(options.Affinity)), C.uintptr_t(p.log), C.int32_t(options.LogLevel),
			toInt32(options.TF32), &p.ptr)
	})
	if err != nil {
		p.forgetLog()
		return nil, err
	}
	p.users.Store(1)
	p.destroy = func() {
		C.nn_device_destroy(p.ptr)
		if !p.exported.Load() {
			p.forgetLog()
		}
	}
	d := &Device{place: p}
	runtime.SetFinalizer(d, (*Device).Close)
	return d, nil
}

// Close gives the handle back; what lives on the device keeps it open until it is closed too. It
// always returns nil.
func (d *Device) Close() error {
	if d.place != nil && !d.closed.Swap(true) {
		d.release()
	}
	return nil
}

// Info describes the device.
func (d *Device) Info() (DeviceInfo, error) {
	c := C.nn_device_info_t{struct_size: C.sizeof_nn_device_info_t}
	var info DeviceInfo
	err := d.with(func() error {
		if err := call(func() C.nn_status_t { return C.nn_device_info(d.ptr, &c) }); err != nil {
			return err
		}
		info = DeviceInfo{int(c.threads), CPUPaths(c.cpu_paths), C.GoString(c.name), C.GoString(c.model)}
		return nil
	})
	return info, err
}

// Memory reads the device's counters.
func (d *Device) Memory() (Memory, error) {
	c := C.nn_memory_t{struct_size: C.sizeof_nn_memory_t}
	err := d.with(func() error {
		return call(func() C.nn_status_t { return C.nn_device_memory(d.ptr, &c) })
	})
	return Memory{int64(c.current_bytes), int64(c.peak_bytes), int64(c.allocations)}, err
}

// Cancel sets or clears the device's cancel flag: while it is set, calls that compute, load or save
// return [ErrCancelled], whoever makes them. To end one call, end its context.
func (d *Device) Cancel(on bool) error {
	return d.with(func() error { d.setCancel(&d.asked, on); return nil })
}

// with runs f on an open device, which stays so until f returns.
func (d *Device) with(f func() error) error {
	if d.place == nil || d.closed.Load() || !d.retain() {
		return ErrClosed
	}
	defer d.release()
	return f()
}

// compute makes a call that takes its turn on the device.
func (d *Device) compute(ctx context.Context, f func() C.nn_status_t) error {
	return d.with(func() error { return d.place.compute(ctx, f) })
}

func (p *place) forgetLog() {
	if p.log != 0 {
		p.log.Delete()
	}
}

// setCancel sets one of the two reasons for the cancel flag, and with them the flag.
func (p *place) setCancel(reason *bool, on bool) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	*reason = on
	C.nn_device_cancel(p.ptr, toInt32(p.asked || p.expired))
}

// turn is the right to compute on a device. The library runs one call at a time on a device; by
// queueing for it here, a goroutine can stop waiting, and the cancel flag meets the one call that
// it is meant for.
type turn struct {
	place *place
	over  chan struct{} // nil: the context never ends
	given bool          // guarded by place.mutex
}

func (p *place) take(ctx context.Context) (*turn, error) {
	if err := p.turn.enter(ctx); err != nil {
		return nil, err
	}
	t := &turn{place: p}
	if ctx.Done() != nil {
		t.over = make(chan struct{})
		go t.watch(ctx)
	}
	return t, nil
}

func (t *turn) watch(ctx context.Context) {
	select {
	case <-t.over:
	case <-ctx.Done():
		t.place.mutex.Lock()
		defer t.place.mutex.Unlock()
		if !t.given {
			t.place.expired = true
			C.nn_device_cancel(t.place.ptr, 1)
		}
	}
}

func (t *turn) give() {
	if t.over != nil {
		close(t.over)
		t.place.mutex.Lock()
		t.given = true
		if t.place.expired {
			t.place.expired = false
			C.nn_device_cancel(t.place.ptr, toInt32(t.place.asked))
		}
		t.place.mutex.Unlock()
	}
	t.place.turn.leave()
}

func (p *place) compute(ctx context.Context, f func() C.nn_status_t) error {
	t, err := p.take(ctx)
	if err != nil {
		return err
	}
	defer t.give()
	return explain(ctx, call(f))
}

// explain names the context's end as the cause of a cancelled call.
func explain(ctx context.Context, err error) error {
	if e, ok := err.(*Error); ok && e.Status == ErrCancelled && e.Cause == nil {
		e.Cause = ctx.Err()
	}
	return err
}

// first points at a slice's first element for C, or nowhere.
func first[T any](s []T) unsafe.Pointer {
	if len(s) == 0 {
		return nil
	}
	return unsafe.Pointer(&s[0])
}

func toInt32(b bool) C.int32_t {
	if b {
		return 1
	}
	return 0
}
