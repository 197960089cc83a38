//go:build moenn_flags

package moenn

// #cgo LDFLAGS: -lmoenn
import "C"
