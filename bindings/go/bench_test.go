package moenn

import "testing"

// A getter that only reads a number.
func BenchmarkGetter(b *testing.B) {
	m := testModel(b, testDevice(b), 1)
	for i := 0; i < b.N; i++ {
		m.ParameterCount()
	}
}

// A call that can fail and has a result.
func BenchmarkInfo(b *testing.B) {
	d := testDevice(b)
	for i := 0; i < b.N; i++ {
		if _, err := d.Memory(); err != nil {
			b.Fatal(err)
		}
	}
}

// One training step of "small" on batches of 4 x 256; testdata/step.c does the same in C.
func BenchmarkStep(b *testing.B) {
	config := must[Config](b)(Preset("small"))
	d := testDevice(b)
	m := must[*Model](b)(d.NewModel(config, F32, 1))
	defer m.Close()
	ok(b, m.Prepare(&TrainOptions{Batch: 4, SeqLen: 256}))
	o := must[*Optimizer](b)(m.NewOptimizer(nil))
	defer o.Close()
	ids := make([]int32, 4*256)
	for i := range ids {
		ids[i] = int32(i % 251)
	}
	b.ResetTimer()
	for i := 0; i < b.N; i++ {
		ok(b, m.ZeroGrad())
		must[Loss](b)(m.Backward(bg, ids, ids, 4, 1))
		must[float64](b)(o.Step(bg, 1e-4))
	}
}
