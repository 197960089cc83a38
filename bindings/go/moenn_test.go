package moenn

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"unsafe"
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

func TestTensor(t *testing.T) {
	d := testDevice(t)
	x := must[*Tensor](t)(d.NewTensor(F32, 2, 3))
	info := must[TensorInfo](t)(x.Info())
	equal(t, info.Shape, []int{2, 3})
	equal(t, info.Strides, []int{3, 1})
	equal(t, info.Elements, 6)
	equal(t, info.DType, F32)
	ok(t, CopyIn(x, []float32{1, 2, 3, 4, 5, 6}))
	view := must[*Tensor](t)(x.Slice(1, 1, 3))
	got := make([]float32, 4)
	ok(t, CopyOut(view, got))
	equal(t, got, []float32{2, 3, 5, 6})
	fails(t, View(view, func([]float32) {}), ErrUnsupported)
	ok(t, View(x, func(elements []float32) {
		equal(t, unsafe.Pointer(&elements[0]), info.Data)
		elements[1] = 7
	}))
	ok(t, x.Close())
	ok(t, x.Close())
	ok(t, CopyOut(view, got)) // a view keeps what it views
	equal(t, got[0], 7)
	fails(t, CopyOut(view, got[:3]), ErrArgument)
	fails(t, CopyOut(view, []int32{1, 2, 3, 4}), ErrArgument)
	fails(t, CopyIn(x, got), ErrClosed)
	_, err := x.Slice(0, 0, 1)
	fails(t, err, ErrClosed)
	_, err = view.Slice(2, 0, 1)
	fails(t, err, ErrArgument)
	_, err = d.NewTensor(F32, 1, 1, 1, 1, 1, 1, 1, 1, 1)
	fails(t, err, ErrArgument)
	scalar := must[*Tensor](t)(d.NewTensor(F64))
	equal(t, must[TensorInfo](t)(scalar.Info()).Elements, 1)
	ok(t, View(scalar, func(elements []float64) { elements[0] = math.Pi }))
	empty := must[*Tensor](t)(d.NewTensor(Bool, 0))
	ok(t, CopyIn(empty, []bool{}))
	ok(t, View(empty, func(elements []bool) { equal(t, len(elements), 0) }))
	equal(t, []int{BF16.Bytes(), I64.Bytes(), Bool.Bytes(), DType(99).Bytes()}, []int{2, 8, 1, 0})
	for _, other := range []*Tensor{view, scalar, empty} {
		ok(t, other.Close())
	}
	equal(t, must[Memory](t)(d.Memory()).CurrentBytes, 0)
}

func TestElementTypes(t *testing.T) {
	d := testDevice(t)
	roundTrip[float32](t, d, F32, 1.5)
	roundTrip[float64](t, d, F64, 1.5)
	roundTrip[uint16](t, d, BF16, 0x3f80)
	roundTrip[uint16](t, d, F16, 0x3c00)
	roundTrip[int64](t, d, I64, -5)
	roundTrip[int32](t, d, I32, -5)
	roundTrip[int16](t, d, I16, -5)
	roundTrip[int8](t, d, I8, -5)
	roundTrip[uint8](t, d, U8, 5)
	roundTrip(t, d, Bool, true)
}

func roundTrip[T Element](t *testing.T, d *Device, dtype DType, value T) {
	x := must[*Tensor](t)(d.NewTensor(dtype, 3))
	defer x.Close()
	got := make([]T, 3)
	ok(t, CopyIn(x, []T{value, value, value}))
	ok(t, CopyOut(x, got))
	equal(t, got, []T{value, value, value})
}

func TestWrapAndDLPack(t *testing.T) {
	d := testDevice(t)
	page := must[[]byte](t)(syscall.Mmap(-1, 0, 4096, syscall.PROT_READ|syscall.PROT_WRITE,
		syscall.MAP_PRIVATE|syscall.MAP_ANON))
	defer syscall.Munmap(page)
	x := must[*Tensor](t)(d.WrapTensor(unsafe.Pointer(&page[0]), I32, []int{2, 2}, []int{1, 2}))
	ok(t, CopyIn(x, []int32{1, 2, 3, 4}))
	equal(t, []byte{page[0], page[4], page[8], page[12]}, []byte{1, 3, 2, 4})
	managed := must[unsafe.Pointer](t)(x.ToDLPack())
	ok(t, x.Close())
	y := must[*Tensor](t)(d.FromDLPack(managed))
	got := make([]int32, 4)
	ok(t, CopyOut(y, got))
	equal(t, got, []int32{1, 2, 3, 4})
	ok(t, y.Close())
	_, err := d.WrapTensor(unsafe.Pointer(&page[0]), I32, []int{2, 2}, []int{1})
	fails(t, err, ErrArgument)
	_, err = d.FromDLPack(nil)
	fails(t, err, ErrArgument)
	_, err = x.ToDLPack()
	fails(t, err, ErrClosed)
}

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

	counts, prob := make([]int64, 4), make([]float64, 4)
	stats := must[ExpertStats](t)(m.ExpertStats(1, counts, prob))
	equal(t, counts[0]+counts[1]+counts[2]+counts[3], 2*stats.Tokens)
	_, err = m.ExpertStats(1, counts[1:], nil)
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

