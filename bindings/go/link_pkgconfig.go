//go:build !moenn_flags

package moenn

// #cgo pkg-config: moenn
import "C"
