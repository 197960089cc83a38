//! Tensors: n-dimensional arrays on a device.
use std::marker::PhantomData;
use std::ops::Deref;
use std::os::raw::c_void;
use std::ptr::{self, NonNull};
use std::{mem, slice};

use moenn_sys as sys;

use crate::error::{c_enum, check, int32, int64, sized};
use crate::handle::Handle;
use crate::{Device, Error, Result, Status};

c_enum! {
    /// Type of a tensor's elements.
    DType {
        /// IEEE single.
        F32 = NN_F32,
        /// Upper half of an IEEE single.
        Bf16 = NN_BF16,
        /// IEEE half.
        F16 = NN_F16,
        /// IEEE double.
        F64 = NN_F64,
        /// Signed 64 bits.
        I64 = NN_I64,
        /// Signed 32 bits.
        I32 = NN_I32,
        /// Signed 16 bits.
        I16 = NN_I16,
        /// Signed 8 bits.
        I8 = NN_I8,
        /// Unsigned 8 bits.
        U8 = NN_U8,
        /// One byte, 0 or 1.
        Bool = NN_BOOL,
    }
}

impl DType {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        unsafe { sys::nn_dtype_bytes(self.raw()) }
    }
}

mod sealed {
    pub trait Sealed {}
}

/// A Rust type that is a tensor's element.
pub trait Element: Copy + sealed::Sealed {
    /// The element type that it is.
    const DTYPE: DType;
}

macro_rules! elements {
    ($($name:ty: $dtype:ident),*) => {
        $(impl sealed::Sealed for $name {}
        impl Element for $name {
            const DTYPE: DType = DType::$dtype;
        })*
    };
}
elements!(f32: F32, f64: F64, i64: I64, i32: I32, i16: I16, i8: I8, u8: U8);

/// Most dimensions a tensor has.
pub const MAX_DIMS: usize = sys::NN_MAX_DIMS as usize;

/// An n-dimensional array on a device.
///
/// It is a place to write through a shared reference, as a `Cell` is: it may move to another
/// thread, and is used by one at a time. What borrows its memory, or another's, is a
/// [`TensorView`].
#[derive(Debug)]
pub struct Tensor {
    handle: Handle<sys::nn_tensor_t>,
    dtype: DType,
    len: usize,
    device: Device,
}

/* One handle, one thread at a time. */
unsafe impl Send for Tensor {}

/// A tensor over memory that another value owns: a parameter, a gradient, a slice of either.
///
/// It stays on the thread of its owner, which counts as one with it, and goes before its owner
/// does.
#[derive(Debug)]
pub struct TensorView<'a> {
    tensor: Tensor,
    owner: PhantomData<(&'a (), *const ())>,
}

impl Tensor {
    pub(crate) fn new(handle: Handle<sys::nn_tensor_t>, device: &Device) -> Result<Tensor> {
        let info = info(&handle)?;
        let dtype = DType::from_raw(info.dtype)?;
        Ok(Tensor { handle, dtype, len: info.elements as usize, device: device.clone() })
    }

    /// Makes a tensor of zeros.
    pub fn zeros(device: &Device, dtype: DType, shape: &[i64]) -> Result<Tensor> {
        let handle = Handle::create(|out| unsafe {
            sys::nn_tensor_create(
                device.raw(),
                dtype.raw(),
                int32(shape.len()),
                shape.as_ptr(),
                out,
            )
        })?;
        Tensor::new(handle, device)
    }

