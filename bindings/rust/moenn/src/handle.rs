//! Owned handles, and closures that cross into C.
use std::any::Any;
use std::mem;
use std::ops::ControlFlow;
use std::os::raw::c_void;
use std::panic::{catch_unwind, resume_unwind, AssertUnwindSafe};
use std::ptr::{self, NonNull};

use moenn_sys as sys;

use crate::error::check;
use crate::Result;

/// A handle type and the function that gives its handles back.
pub(crate) trait Raw {
    const DESTROY: unsafe extern "C" fn(*mut Self);
}

impl Raw for sys::nn_device_t {
    const DESTROY: unsafe extern "C" fn(*mut Self) = sys::nn_device_destroy;
}
impl Raw for sys::nn_tensor_t {
    const DESTROY: unsafe extern "C" fn(*mut Self) = sys::nn_tensor_destroy;
}
impl Raw for sys::nn_model_t {
    const DESTROY: unsafe extern "C" fn(*mut Self) = sys::nn_model_destroy;
}
impl Raw for sys::nn_optim_t {
    const DESTROY: unsafe extern "C" fn(*mut Self) = sys::nn_optim_destroy;
}
impl Raw for sys::nn_session_t {
    const DESTROY: unsafe extern "C" fn(*mut Self) = sys::nn_session_destroy;
}
impl Raw for sys::nn_tokenizer_t {
    const DESTROY: unsafe extern "C" fn(*mut Self) = sys::nn_tokenizer_destroy;
}
impl Raw for sys::nn_dataset_t {
    const DESTROY: unsafe extern "C" fn(*mut Self) = sys::nn_dataset_destroy;
}

/// A handle that is destroyed once, when it is dropped. Neither `Send` nor `Sync`: the types around
/// it say which of these the header promises.
#[derive(Debug)]
pub(crate) struct Handle<T: Raw>(NonNull<T>);

impl<T: Raw> Handle<T> {
    /// Runs a constructor, which writes a handle where it succeeds.
    pub fn create(make: impl FnOnce(*mut *mut T) -> sys::nn_status_t) -> Result<Handle<T>> {
        let mut raw = ptr::null_mut();
        check(make(&mut raw))?;
        Ok(Handle(NonNull::new(raw).expect("the library gives a handle with NN_OK")))
    }

    #[inline]
    pub fn get(&self) -> *mut T {
        self.0.as_ptr()
    }
}

impl<T: Raw> Drop for Handle<T> {
    fn drop(&mut self) {
        unsafe { T::DESTROY(self.get()) }
    }
}

/// A closure on loan to one call. A panic inside stops the call, and goes on when the call is back.
pub(crate) struct Lent<F> {
    closure: F,
    panic: Option<Box<dyn Any + Send>>,
}

impl<F> Lent<F> {
    pub fn new(closure: F) -> Lent<F> {
        Lent { closure, panic: None }
    }

    /// What C passes back to the trampoline.
    pub fn user(&mut self) -> *mut c_void {
        self as *mut Lent<F> as *mut c_void
    }

    /// Runs the closure for a trampoline: non-zero to stop.
    ///
    /// # Safety
    /// `user` comes from [`Lent::user`] of the same type, and the `Lent` is still there.
    pub unsafe fn run(user: *mut c_void, call: impl FnOnce(&mut F) -> ControlFlow<()>) -> i32 {
        let lent = unsafe { &mut *(user as *mut Lent<F>) };
        let closure = &mut lent.closure;
        match catch_unwind(AssertUnwindSafe(|| call(closure))) {
            Ok(flow) => flow.is_break() as i32,
            Err(panic) => {
                lent.panic = Some(panic);
                1
            }
        }
    }

    /// Ends the loan: the panic goes on, if there was one.
    pub fn back(self) {
        if let Some(panic) = self.panic {
            resume_unwind(panic)
        }
    }
}

/// Runs a closure whose panic has nowhere to go.
pub(crate) fn contain(call: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(call)) {
        mem::forget(panic); /* dropping it might panic again */
    }
}