// The text of ids, one by one.
func streamed(t *testing.T, tokenizer *Tokenizer, ids []int32) (text []byte) {
	stream := tokenizer.NewTextStream(false)
	for _, id := range ids {
		text = must[[]byte](t)(stream.Push(text, id))
	}
	return must[[]byte](t)(stream.Finish(text))
}

func TestSpecialTokens(t *testing.T) {
	b := must[*Tokenizer](t)(NewByteTokenizer())
	defer b.Close()
	equal(t, b.Special(BOS), int32(ByteBOS))
	equal(t, b.Special(EOS), int32(ByteEOS))
	equal(t, b.Special(Pad), int32(BytePad))
	equal(t, b.Special(Unk), int32(-1))
	equal(t, must[string](t)(b.Token(ByteEOS)), "<|eos|>")
	equal(t, b.ID("<|eos|>"), int32(ByteEOS))
	equal(t, b.ID("eos"), int32(-1))
	ids, places, err := b.EncodeWith("é<|eos|>", EncodeOptions{ParseSpecial: true, AddSpecial: true})
	ok(t, err)
	equal(t, ids, []int32{0xC3, 0xA9, ByteEOS})
	equal(t, places, [][2]int64{{0, 2}, {0, 2}, {2, 9}})
	equal(t, string(must[[]byte](t)(b.DecodeSpecial(nil, ids))), "é<|eos|>")
	equal(t, string(streamed(t, b, append(ids, 0xE2))), "é\uFFFD")
	stream := b.NewTextStream(true)
	equal(t, string(must[[]byte](t)(stream.Push(nil, 0xC3))), "")
	equal(t, string(must[[]byte](t)(stream.Push(nil, 0xA9))), "é")
	equal(t, string(must[[]byte](t)(stream.Push(nil, ByteEOS))), "<|eos|>")
}

func TestLoadTokenizer(t *testing.T) {
	folder := t.TempDir()
	model := `{"model": {"type": "WordLevel", "vocab": {"a": 0, "?": 1}, "unk_token": "?"}}`
	ok(t, os.WriteFile(filepath.Join(folder, "tokenizer.json"), []byte(model), 0o600))
	tokenizer := must[*Tokenizer](t)(LoadTokenizer(folder))
	defer tokenizer.Close()
	equal(t, must[[]int32](t)(tokenizer.Encode(nil, "b")), []int32{1})
	equal(t, tokenizer.Special(Unk), int32(1))
	if _, err := LoadTokenizer(filepath.Join(folder, "none")); !errors.Is(err, ErrNotFound) {
		t.Errorf("a tokenizer that is not there: %v", err)
	}
}

func TestTrainTokenizer(t *testing.T) {
	texts, folder, heard := []string{"low lower lowest", "new newer newest low"}, t.TempDir(), 0
	options := TokenizerTrainOptions{VocabSize: 270, MinFrequency: 1,
		Specials: []string{"<|end|>", "<pad>"},
		Eos:      "<|end|>", Progress: func(done, total int64) error {
			equal(t, [2]int64{done, total}, [2]int64{36, 36})
			heard++
			return nil
		}}
	tokenizer := must[*Tokenizer](t)(TrainTokenizer(bg, texts, &options))
	defer tokenizer.Close()
	equal(t, heard > 0, true)
	equal(t, tokenizer.VocabSize(), 270)
	equal(t, tokenizer.Special(EOS), int32(0))
	equal(t, tokenizer.Special(Pad), int32(1))
	equal(t, tokenizer.ID("low") > 0, true)

	ok(t, tokenizer.Save(folder))
	again := must[*Tokenizer](t)(LoadTokenizer(folder))
	defer again.Close()
	equal(t, must[[]int32](t)(again.Encode(nil, "newest")),
		must[[]int32](t)(tokenizer.Encode(nil, "newest")))
	ok(t, tokenizer.SaveLLMC(filepath.Join(folder, "tokenizer.bin")))
	text := filepath.Join(folder, "text")
	ok(t, os.WriteFile(text, []byte("low low\nlower"), 0o600))
	pieces := must[*Tokenizer](t)(TrainTokenizerFiles(bg, []string{text},
		&TokenizerTrainOptions{Kind: Unigram, VocabSize: 20, Specials: []string{"<unk>"}, Coverage: 1}))
	defer pieces.Close()
	ids := must[[]int32](t)(pieces.Encode(nil, "lower low"))
	equal(t, string(must[[]byte](t)(pieces.Decode(nil, ids))), "lower low")
	_, err := LoadTiktoken(text, ".")
	fails(t, err, ErrFormat)
	_, err = TrainTokenizer(bg, texts, &TokenizerTrainOptions{Kind: Unigram})
	fails(t, err, ErrArgument)
	_, err = TrainTokenizer(bg, texts, &TokenizerTrainOptions{
		Progress: func(done, total int64) error { return os.ErrClosed }})
	fails(t, err, ErrCancelled)
	equal(t, errors.Is(err, os.ErrClosed), true)
	over, end := context.WithCancel(bg)
	end()
	_, err = TrainTokenizer(over, texts, nil)
	fails(t, err, ErrCancelled)

	tokens := filepath.Join(folder, "tokens")
	ok(t, SaveTokens(tokens, []int32{1, 65535}))
	dataset := must[*Dataset](t)(OpenTokens(tokens, DatasetOptions{SeqLen: 1}))
	defer dataset.Close()
	equal(t, must[DatasetInfo](t)(dataset.Info()).MaxID, int32(65535))
	fails(t, SaveTokens(tokens, []int32{65536}), ErrUnsupported)
}