    /// Makes a tensor over a slice, row-major and without a copy, on a device that reaches host
    /// memory.
    pub fn wrap<'a, T: Element>(
        device: &Device,
        data: &'a mut [T],
        shape: &[i64],
    ) -> Result<TensorView<'a>> {
        let elements = shape.iter().try_fold(1i64, |product, size| product.checked_mul(*size));
        if elements != Some(int64(data.len())) {
            return Err(Error::argument(format!(
                "{} elements are not of shape {shape:?}",
                data.len()
            )));
        }
        if device.info()?.name != "cpu" {
            return Err(Error::new(
                Status::Unsupported,
                "only a CPU device computes in host memory",
            ));
        }
        let handle = Handle::create(|out| unsafe {
            sys::nn_tensor_wrap(
                device.raw(),
                data.as_mut_ptr() as *mut c_void,
                T::DTYPE.raw(),
                int32(shape.len()),
                shape.as_ptr(),
                ptr::null(),
                out,
            )
        })?;
        TensorView::new(handle, device)
    }

    /// Takes over a DLPack `DLManagedTensor` (version 0 layout), without a copy. Where that fails
    /// it is still the caller's.
    ///
    /// # Safety
    /// `managed` points to a valid `DLManagedTensor` that nobody else will delete. Until its
    /// deleter is called, nobody else uses the memory while another thread uses the tensor.
    pub unsafe fn from_dlpack(device: &Device, managed: NonNull<c_void>) -> Result<Tensor> {
        let handle = Handle::create(|out| unsafe {
            sys::nn_tensor_from_dlpack(device.raw(), managed.as_ptr(), out)
        })?;
        Tensor::new(handle, device)
    }

    /// Exports the tensor as a DLPack `DLManagedTensor` (version 0 layout), without a copy. Whoever
    /// takes it calls its deleter once, and until then has to heed what Rust no longer sees: that
    /// the memory is shared, and that a view's owner must outlive it.
    pub fn to_dlpack(&self) -> Result<NonNull<c_void>> {
        let mut managed = ptr::null_mut();
        check(unsafe { sys::nn_tensor_to_dlpack(self.handle.get(), &mut managed) })?;
        self.device.leak_log();
        Ok(NonNull::new(managed).expect("the library gives a tensor with NN_OK"))
    }

    /// The device that holds it.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Type of the elements.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Sizes of the dimensions.
    pub fn shape(&self) -> &[i64] {
        let info = self.info();
        unsafe { dims(info.shape, info.ndim) }
    }

    /// Steps of the dimensions, in elements.
    pub fn strides(&self) -> &[i64] {
        let info = self.info();
        unsafe { dims(info.strides, info.ndim) }
    }

    /// Address of the first element, in device memory.
    pub fn as_ptr(&self) -> *mut c_void {
        self.info().data
    }

    /// Elements `begin` to `end - 1` of one dimension, sharing the memory.
    pub fn slice(&self, dim: usize, begin: usize, end: usize) -> Result<TensorView<'_>> {
        let handle = Handle::create(|out| unsafe {
            sys::nn_tensor_slice(self.handle.get(), int32(dim), int64(begin), int64(end), out)
        })?;
        TensorView::new(handle, &self.device)
    }

    /// Fills the tensor from row-major elements of its own type.
    pub fn copy_in<T: Element>(&self, source: &[T]) -> Result<()> {
        self.expect::<T>()?;
        self.copy_in_from(source.as_ptr() as *const c_void, mem::size_of_val(source))
    }

    /// Copies the tensor, row-major, into elements of its own type.
    pub fn copy_out<T: Element>(&self, target: &mut [T]) -> Result<()> {
        self.expect::<T>()?;
        self.copy_out_to(target.as_mut_ptr() as *mut c_void, mem::size_of_val(target))
    }

    /// The elements, row-major.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        self.expect::<T>()?;
        let mut elements = Vec::with_capacity(self.len);
        let target = elements.as_mut_ptr() as *mut c_void;
        self.copy_out_to(target, self.len * mem::size_of::<T>())?;
        unsafe { elements.set_len(self.len) } /* the call above has written all of them */
        Ok(elements)
    }

    /// Fills the tensor from the bytes of row-major elements, whatever their type.
    pub fn copy_in_bytes(&self, source: &[u8]) -> Result<()> {
        self.copy_in_from(source.as_ptr() as *const c_void, source.len())
    }

    /// Copies the bytes of the elements, row-major, whatever their type.
    pub fn copy_out_bytes(&self, target: &mut [u8]) -> Result<()> {
        self.copy_out_to(target.as_mut_ptr() as *mut c_void, target.len())
    }

    fn copy_in_from(&self, source: *const c_void, bytes: usize) -> Result<()> {
        check(unsafe { sys::nn_tensor_copy_in(self.handle.get(), source, bytes) })
    }

    fn copy_out_to(&self, target: *mut c_void, bytes: usize) -> Result<()> {
        check(unsafe { sys::nn_tensor_copy_out(self.handle.get(), target, bytes) })
    }

    fn info(&self) -> sys::nn_tensor_info_t {
        info(&self.handle).expect("a tensor that was described once can be described again")
    }

    fn expect<T: Element>(&self) -> Result<()> {
        if T::DTYPE == self.dtype {
            return Ok(());
        }
        Err(Error::argument(format!(
            "the tensor's elements are {:?}, not {:?}",
            self.dtype,
            T::DTYPE
        )))
    }
}

fn info(handle: &Handle<sys::nn_tensor_t>) -> Result<sys::nn_tensor_info_t> {
    let mut info = sized!(nn_tensor_info_t {});
    check(unsafe { sys::nn_tensor_info(handle.get(), &mut info) })?;
    Ok(info)
}

/// # Safety
/// `sizes` points to `ndim` numbers that live as long as `'a`, as those of a tensor's info do.
unsafe fn dims<'a>(sizes: *const i64, ndim: i32) -> &'a [i64] {
    if ndim <= 0 {
        return &[];
    }
    unsafe { slice::from_raw_parts(sizes, ndim as usize) }
}

impl<'a> TensorView<'a> {
    pub(crate) fn new(handle: Handle<sys::nn_tensor_t>, device: &Device) -> Result<TensorView<'a>> {
        Ok(TensorView { tensor: Tensor::new(handle, device)?, owner: PhantomData })
    }

    /// As [`Tensor::slice`], and lives as long as the memory's owner does.
    pub fn slice(&self, dim: usize, begin: usize, end: usize) -> Result<TensorView<'a>> {
        let TensorView { tensor, .. } = self.tensor.slice(dim, begin, end)?;
        Ok(TensorView { tensor, owner: PhantomData })
    }
}

/* Only shared: through `&mut Tensor` the tensor could be swapped out of its borrow. */
impl Deref for TensorView<'_> {
    type Target = Tensor;
    fn deref(&self) -> &Tensor {
        &self.tensor
    }
}
