package moenn

// #include "bridge.h"
import "C"

import (
	"context"
	"runtime"
	"unsafe"
)

// DType is the type of a tensor's elements.
type DType int32

// Element types, and the Go type of each for [CopyIn], [CopyOut] and [View].
const (
	F32       DType = C.NN_F32        // float32
	BF16      DType = C.NN_BF16       // uint16: the upper half of a float32
	F16       DType = C.NN_F16        // uint16: an IEEE half
	F64       DType = C.NN_F64        // float64
	I64       DType = C.NN_I64        // int64
	I32       DType = C.NN_I32        // int32
	I16       DType = C.NN_I16        // int16
	I8        DType = C.NN_I8         // int8
	U8        DType = C.NN_U8         // uint8
	Bool      DType = C.NN_BOOL       // bool
	DTypeFile DType = C.NN_DTYPE_FILE // Of LoadModel and LoadLLMC alone: the dtype that the file has.
)

// MaxDims is the most dimensions that a tensor has.
const MaxDims = C.NN_MAX_DIMS

// Bytes is the size of one element; 0 for an unknown type.
func (t DType) Bytes() int { return int(C.nn_dtype_bytes(C.int32_t(t))) }

// Tensor is an n-dimensional array on a device.
type Tensor struct {
	handle
	ptr *C.nn_tensor_t
}

// TensorInfo is what a tensor is.
type TensorInfo struct {
	DType    DType
	Shape    []int
	Strides  []int // In elements.
	Elements int
	Data     unsafe.Pointer // The first element, in device memory, while the tensor is open.
}

func makeTensor(gate gate, place *place, ptr *C.nn_tensor_t) *Tensor {
	t := &Tensor{makeHandle(gate, place, func() { C.nn_tensor_destroy(ptr) }), ptr}
	runtime.SetFinalizer(t, (*Tensor).forget)
	return t
}

func (d *Device) newTensor(f func(**C.nn_tensor_t) C.nn_status_t) (t *Tensor, err error) {
	err = d.with(func() error {
		var ptr *C.nn_tensor_t
		err := d.place.compute(context.Background(), func() C.nn_status_t { return f(&ptr) })
		if err == nil {
			t = makeTensor(newGate(), d.place, ptr)
		}
		return err
	})
	return t, err
}

// NewTensor makes a tensor of zeros.
func (d *Device) NewTensor(dtype DType, shape ...int) (*Tensor, error) {
	sizes := toInt64s(shape)
	return d.newTensor(func(ptr **C.nn_tensor_t) C.nn_status_t {
		return C.nn_tensor_create(d.ptr, C.int32_t(dtype), C.int32_t(len(shape)), &sizes[0], ptr)
	})
}

// WrapTensor makes a tensor over memory without a copy. The memory must not be Go's own, for C
// keeps the pointer; it must outlive the tensor and its views. Strides are in elements; nil means
// row-major.
func (d *Device) WrapTensor(data unsafe.Pointer, dtype DType, shape, strides []int) (
	*Tensor, error) {
	sizes, steps := toInt64s(shape), toInt64s(strides)
	var step *C.int64_t
	if strides != nil {
		if len(strides) != len(shape) {
			return nil, argumentError("WrapTensor: %d strides for %d dimensions", len(strides), len(shape))
		}
		step = &steps[0]
	}
	return d.newTensor(func(ptr **C.nn_tensor_t) C.nn_status_t {
		return C.nn_tensor_wrap(d.ptr, data, C.int32_t(dtype), C.int32_t(len(shape)), &sizes[0],
			step, ptr)
	})
}

// FromDLPack imports a DLManagedTensor without a copy, and on success owns it.
func (d *Device) FromDLPack(managed unsafe.Pointer) (*Tensor, error) {
	return d.newTensor(func(ptr **C.nn_tensor_t) C.nn_status_t {
		return C.nn_tensor_from_dlpack(d.ptr, managed, ptr)
	})
}

// ToDLPack exports the tensor as a DLManagedTensor without a copy. The consumer calls its deleter
// once.
func (t *Tensor) ToDLPack() (managed unsafe.Pointer, err error) {
	err = t.do(func() C.nn_status_t {
		t.place.exported.Store(true)
		return C.nn_tensor_to_dlpack(t.ptr, &managed)
	})
	return managed, err
}

// Slice makes a view of the elements from begin to end - 1 of one dimension.
func (t *Tensor) Slice(dim, begin, end int) (view *Tensor, err error) {
	err = t.with(context.Background(), func() error {
		var ptr *C.nn_tensor_t
		err := call(func() C.nn_status_t {
			return C.nn_tensor_slice(t.ptr, C.int32_t(dim), C.int64_t(begin), C.int64_t(end), &ptr)
		})
		if err == nil {
			view = makeTensor(t.gate, t.place, ptr)
		}
		return err
	})
	return view, err
}

