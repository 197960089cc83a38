package moenn

import (
	"context"
	"errors"
	"reflect"
	"testing"
)

var bg = context.Background()

// must ends the test if a call failed.
func must[T any](t testing.TB) func(value T, err error) T {
	return func(value T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// fails checks that an error is of a kind and says why.
func fails(t testing.TB, err error, kind error) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("got %v, want %v", err, kind)
	} else if len(err.Error()) < len("moenn: ")+4 {
		t.Errorf("no message: %q", err)
	}
}

func equal[T any](t testing.TB, got, want T) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func testDevice(t testing.TB) *Device {
	t.Helper()
	d := must[*Device](t)(OpenDevice("cpu", &DeviceOptions{Threads: 1}))
	t.Cleanup(func() { d.Close() })
	return d
}

// a model that computes in no time
var testConfig = Config{VocabSize: ByteVocab, Context: 64, Layers: 2, Hidden: 32, Heads: 2, FFN: 32,
	Experts: 4, TopK: 2, AuxLossCoef: 0.01}

func testModel(t testing.TB, d *Device, seed uint64) *Model {
	t.Helper()
	m := must[*Model](t)(d.NewModel(testConfig, F32, seed))
	t.Cleanup(func() { m.Close() })
	return m
}

func ids(text string) []int32 {
	result := make([]int32, len(text))
	for i := range text {
		result[i] = int32(text[i])
	}
	return result
}

var tokens, targets = ids("the quick brown fox jumps over t"),
	ids("he quick brown fox jumps over th")