func TestTokenizer(t *testing.T) {
	b := must[*Tokenizer](t)(NewByteTokenizer())
	equal(t, b.VocabSize(), ByteVocab)
	got := must[[]int32](t)(b.Encode([]int32{ByteBOS}, "héllo\x00"))
	equal(t, got, []int32{256, 104, 195, 169, 108, 108, 111, 0})
	text := must[[]byte](t)(b.Decode([]byte("> "), got))
	equal(t, string(text), "> héllo\x00")
	equal(t, len(must[[]int32](t)(b.Encode(nil, ""))), 0)
	room := make([]int32, 0, 100)
	equal(t, &must[[]int32](t)(b.Encode(room, "in place"))[0], &room[:1][0])
	_, err := b.Decode(nil, []int32{ByteVocab})
	fails(t, err, ErrArgument)
	ok(t, b.Close())
	ok(t, b.Close())
	_, err = b.Encode(nil, "x")
	fails(t, err, ErrClosed)
	equal(t, b.VocabSize(), 0)
	_, err = OpenText("moenn_test.go", b, DatasetOptions{SeqLen: 4})
	fails(t, err, ErrClosed)
}

func TestDataset(t *testing.T) {
	d := must[*Dataset](t)(NewDataset([]int32{1, 2, 3, 4, 5}, DatasetOptions{Batch: 1, SeqLen: 2}))
	info := must[DatasetInfo](t)(d.Info())
	equal(t, info, DatasetInfo{Tokens: 5, Windows: 2, Batches: 2, MaxID: 5})
	a, b := make([]int32, 2), make([]int32, 2)
	ok(t, d.Next(a, b))
	equal(t, append(a[:2:2], b...), []int32{1, 2, 2, 3})
	equal(t, d.Position(), 1)
	ok(t, d.SetPosition(3))
	ok(t, d.Next(a, b))
	equal(t, a, []int32{3, 4})
	fails(t, d.SetPosition(-1), ErrArgument)
	fails(t, d.Next(a[:1], b), ErrArgument)
	fails(t, d.Next(a, nil), ErrArgument)
	ok(t, d.Close())
	ok(t, d.Close())
	fails(t, d.Next(a, b), ErrClosed)
	_, err := NewDataset(nil, DatasetOptions{SeqLen: 2})
	fails(t, err, ErrArgument)
	path := filepath.Join(t.TempDir(), "text")
	ok(t, os.WriteFile(path, []byte("abcdefgh"), 0o600))
	bytes := must[*Tokenizer](t)(NewByteTokenizer())
	for _, by := range []*Tokenizer{nil, bytes} {
		text := must[*Dataset](t)(OpenText(path, by, DatasetOptions{SeqLen: 2, Begin: 2, Shuffle: true}))
		equal(t, must[DatasetInfo](t)(text.Info()).Tokens, 6)
		ok(t, text.Close())
	}
	ok(t, bytes.Close())
	_, err = OpenText(path+"-none", nil, DatasetOptions{SeqLen: 2})
	fails(t, err, ErrNotFound)
	_, err = OpenTokens(path, DatasetOptions{SeqLen: 2})
	fails(t, err, ErrFormat)
}

