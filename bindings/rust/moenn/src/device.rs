//! Devices: places to compute.
use std::ffi::CStr;
use std::fmt;
use std::ops::BitOr;
use std::os::raw::{c_char, c_void};
use std::ptr;
use std::sync::Arc;

use moenn_sys as sys;

use crate::error::{c_enum, c_string, check, int32, sized, text};
use crate::handle::{contain, Handle};
use crate::{Error, Result};

c_enum! {
    /// How urgent a message is.
    #[derive(Default)]
    LogLevel {
        /// Something failed that no status can carry.
        Error = NN_LOG_ERROR,
        /// Works, but probably not as meant.
        #[default]
        Warning = NN_LOG_WARNING,
        /// What a user may want to know once.
        Info = NN_LOG_INFO,
        /// What a developer of the library wants to know.
        Debug = NN_LOG_DEBUG,
    }
}

/// Instruction sets that a CPU device may use: a mask, joined with `|`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct CpuPaths(pub i32);

impl CpuPaths {
    /// As an option: what the environment variable `MOENN_CPU` says, or every path.
    pub const DEFAULT: CpuPaths = CpuPaths(sys::NN_CPU_DEFAULT as i32);
    /// Plain C. Always allowed.
    pub const REFERENCE: CpuPaths = CpuPaths(sys::NN_CPU_REFERENCE as i32);
    /// AVX2 and FMA.
    pub const AVX2: CpuPaths = CpuPaths(sys::NN_CPU_AVX2 as i32);
    /// AVX-512 F, BW, DQ and VL.
    pub const AVX512: CpuPaths = CpuPaths(sys::NN_CPU_AVX512 as i32);
    /// With AVX-512: its bf16 products, for models of bf16 parameters.
    pub const AVX512_BF16: CpuPaths = CpuPaths(sys::NN_CPU_AVX512_BF16 as i32);

    /// Whether every path of `other` is in it.
    pub fn contains(self, other: CpuPaths) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for CpuPaths {
    type Output = CpuPaths;
    fn bitor(self, other: CpuPaths) -> CpuPaths {
        CpuPaths(self.0 | other.0)
    }
}

/// Receives messages, from any thread. It must not use what the call that logs is working on; a
/// panic inside ends the message, not the call.
pub type LogFn = Box<dyn Fn(LogLevel, &str) + Send + Sync>;

/// Options of [`Device::open`]. The default asks for nothing.
#[derive(Default)]
pub struct DeviceOptions {
    /// Threads that compute, the caller's among them, on a CPU. 0: one per core.
    pub threads: usize,
    /// Instruction sets allowed.
    pub cpu_paths: CpuPaths,
    /// The logical CPU of each thread (entry 0, the caller's own, is left alone). Empty: wherever
    /// the system puts them.
    pub affinity: Vec<i32>,
    /// Receives messages until the last of the device and all that lives on it is dropped. `None`:
    /// they are written to standard error.
    pub log: Option<LogFn>,
    /// Least urgent level to pass on.
    pub log_level: LogLevel,
    /// Products of fp32 matrices on a CUDA device may round what they multiply to TF32.
    pub tf32: bool,
}

impl fmt::Debug for DeviceOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceOptions")
            .field("threads", &self.threads)
            .field("cpu_paths", &self.cpu_paths)
            .field("affinity", &self.affinity)
            .field("log", &self.log.is_some())
            .field("log_level", &self.log_level)
            .field("tf32", &self.tf32)
            .finish()
    }
}

/// What a device is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// "cpu" or "cuda:N".
    pub name: String,
    /// The processor's or GPU's own name.
    pub model: String,
    /// Threads that compute.
    pub threads: usize,
    /// Instruction sets in use.
    pub cpu_paths: CpuPaths,
}

/// Device memory in use, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Memory {
    /// Held now.
    pub current_bytes: u64,
    /// Most ever held.
    pub peak_bytes: u64,
    /// Allocations ever made: constant over steady steps.
    pub allocations: u64,
}

/// A place to compute: a CPU with its threads, or a GPU.
///
/// A clone is the same device, and what is made on a device keeps it open. Any number of threads
/// may use it at once, so a clone on another thread is how to [cancel](Device::cancel).
#[derive(Clone)]
pub struct Device(Arc<Open>);

struct Open {
    handle: Handle<sys::nn_device_t>, /* ends before the closure that it calls */
    log: Option<Arc<LogFn>>,
}

/* The header: a device may be used from any number of threads at once. */
unsafe impl Send for Open {}
unsafe impl Sync for Open {}

