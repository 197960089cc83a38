package moenn

import (
	"math"
	"syscall"
	"testing"
	"unsafe"
)

func TestTensor(t *testing.T) {
	d := testDevice(t)
	x := must[*Tensor](t)(d.NewTensor(F32, 2, 3))
	info := must[TensorInfo](t)(x.Info())
	equal(t, info.Shape, []int{2, 3})
	equal(t, info.Strides, []int{3, 1})
	equal(t, info.Elements, 6)
	equal(t, info.DType, F32)
	ok(t, CopyIn(x, []float32{1, 2, 3, 4, 5, 6}))
	view := must[*Tensor](t)(x.Slice(1, 1, 3))
	got := make([]float32, 4)
	ok(t, CopyOut(view, got))
	equal(t, got, []float32{2, 3, 5, 6})
	fails(t, View(view, func([]float32) {}), ErrUnsupported)
	ok(t, View(x, func(elements []float32) {
		equal(t, unsafe.Pointer(&elements[0]), info.Data)
		elements[1] = 7
	}))
	ok(t, x.Close())
	ok(t, x.Close())
	ok(t, CopyOut(view, got)) // a view keeps what it views
	equal(t, got[0], 7)
	fails(t, CopyOut(view, got[:3]), ErrArgument)
	fails(t, CopyOut(view, []int32{1, 2, 3, 4}), ErrArgument)
	fails(t, CopyIn(x, got), ErrClosed)
	_, err := x.Slice(0, 0, 1)
	fails(t, err, ErrClosed)
	_, err = view.Slice(2, 0, 1)
	fails(t, err, ErrArgument)
	_, err = d.NewTensor(F32, 1, 1, 1, 1, 1, 1, 1, 1, 1)
	fails(t, err, ErrArgument)
	scalar := must[*Tensor](t)(d.NewTensor(F64))
	equal(t, must[TensorInfo](t)(scalar.Info()).Elements, 1)
	ok(t, View(scalar, func(elements []float64) { elements[0] = math.Pi }))
	empty := must[*Tensor](t)(d.NewTensor(Bool, 0))
	ok(t, CopyIn(empty, []bool{}))
	ok(t, View(empty, func(elements []bool) { equal(t, len(elements), 0) }))
	equal(t, []int{BF16.Bytes(), I64.Bytes(), Bool.Bytes(), DType(99).Bytes()}, []int{2, 8, 1, 0})
	for _, other := range []*Tensor{view, scalar, empty} {
		ok(t, other.Close())
	}
	equal(t, must[Memory](t)(d.Memory()).CurrentBytes, 0)
}

func TestElementTypes(t *testing.T) {
	d := testDevice(t)
	roundTrip[float32](t, d, F32, 1.5)
	roundTrip[float64](t, d, F64, 1.5)
	roundTrip[uint16](t, d, BF16, 0x3f80)
	roundTrip[uint16](t, d, F16, 0x3c00)
	roundTrip[int64](t, d, I64, -5)
	roundTrip[int32](t, d, I32, -5)
	roundTrip[int16](t, d, I16, -5)
	roundTrip[int8](t, d, I8, -5)
	roundTrip[uint8](t, d, U8, 5)
	roundTrip(t, d, Bool, true)
}

func roundTrip[T Element](t *testing.T, d *Device, dtype DType, value T) {
	x := must[*Tensor](t)(d.NewTensor(dtype, 3))
	defer x.Close()
	got := make([]T, 3)
	ok(t, CopyIn(x, []T{value, value, value}))
	ok(t, CopyOut(x, got))
	equal(t, got, []T{value, value, value})
}

func TestWrapAndDLPack(t *testing.T) {
	d := testDevice(t)
	page := must[[]byte](t)(syscall.Mmap(-1, 0, 4096, syscall.PROT_READ|syscall.PROT_WRITE,
		syscall.MAP_PRIVATE|syscall.MAP_ANON))
	defer syscall.Munmap(page)
	x := must[*Tensor](t)(d.WrapTensor(unsafe.Pointer(&page[0]), I32, []int{2, 2}, []int{1, 2}))
	ok(t, CopyIn(x, []int32{1, 2, 3, 4}))
	equal(t, []byte{page[0], page[4], page[8], page[12]}, []byte{1, 3, 2, 4})
	managed := must[unsafe.Pointer](t)(x.ToDLPack())
	ok(t, x.Close())
	y := must[*Tensor](t)(d.FromDLPack(managed))
	got := make([]int32, 4)
	ok(t, CopyOut(y, got))
	equal(t, got, []int32{1, 2, 3, 4})
	ok(t, y.Close())
	_, err := d.WrapTensor(unsafe.Pointer(&page[0]), I32, []int{2, 2}, []int{1})
	fails(t, err, ErrArgument)
	_, err = d.FromDLPack(nil)
	fails(t, err, ErrArgument)
	_, err = x.ToDLPack()
	fails(t, err, ErrClosed)
}