func TestSession(t *testing.T) {
	d := testDevice(t)
	m := testModel(t, d, 1)
	s := must[*Session](t)(m.NewSession(&SessionOptions{Batch: 2, MaxLen: 32}))
	_, err := s.Sample(bg, 0, nil)
	fails(t, err, ErrState)
	logits := make([]float32, 2*ByteVocab)
	ok(t, s.Prefill(bg, 0, ids("abc"), logits[:ByteVocab]))
	ok(t, s.Decode(bg, []int32{'d', -1}, logits))
	equal(t, []int{s.Len(0), s.Len(1), s.Len(9)}, []int{4, 0, 0})
	best := 0
	for i, value := range logits[:ByteVocab] {
		if value > logits[best] {
			best = i
		}
	}
	equal(t, must[int32](t)(s.Sample(bg, 0, nil)), int32(best))
	ok(t, s.Truncate(0, 1))
	equal(t, s.Len(0), 1)
	fails(t, s.Truncate(0, 5), ErrArgument)
	fails(t, s.Decode(bg, []int32{1}, nil), ErrArgument)
	fails(t, s.Prefill(bg, 0, nil, nil), ErrArgument)
	fails(t, s.Prefill(bg, 0, ids("a"), logits), ErrArgument)
	fails(t, s.Prefill(bg, 0, make([]int32, 33), nil), ErrCapacity)
	stats := must[ExpertStats](t)(s.ExpertStats(0, make([]int64, 4), nil))
	equal(t, stats.Tokens, 4)

	// Generation: into a slice, to a callback, to a writer.
	sampling := &SampleOptions{Temperature: 1, TopK: 50, TopP: 0.9, MinP: 0.01, RepetitionPenalty: 1.1,
		Seed: 3}
	made := make([]int32, 5)
	n, reason, err := s.Generate(bg, 1, ids("ab"), made, &GenerateOptions{Sampling: sampling})
	ok(t, err)
	equal(t, n, 5)
	equal(t, reason, StopLength)
	var heard []int32
	ok(t, s.Truncate(1, 0))
	n, reason, err = s.Generate(bg, 1, ids("ab"), nil, &GenerateOptions{Sampling: sampling,
		OnToken: func(token int32, index int64) bool {
			heard = append(heard, token)
			return index < 2
		}})
	ok(t, err)
	equal(t, reason, StopCallback)
	equal(t, heard, made[:n])
	equal(t, n, 3)
	ok(t, s.Truncate(1, 0))
	_, reason, err = s.Generate(bg, 1, ids("ab"), nil,
		&GenerateOptions{Sampling: sampling, StopIDs: made[1:2]})
	ok(t, err)
	equal(t, reason, StopID)
	ok(t, s.Truncate(1, 0))
	_, reason, err = s.Generate(bg, 1, ids("ab"), nil, nil)
	ok(t, err)
	equal(t, reason, StopContext)

	bytesTokenizer := must[*Tokenizer](t)(NewByteTokenizer())
	ok(t, s.Truncate(1, 0))
	var text bytes.Buffer
	reason = must[StopReason](t)(s.GenerateText(bg, &text, bytesTokenizer, 1, "ab",
		&GenerateOptions{Sampling: sampling, MaxTokens: 5}))
	equal(t, reason, StopLength)
	equal(t, text.Bytes(), streamed(t, bytesTokenizer, made))
	ok(t, s.Truncate(1, 0))
	_, err = s.GenerateText(bg, failingWriter{}, bytesTokenizer, 1, "ab", nil)
	fails(t, err, io.ErrShortWrite)
	_, _, err = s.Generate(bg, 7, ids("a"), nil, nil)
	fails(t, err, ErrArgument)
	_, _, err = s.Generate(bg, 0, ids("a"), []int32{}, nil)
	fails(t, err, ErrArgument)

	// A panic in a callback is the caller's, and the session goes on.
	func() {
		defer func() { equal(t, recover(), any("oops")) }()
		s.Generate(bg, 0, ids("ab"), nil, &GenerateOptions{OnToken: func(int32, int64) bool {
			panic("oops")
		}})
	}()
	ok(t, s.Truncate(0, 0))
	// A callback may use other handles of the device.
	_, _, err = s.Generate(bg, 0, ids("ab"), nil, &GenerateOptions{OnToken: func(int32, int64) bool {
		return m.Prepare(&TrainOptions{SeqLen: 8}) == nil && m.ZeroGrad() == nil && false
	}})
	ok(t, err)

	ok(t, m.Close())
	ok(t, d.Close())
	ok(t, s.Decode(bg, []int32{'a', -1}, nil)) // a session keeps what it needs
	ok(t, s.Close())
	ok(t, s.Close())
	fails(t, s.Prefill(bg, 0, ids("a"), nil), ErrClosed)
	equal(t, s.Len(0), 0)
	_, _, err = s.Generate(bg, 0, ids("a"), nil, nil)
	fails(t, err, ErrClosed)
}

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, io.ErrShortWrite }

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
