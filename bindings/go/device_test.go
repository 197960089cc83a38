package moenn

import (
	"errors"
	"math"
	"strconv"
	"sync"
	"testing"
)

func TestVersion(t *testing.T) {
	equal(t, Version(),
		strconv.Itoa(VersionMajor)+"."+strconv.Itoa(VersionMinor)+"."+strconv.Itoa(VersionPatch))
	equal(t, ABIVersion(), HeaderABI)
	equal(t, ErrCapacity.String(), "NN_ERR_CAPACITY")
	equal(t, Status(-99).Error(), "unknown status")
}

func TestDevice(t *testing.T) {
	d := must[*Device](t)(OpenDevice("cpu", &DeviceOptions{Threads: 2, CPUPaths: CPUReference}))
	info := must[DeviceInfo](t)(d.Info())
	equal(t, info.Name, "cpu")
	equal(t, info.Threads, 2)
	equal(t, info.CPUPaths, CPUReference)
	if info.Model == "" {
		t.Error("no model")
	}
	equal(t, must[Memory](t)(d.Memory()).CurrentBytes, 0)
	equal(t, d.Close(), nil)
	equal(t, d.Close(), nil)
	_, err := d.Info()
	fails(t, err, ErrClosed)
	fails(t, err, ErrState)
	_, err = d.NewTensor(F32, 1)
	fails(t, err, ErrClosed)
	_, err = d.LoadModel(bg, "x", F32, nil)
	fails(t, err, ErrClosed)
	fails(t, d.Cancel(true), ErrClosed)
	_, err = (&Device{}).Memory()
	fails(t, err, ErrClosed)
	_, err = OpenDevice("abacus", nil)
	fails(t, err, ErrNotFound)
	_, err = OpenDevice("cpu\x00", nil)
	fails(t, err, ErrArgument)
	_, err = OpenDevice("cpu", &DeviceOptions{Threads: 2, Affinity: []int32{0}})
	fails(t, err, ErrArgument)
	pinned := must[*Device](t)(OpenDevice("cpu", &DeviceOptions{Threads: 1, Affinity: []int32{0}}))
	equal(t, pinned.Close(), nil)
}

func TestLog(t *testing.T) {
	var mutex sync.Mutex
	var heard []string
	log := func(level LogLevel, message string) {
		mutex.Lock()
		defer mutex.Unlock()
		heard = append(heard, strconv.Itoa(int(level))+" "+message)
	}
	// All paths there are: a processor that lacks one warns.
	d := must[*Device](t)(OpenDevice("cpu", &DeviceOptions{Threads: 1, Log: log, LogLevel: LogDebug,
		CPUPaths: CPUReference | CPUAVX2 | CPUAVX512}))
	m := must[*Model](t)(d.NewModel(testConfig, F32, 1))
	ok(t, d.Close())
	// as the library would; a processor with every path hears no other
	hear(m.place.log, LogWarning, "spoken")
	ok(t, m.Close())
	t.Logf("heard %q", heard)
	if len(heard) == 0 || heard[len(heard)-1] != "2 spoken" {
		t.Errorf("heard %q", heard)
	}
}

func TestStatuses(t *testing.T) { // those that no other test meets
	d := testDevice(t)
	_, err := d.NewTensor(F32, 1<<45)
	fails(t, err, ErrMemory)
	_, err = d.NewModel(testConfig, F64, 1)
	fails(t, err, ErrUnsupported)
	m := testModel(t, d, 1)
	ok(t, m.Prepare(&TrainOptions{Batch: 2, SeqLen: 16}))
	embedding := must[*Tensor](t)(m.Parameter("model.embed_tokens.weight"))
	ok(t, View(embedding, func(w []float32) {
		w[int(tokens[0])*testConfig.Hidden] = float32(math.NaN())
	}))
	_, err = m.Evaluate(bg, tokens, targets, 2)
	fails(t, err, ErrNonfinite)
	var e *Error
	if !errors.As(err, &e) || e.Status != ErrNonfinite || e.Message == "" || e.Cause != nil {
		t.Errorf("%#v", err)
	}
	// a right build on a sound CPU has neither
	for _, status := range []Status{ErrStructSize, ErrDevice} {
		fails(t, &Error{Status: status, Message: "as told"}, status)
	}
}
