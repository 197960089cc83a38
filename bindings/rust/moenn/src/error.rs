//! Statuses and messages of the library as errors.
use std::ffi::{CStr, CString};
use std::fmt;
use std::os::raw::c_char;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use moenn_sys as sys;

/// Why a call failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Status {
    /// An argument is out of range, or inconsistent with another.
    Argument,
    /// An option struct is of another release than the library.
    StructSize,
    /// Memory could not be had; nothing was lost.
    Memory,
    /// The operating system refused a file operation.
    Io,
    /// A file or text is not what its format requires.
    Format,
    /// Understood, but this library, build or device cannot do it.
    Unsupported,
    /// Calls in the wrong order, for example training before prepare.
    State,
    /// No preset, parameter, file or device of that name.
    NotFound,
    /// A loss or gradient norm is not finite; the step was refused.
    NonFinite,
    /// The device is cancelled, or a progress closure said so.
    Cancelled,
    /// A buffer, the context or the cache is too small.
    Capacity,
    /// A GPU refused a call, or is lost, and what lives on it can only be dropped.
    Device,
    /// A code that this crate does not know.
    Other(i32),
}

const CODES: [(Status, i32); 12] = [
    (Status::Argument, sys::NN_ERR_ARGUMENT),
    (Status::StructSize, sys::NN_ERR_STRUCT_SIZE),
    (Status::Memory, sys::NN_ERR_MEMORY),
    (Status::Io, sys::NN_ERR_IO),
    (Status::Format, sys::NN_ERR_FORMAT),
    (Status::Unsupported, sys::NN_ERR_UNSUPPORTED),
    (Status::State, sys::NN_ERR_STATE),
    (Status::NotFound, sys::NN_ERR_NOT_FOUND),
    (Status::NonFinite, sys::NN_ERR_NONFINITE),
    (Status::Cancelled, sys::NN_ERR_CANCELLED),
    (Status::Capacity, sys::NN_ERR_CAPACITY),
    (Status::Device, sys::NN_ERR_DEVICE),
];

impl Status {
    /// The library's number for it, negative.
    pub fn code(self) -> i32 {
        match self {
            Status::Other(code) => code,
            known => CODES.iter().find(|(status, _)| *status == known).map_or(0, |(_, code)| *code),
        }
    }
}

impl From<i32> for Status {
    fn from(code: i32) -> Status {
        CODES
            .iter()
            .find(|(_, known)| *known == code)
            .map_or(Status::Other(code), |(status, _)| *status)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(text(unsafe { sys::nn_status_name(self.code()) }))
    }
}

/// A failed call: its status, and in words what was asked, what was found, what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    status: Status,
    message: String,
}

impl Error {
    pub(crate) fn new(status: Status, message: impl Into<String>) -> Error {
        Error { status, message: message.into() }
    }

    pub(crate) fn argument(message: impl Into<String>) -> Error {
        Error::new(Status::Argument, message)
    }

    /// The kind of failure.
    pub fn status(&self) -> Status {
        self.status
    }

    /// The library's message.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.status, self.message)
    }
}

impl std::error::Error for Error {}

/// What fallible calls return.
pub type Result<T> = std::result::Result<T, Error>;

/// Turns a status into a result. To be called on the thread of the call that gave it, at once.
#[inline]
pub(crate) fn check(status: sys::nn_status_t) -> Result<()> {
    if status == sys::NN_OK {
        return Ok(());
    }
    let message = unsafe { CStr::from_ptr(sys::nn_last_error()) }.to_string_lossy();
    Err(Error::new(Status::from(status), message))
}

/// A string that the library owns. All but messages are names that it keeps in ASCII.
pub(crate) fn text<'a>(text: *const c_char) -> &'a str {
    if text.is_null() {
        return "";
    }
    unsafe { CStr::from_ptr(text) }.to_str().unwrap_or("")
}

pub(crate) fn c_string(text: impl Into<Vec<u8>>) -> Result<CString> {
    CString::new(text).map_err(|error| Error::argument(format!("a text holds a NUL: {error}")))
}

pub(crate) fn c_path(path: &Path) -> Result<CString> {
    c_string(path.as_os_str().as_bytes())
}

/// A size as the library takes it: the largest that it could be, where it does not fit.
pub(crate) fn int64(size: usize) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

pub(crate) fn int32(size: usize) -> i32 {
    i32::try_from(size).unwrap_or(i32::MAX)
}

/// A C enumeration as a Rust one.
macro_rules! c_enum {
    ($(#[$meta:meta])* $name:ident {
        $($(#[$variant_meta:meta])* $variant:ident = $value:ident,)*
    }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum $name { $($(#[$variant_meta])* $variant,)* }

        impl $name {
            #[allow(dead_code, clippy::unnecessary_cast)]
            pub(crate) fn raw(self) -> i32 {
                match self { $(Self::$variant => moenn_sys::$value as i32,)* }
            }

            #[allow(dead_code, clippy::unnecessary_cast)]
            pub(crate) fn from_raw(raw: i32) -> $crate::Result<Self> {
                $(if raw == moenn_sys::$value as i32 { return Ok(Self::$variant); })*
                Err($crate::Error::new(
                    $crate::Status::Unsupported,
                    format!(
                        "{} {raw} is of a newer library than this crate knows",
                        stringify!($name)
                    ),
                ))
            }
        }
    };
}
pub(crate) use c_enum;

/// A C struct that begins with its size, members zero where they are not given.
macro_rules! sized {
    ($name:ident { $($member:ident: $value:expr),* $(,)? }) => {{
        #[allow(clippy::needless_update)] /* all members may be given */
        let sized = moenn_sys::$name {
            struct_size: std::mem::size_of::<moenn_sys::$name>(),
            $($member: $value,)*
            ..Default::default()
        };
        sized
    }};
}
pub(crate) use sized;
