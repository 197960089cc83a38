package moenn

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

func TestConfig(t *testing.T) {
	small := must[Config](t)(Preset("small"))
	text := must[[]byte](t)(small.JSON())
	parsed := must[Config](t)(ParseConfig(text))
	equal(t, parsed.Experts, small.Experts)
	equal(t, parsed.Hidden, small.Hidden)
	_, err := Preset("enormous")
	fails(t, err, ErrNotFound)
	_, err = ParseConfig([]byte("{"))
	fails(t, err, ErrFormat)
	_, err = ParseConfig(nil)
	fails(t, err, ErrFormat)
	_, err = ParseConfig([]byte(`{"model_type": "abacus"}`))
	fails(t, err, ErrUnsupported)
	config := testConfig
	ok(t, config.Validate())
	equal(t, config.KVHeads, 2)
	equal(t, config.NormEps, 1e-5)
	config.TopK = 99
	fails(t, config.Validate(), ErrArgument)
	_, err = config.JSON()
	fails(t, err, ErrArgument)
}

// Every field goes to C and comes back.
func TestConfigFields(t *testing.T) {
	var config Config
	value := reflect.ValueOf(&config).Elem()
	for i := 0; i < value.NumField(); i++ {
		switch field := value.Field(i); field.Kind() {
		case reflect.Bool:
			field.SetBool(true)
		case reflect.Float32:
			field.SetFloat(float64(i + 1))
		case reflect.Array:
			for word := 0; word < field.Len(); word++ {
				if element := field.Index(word); element.Kind() == reflect.Float32 {
					element.SetFloat(float64(i + word))
				} else {
					element.SetUint(1<<63 + uint64(word))
				}
			}
		default:
			field.SetInt(int64(i + 1))
		}
	}
	c := config.c()
	equal(t, configOf(&c), config)
}

func TestPlan(t *testing.T) {
	d := testDevice(t)
	shape := &TrainOptions{Batch: 2, SeqLen: 16}
	plan := must[Plan](t)(d.PlanTraining(testConfig, F32, shape))
	m := testModel(t, d, 1)
	ok(t, m.Prepare(shape))
	o := must[*Optimizer](t)(m.NewOptimizer(nil))
	equal(t, must[Memory](t)(d.Memory()).CurrentBytes, plan.TotalBytes)
	ok(t, o.Close())
	ok(t, m.Close())
	serve := must[Plan](t)(d.PlanInference(testConfig, F32, &SessionOptions{MaxLen: 32}))
	if serve.CacheBytes == 0 || serve.GradientBytes != 0 {
		t.Errorf("%+v", serve)
	}
	_, err := d.PlanTraining(Config{}, F32, nil)
	fails(t, err, ErrArgument)
}

func TestTraining(t *testing.T) {
	d := testDevice(t)
	m := testModel(t, d, 1)
	_, err := m.NewOptimizer(nil)
	fails(t, err, ErrState)
	_, err = m.Backward(bg, tokens, targets, 2, 1)
	fails(t, err, ErrState)
	ok(t, m.Prepare(&TrainOptions{Batch: 2, SeqLen: 16}))
	o := must[*Optimizer](t)(m.NewOptimizer(&OptimizerOptions{GradClip: 1, WeightDecay: 0.1}))
	var first, last Loss
	for step := 0; step < 30; step++ {
		ok(t, m.ZeroGrad())
		ok(t, m.Accumulate(bg, tokens, targets, 2, 0.5))
		last = must[Loss](t)(m.Backward(bg, tokens, targets, 2, 0.5))
		if step == 0 {
			first = last
		}
		if norm := must[float64](t)(o.Step(bg, 1e-2)); norm <= 0 {
			t.Errorf("norm %v", norm)
		}
	}
	if last.Loss > first.Loss-1 || last.AuxLoss <= 0 || last.Targets != 32 {
		t.Errorf("from %+v to %+v", first, last)
	}
	equal(t, o.Steps(), 30)
	evaluated := must[Loss](t)(m.Evaluate(bg, tokens, targets, 2))
	logits := make([]float32, len(tokens)*ByteVocab)
	ok(t, m.Forward(bg, tokens, 2, logits))
	if evaluated.Loss > last.Loss || logits[len(logits)-1] == 0 {
		t.Errorf("evaluated %+v", evaluated)
	}
	fails(t, m.Forward(bg, tokens, 2, logits[1:]), ErrArgument)
	fails(t, m.Forward(bg, tokens, 3, logits), ErrArgument)
	_, err = m.Evaluate(bg, tokens, targets[1:], 2)
	fails(t, err, ErrArgument)
	_, err = m.Evaluate(bg, []int32{-1, 0}, []int32{0, 0}, 1)
	fails(t, err, ErrArgument)
}