// Info describes the tensor.
func (t *Tensor) Info() (info TensorInfo, err error) {
	err = t.with(context.Background(), func() error {
		info, err = t.info()
		return err
	})
	return info, err
}

func (t *Tensor) info() (TensorInfo, error) {
	c := C.nn_tensor_info_t{struct_size: C.sizeof_nn_tensor_info_t}
	if err := call(func() C.nn_status_t { return C.nn_tensor_info(t.ptr, &c) }); err != nil {
		return TensorInfo{}, err
	}
	return TensorInfo{
		DType: DType(c.dtype), Shape: fromInt64s(c.shape, c.ndim), Strides: fromInt64s(c.strides, c.ndim),
		Elements: int(c.elements), Data: c.data,
	}, nil
}

// Element is a Go type that can hold an element.
type Element interface {
	bool | int8 | uint8 | int16 | uint16 | int32 | int64 | float32 | float64
}

func holds[T Element](dtype DType) bool {
	switch any(*new(T)).(type) {
	case float32:
		return dtype == F32
	case float64:
		return dtype == F64
	case uint16:
		return dtype == BF16 || dtype == F16
	case int64:
		return dtype == I64
	case int32:
		return dtype == I32
	case int16:
		return dtype == I16
	case int8:
		return dtype == I8
	case uint8:
		return dtype == U8
	default:
		return dtype == Bool
	}
}

func checkElement[T Element](t *Tensor) (TensorInfo, error) {
	info, err := t.info()
	if err == nil && !holds[T](info.DType) {
		err = argumentError("a %T does not hold an element of DType %d", *new(T), info.DType)
	}
	return info, err
}

// CopyIn fills the tensor from a slice, row-major, of just as many elements.
func CopyIn[T Element](t *Tensor, source []T) error {
	return copyElements(t, source, func(data unsafe.Pointer, bytes C.size_t) C.nn_status_t {
		return C.nn_tensor_copy_in(t.ptr, data, bytes)
	})
}

// CopyOut copies the tensor, row-major, into a slice of just as many elements.
func CopyOut[T Element](t *Tensor, target []T) error {
	return copyElements(t, target, func(data unsafe.Pointer, bytes C.size_t) C.nn_status_t {
		return C.nn_tensor_copy_out(t.ptr, data, bytes)
	})
}

func copyElements[T Element](t *Tensor, s []T,
	f func(unsafe.Pointer, C.size_t) C.nn_status_t) error {
	return t.with(context.Background(), func() error {
		if _, err := checkElement[T](t); err != nil {
			return err
		}
		bytes := C.size_t(len(s)) * C.size_t(unsafe.Sizeof(*new(T)))
		var empty T
		data := unsafe.Pointer(&empty)
		if len(s) > 0 {
			data = unsafe.Pointer(&s[0])
		}
		return t.place.compute(context.Background(), func() C.nn_status_t { return f(data, bytes) })
	})
}

// View calls f with the tensor's own memory, without a copy: what f writes is written to the
// tensor, and the slice must not be kept. Nothing may compute with the tensor meanwhile; of a
// model's parameter that includes its sessions. It takes a row-major tensor on a CPU, or fails with
// [ErrUnsupported].
func View[T Element](t *Tensor, f func(elements []T)) error {
	return t.with(context.Background(), func() error {
		info, err := checkElement[T](t)
		if err != nil {
			return err
		}
		step, inOrder := 1, true
		for i := len(info.Shape) - 1; i >= 0; i-- {
			inOrder = inOrder && (info.Strides[i] == step || info.Shape[i] == 1)
			step *= info.Shape[i]
		}
		if !inOrder || !t.place.host {
			return &Error{Status: ErrUnsupported,
				Message: "View: the tensor is not row-major in host memory; use CopyOut"}
		}
		if info.Elements == 0 {
			f(nil)
		} else {
			f(unsafe.Slice((*T)(info.Data), info.Elements))
		}
		return nil
	})
}

// toInt64s has room for one element at least, so that its first can always be pointed at.
func toInt64s(values []int) []C.int64_t {
	result := make([]C.int64_t, len(values), len(values)+1)
	for i, value := range values {
		result[i] = C.int64_t(value)
	}
	return result[:len(values)+1]
}

func fromInt64s(values *C.int64_t, count C.int32_t) []int {
	result := make([]int, count)
	if count > 0 {
		for i, value := range unsafe.Slice(values, int(count)) {
			result[i] = int(value)
		}
	}
	return result
}
