package moenn

// #include "bridge.h"
import "C"

import (
	"fmt"
	"runtime"
)

// Release and binary interface of the header that this package was compiled against.
const (
	VersionMajor = C.NN_VERSION_MAJOR
	VersionMinor = C.NN_VERSION_MINOR
	VersionPatch = C.NN_VERSION_PATCH
	HeaderABI    = C.NN_ABI_VERSION
)

// Version is the release of the library that is running, as "major.minor.patch".
func Version() string { return C.GoString(C.nn_version()) }

// ABIVersion is the binary interface of the library that is running; compare with [HeaderABI].
func ABIVersion() int { return int(C.nn_abi_version()) }

// Status says what kind of failure an [Error] is: errors.Is(err, moenn.ErrIO).
type Status int32

// The kinds of failure.
const (
	OK             Status = C.NN_OK
	ErrArgument    Status = C.NN_ERR_ARGUMENT    // An argument is out of range or does not fit.
	ErrStructSize  Status = C.NN_ERR_STRUCT_SIZE // The library lacks what this package uses.
	ErrMemory      Status = C.NN_ERR_MEMORY      // Memory could not be had; nothing was lost.
	ErrIO          Status = C.NN_ERR_IO          // The operating system refused a file operation.
	ErrFormat      Status = C.NN_ERR_FORMAT      // A file or text is not what its format requires.
	ErrUnsupported Status = C.NN_ERR_UNSUPPORTED // This library, build or device cannot do it.
	ErrState       Status = C.NN_ERR_STATE       // Calls in the wrong order: training before Prepare.
	ErrNotFound    Status = C.NN_ERR_NOT_FOUND   // No preset, parameter, file or device of that name.
	ErrNonfinite   Status = C.NN_ERR_NONFINITE   // A loss or gradient norm is not finite.
	ErrCancelled   Status = C.NN_ERR_CANCELLED   // By the context, a callback or Device.Cancel.
	ErrCapacity    Status = C.NN_ERR_CAPACITY    // The buffer, context or cache is too small.
	ErrDevice      Status = C.NN_ERR_DEVICE      // A GPU refused a call, or is lost.
)

// String is the name of the status in moenn.h.
func (s Status) String() string { return C.GoString(C.nn_status_name(C.nn_status_t(s))) }

// Error makes a Status a target of errors.Is.
func (s Status) Error() string { return s.String() }

// Error is a failed call.
type Error struct {
	Status  Status
	Message string // What was asked, what was found, what to do.
	Cause   error  // The context's error or the callback's that ended the call, or nil.
}

func (e *Error) Error() string {
	if e.Cause != nil {
		return fmt.Sprintf("moenn: %s: %v", e.Message, e.Cause)
	}
	return "moenn: " + e.Message
}

// Is says whether target is the error's Status.
func (e *Error) Is(target error) bool { return target == error(e.Status) }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Cause }

// ErrClosed is the error of a call on a closed handle; it is also [ErrState].
var ErrClosed error = &Error{Status: ErrState, Message: "the handle is closed"}

func argumentError(format string, values ...any) error {
	return &Error{Status: ErrArgument, Message: fmt.Sprintf(format, values...)}
}

func cancelled(cause error) error {
	return &Error{Status: ErrCancelled, Message: "cancelled", Cause: cause}
}

// call makes one call into C. Its message belongs to the OS thread, which must therefore stay the
// same until the message is read.
func call(f func() C.nn_status_t) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if status := f(); status != C.NN_OK {
		return &Error{Status: Status(status), Message: C.GoString(C.nn_last_error())}
	}
	return nil
}