func TestTrainedModel(t *testing.T) {
	m := testModel(t, testDevice(t), 1)
	ok(t, m.Prepare(&TrainOptions{Batch: 2, SeqLen: 16}))
	o := must[*Optimizer](t)(m.NewOptimizer(nil))
	ok(t, m.Accumulate(bg, tokens, targets, 2, 1))
	counts, prob := make([]int64, 4), make([]float64, 4)
	stats := must[ExpertStats](t)(m.ExpertStats(1, counts, prob))
	equal(t, []int64{stats.Tokens, counts[0] + counts[1] + counts[2] + counts[3]}, []int64{32, 64})
	_, err := m.ExpertStats(1, counts[1:], nil)
	fails(t, err, ErrArgument)
	ok(t, m.ResetExpertStats())
	equal(t, must[ExpertStats](t)(m.ExpertStats(0, nil, nil)).Tokens, 0)

	name := m.ParameterName(0)
	for _, view := range []*Tensor{must[*Tensor](t)(m.Parameter(name)),
		must[*Tensor](t)(m.Gradient(name)),
		must[*Tensor](t)(o.Moment(name, MomentFirst)), must[*Tensor](t)(o.Moment(name, MomentSecond))} {
		values := make([]float32, must[TensorInfo](t)(view.Info()).Elements)
		ok(t, CopyOut(view, values))
		ok(t, view.Close())
	}
	_, err = m.Parameter("nobody")
	fails(t, err, ErrNotFound)
	equal(t, m.ParameterName(-1), "")
	equal(t, m.ParameterName(m.ParameterCount()), "")

	ok(t, m.Close()) // the optimizer keeps what it needs
	must[float64](t)(o.Step(bg, 1e-3))
	ok(t, o.Close())
	_, err = o.Step(bg, 1e-3)
	fails(t, err, ErrClosed)
	equal(t, o.Steps(), 0)
	equal(t, m.ParameterCount(), 0)
	_, err = m.Config()
	fails(t, err, ErrClosed)
	_, err = m.NewSession(nil)
	fails(t, err, ErrClosed)
	fails(t, m.Save(bg, t.TempDir(), nil), ErrClosed)
}

func TestSchedule(t *testing.T) {
	s := Schedule{Kind: ScheduleLinear, LR: 1, WarmupSteps: 10, TotalSteps: 110}
	for step, want := range map[int64]float32{0: 0.1, 9: 1, 60: 0.5, 110: 0, 1000: 0} {
		equal(t, must[float32](t)(s.At(step)), want)
	}
	_, err := s.At(-1)
	fails(t, err, ErrArgument)
}

func TestFiles(t *testing.T) {
	d := testDevice(t)
	m := testModel(t, d, 5)
	folder := filepath.Join(t.TempDir(), "model")
	var done, total int64
	ok(t, m.Save(bg, folder, &FileOptions{ShardBytes: 50000, Progress: func(a, b int64) error {
		done, total = a, b
		return nil
	}}))
	if done == 0 || done != total {
		t.Errorf("%d of %d", done, total)
	}
	loaded := must[*Model](t)(d.LoadModel(bg, folder, DTypeFile, nil))
	equal(t, loaded.LossScale(), 1.0)
	equal(t, must[*Model](t)(d.LoadModel(bg, folder, F16, nil)).LossScale(), 65536.0)
	want, got := must[Config](t)(m.Config()), must[Config](t)(loaded.Config())
	equal(t, got.Layers, want.Layers)
	ok(t, loaded.Close())

	stop := errors.New("enough")
	stops := &FileOptions{Progress: func(int64, int64) error { return stop }}
	_, err := d.LoadModel(bg, folder, F32, stops)
	fails(t, err, ErrCancelled)
	fails(t, err, stop)
	fails(t, m.Save(bg, folder, stops), stop)
	func() {
		defer func() { equal(t, recover(), any("oops")) }()
		d.LoadModel(bg, folder, F32, &FileOptions{Progress: func(int64, int64) error { panic("oops") }})
	}()
	ctx, cancel := context.WithCancel(bg)
	_, err = d.LoadModel(ctx, folder, F32, &FileOptions{Progress: func(int64, int64) error {
		cancel()
		return nil
	}})
	fails(t, err, ErrCancelled)
	fails(t, err, context.Canceled)
	fails(t, m.Save(ctx, folder, nil), context.Canceled)
	_, err = d.LoadModel(bg, filepath.Join(folder, "none"), F32, nil)
	fails(t, err, ErrNotFound)
	ok(t, os.WriteFile(filepath.Join(folder, "config.json"), []byte("{"), 0o600))
	_, err = d.LoadModel(bg, folder, F32, nil)
	fails(t, err, ErrFormat)
	fails(t, m.Save(bg, "/proc/version/model", nil), ErrIO)

	ok(t, m.Prepare(&TrainOptions{SeqLen: 8}))
	o := must[*Optimizer](t)(m.NewOptimizer(nil))
	ok(t, o.SetSteps(7))
	path := filepath.Join(t.TempDir(), "adam.safetensors")
	ok(t, o.Save(bg, path))
	ok(t, o.SetSteps(0))
	ok(t, o.Load(bg, path))
	equal(t, o.Steps(), 7)
	fails(t, o.Load(ctx, path), context.Canceled)
	fails(t, o.SetSteps(-1), ErrArgument)
}

func TestLLMC(t *testing.T) {
	d := testDevice(t)
	config := must[Config](t)(Preset("gpt2-124m"))
	config.Layers, config.Hidden, config.FFN = 1, 32, 128
	config.Heads, config.HeadDim, config.KVHeads = 2, 0, 0
	config.VocabSize, config.Context = 128, 16
	m := must[*Model](t)(d.NewModel(config, F32, 1))
	defer m.Close()
	path := filepath.Join(t.TempDir(), "gpt2.bin")
	ok(t, m.SaveLLMC(bg, path, nil))
	loaded := must[*Model](t)(d.LoadLLMC(bg, path, F32, nil))
	equal(t, loaded.ParameterCount(), m.ParameterCount())
	ok(t, loaded.Close())
	fails(t, testModel(t, d, 1).SaveLLMC(bg, path, nil), ErrUnsupported)
}