unsafe extern "C" fn on_log(level: i32, message: *const c_char, user: *mut c_void) {
    contain(|| {
        let (log, message) = unsafe { (&*(user as *const LogFn), CStr::from_ptr(message)) };
        log(LogLevel::from_raw(level).unwrap_or(LogLevel::Debug), &message.to_string_lossy())
    })
}

impl Device {
    /// The CPU, all of its cores.
    pub fn cpu() -> Result<Device> {
        Device::open("cpu", DeviceOptions::default())
    }

    /// Opens "cpu", or "cuda:0", "cuda:1", ...: an NVIDIA GPU.
    pub fn open(name: &str, options: DeviceOptions) -> Result<Device> {
        let name = c_string(name)?;
        let threads = if options.threads > 0 { options.threads } else { options.affinity.len() };
        let pinned = !options.affinity.is_empty();
        if pinned && options.affinity.len() != threads {
            return Err(Error::argument(format!(
                "affinity has {} entries for {threads} threads",
                options.affinity.len()
            )));
        }
        let log = options.log.map(Arc::new);
        let raw = sized!(nn_device_options_t {
            threads: int32(threads),
            cpu_paths: options.cpu_paths.0,
            affinity: if pinned { options.affinity.as_ptr() } else { ptr::null() },
            log: log
                .as_ref()
                .map(|_| on_log as unsafe extern "C" fn(i32, *const c_char, *mut c_void)),
            log_user: log.as_ref().map_or(ptr::null_mut(), |log| Arc::as_ptr(log) as *mut c_void),
            log_level: options.log_level.raw(),
            tf32: options.tf32 as i32,
        });
        let handle =
            Handle::create(|out| unsafe { sys::nn_device_create(name.as_ptr(), &raw, out) })?;
        Ok(Device(Arc::new(Open { handle, log })))
    }

    #[inline]
    pub(crate) fn raw(&self) -> *mut sys::nn_device_t {
        self.0.handle.get()
    }

    /// Keeps the log closure for ever: for memory that leaves this crate's hands.
    pub(crate) fn leak_log(&self) {
        std::mem::forget(self.0.log.clone());
    }

    /// Describes the device.
    pub fn info(&self) -> Result<DeviceInfo> {
        let mut info = sized!(nn_device_info_t {});
        check(unsafe { sys::nn_device_info(self.raw(), &mut info) })?;
        Ok(DeviceInfo {
            name: text(info.name).into(),
            model: text(info.model).into(),
            threads: info.threads as usize,
            cpu_paths: CpuPaths(info.cpu_paths),
        })
    }

    /// Reads the memory counters.
    pub fn memory(&self) -> Result<Memory> {
        let mut memory = sized!(nn_memory_t {});
        check(unsafe { sys::nn_device_memory(self.raw(), &mut memory) })?;
        Ok(Memory {
            current_bytes: memory.current_bytes as u64,
            peak_bytes: memory.peak_bytes as u64,
            allocations: memory.allocations as u64,
        })
    }

    /// Makes calls that compute, load or save on this device fail with [`Status::Cancelled`],
    /// running ones within 50 ms, until [`uncancel`](Device::uncancel). An optimizer step under way
    /// is finished; after a cancelled backward the gradients are undefined until
    /// [`Model::zero_grad`].
    ///
    /// [`Status::Cancelled`]: crate::Status::Cancelled
    /// [`Model::zero_grad`]: crate::Model::zero_grad
    pub fn cancel(&self) {
        unsafe { sys::nn_device_cancel(self.raw(), 1) }
    }

    /// Lets calls compute again.
    pub fn uncancel(&self) {
        unsafe { sys::nn_device_cancel(self.raw(), 0) }
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Device").field(&self.0.handle).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// Whether a device has something to say depends on the machine, so the trampoline is called by
    /// hand.
    #[test]
    fn messages_reach_the_closure() {
        let said = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&said);
        let log: LogFn = Box::new(move |level, text| {
            kept.lock().unwrap().push((level, text.to_string()));
            assert!(text != "panic", "contained");
        });
        let user = &log as *const LogFn as *mut c_void;
        for (level, text) in [(1, "one"), (4, "panic"), (99, "\u{fc}")] {
            let text = c_string(text).unwrap();
            unsafe { on_log(level, text.as_ptr(), user) };
        }
        let expected =
            [(LogLevel::Error, "one"), (LogLevel::Debug, "panic"), (LogLevel::Debug, "\u{fc}")];
        assert_eq!(*said.lock().unwrap(), expected.map(|(level, text)| (level, text.to_string())));
    }
}
