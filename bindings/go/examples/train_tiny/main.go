// Command train_tiny trains a small mixture-of-experts language model on a text, byte by byte:
// measures it, lets it write, saves it, and proves that what was saved is the same model. The same
// text, seed and steps give the same losses as examples/train_tiny.c, to the last bit.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"math"
	"os"
	"os/signal"
	"time"

	"moenn"
)

const (
	batch, length = 4, 256                // sequences in a step, bytes in a sequence
	shortest      = (length + 1) * 10 / 9 // bytes of a text
	parts         = 20                    // progress lines
	shortCheck    = 16                    // batches of a validation on the way
)

const usage = `usage: train_tiny TEXT [options]
Trains a small mixture-of-experts model on the bytes of a file: the first 90 % train, the
last 10 % validate.
`

var (
	minutes = flag.Float64("minutes", 1.2, "train for so many minutes")
	steps   = flag.Int64("steps", 0, "train for so many steps instead: the same losses on every run")
	seed    = flag.Uint64("seed", 1, "of weights, data and sample")
	name    = flag.String("device", "cpu", "cpu, or cuda:0")
	threads = flag.Int("threads", 0, "threads that compute (default one per core)")
	out     = flag.String("out", "tiny-model", "folder where the model is saved, before and after")

	shape           = moenn.TrainOptions{Batch: batch, SeqLen: length}
	tokens, targets = make([]int32, batch*length), make([]int32, batch*length)
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("train_tiny: ")
	text := readArguments()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	go func() { <-ctx.Done(); stop() }() // a second Ctrl-C leaves at once
	if err := run(ctx, text); err != nil {
		log.Fatal(err)
	}
	if ctx.Err() != nil {
		os.Exit(130)
	}
}

// readArguments takes options before and after the text.
func readArguments() (text string) {
	flag.Usage = func() {
		fmt.Fprint(flag.CommandLine.Output(), usage)
		flag.PrintDefaults()
	}
	flag.Parse()
	for flag.NArg() > 0 && text == "" {
		text = flag.Arg(0)
		_ = flag.CommandLine.Parse(flag.Args()[1:]) // ends the program on an error
	}
	if text == "" || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	return text
}

func run(ctx context.Context, text string) error {
	data, valid, err := openText(text)
	if err != nil {
		return err
	}
	defer data.Close()
	defer valid.Close()
	device, err := moenn.OpenDevice(*name, &moenn.DeviceOptions{Threads: *threads})
	if err != nil {
		return err
	}
	defer device.Close()
	config, err := moenn.Preset("small")
	if err != nil {
		return err
	}
	model, err := device.NewModel(config, moenn.F32, *seed)
	if err != nil {
		return err
	}
	defer model.Close()
	if err := model.Prepare(&shape); err != nil {
		return err
	}
	if err := model.Save(ctx, *out, nil); err != nil { // a bad folder is found now, not after hours
		return err
	}
	err = train(ctx, device, model, data, valid)
	if err == nil {
		err = measure(ctx, model, valid, config.Layers)
	}
	if err == nil {
		err = writeSample(ctx, model)
	}
	if err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return saveAndProve(device, model)
}

func openText(path string) (data, valid *moenn.Dataset, err error) {
	file, err := os.Stat(path)
	if err != nil {
		return nil, nil, err
	}
	if file.Size() < shortest {
		return nil, nil, fmt.Errorf("%s: has %d bytes and needs %d", path, file.Size(), shortest)
	}
	split := file.Size() - file.Size()/10
	options := moenn.DatasetOptions{Batch: batch, SeqLen: length, Seed: *seed, Begin: split}
	if valid, err = moenn.OpenText(path, nil, options); err != nil {
		return nil, nil, err
	}
	options.Begin, options.End, options.Shuffle = 0, split, true
	data, err = moenn.OpenText(path, nil, options)
	return data, valid, err
}

func train(ctx context.Context, device *moenn.Device, model *moenn.Model,
	data, valid *moenn.Dataset) error {
	schedule := moenn.Schedule{Kind: moenn.ScheduleCosine, LR: 1.5e-3, MinLR: 1.5e-5,
		WarmupSteps: 50, TotalSteps: 1000} // = the run
	adamw, err := model.NewOptimizer(&moenn.OptimizerOptions{WeightDecay: 0.1, GradClip: 1})
	if err != nil {
		return err
	}
	defer adamw.Close()
	memory, err := device.Memory()
	if err != nil {
		return err
	}
	start := time.Now()
	share, lines := 0.0, 0 // of the run that is done
	for step := int64(1); share < 1; step++ {
		if err := data.Next(tokens, targets); err != nil {
			return err
		}
		if err := model.ZeroGrad(); err != nil {
			return err
		}
		loss, err := model.Backward(ctx, tokens, targets, batch, 1)
		if err != nil {
			return err
		}
		lr, err := schedule.At(int64(share * 1000))
		if err != nil {
			return err
		}
		if _, err := adamw.Step(ctx, lr); err != nil {
			return err
		}
		spent, done := time.Since(start).Seconds(), float64(step)
		share = spent / (60 * *minutes)
		if *steps > 0 {
			share = done / float64(*steps)
		}
		if share*parts < float64(lines+1) {
			continue
		}
		lines++
		fmt.Printf("step %4d  loss %.4f  %.0f tokens/s  %.0f MB  %.0f s left\n", step, loss.Loss,
			done*batch*length/spent, 1e-6*float64(memory.CurrentBytes), math.Max(0, spent/share-spent))
		if lines%5 == 0 && share < 1 {
			nats, err := validate(ctx, model, valid, shortCheck)
			if err != nil {
				return err
			}
			fmt.Printf("validation loss about %.4f\n", nats)
		}
	}
	return nil
}

// validate returns the nats per byte over the validation part, or its first batches.
func validate(ctx context.Context, model *moenn.Model, valid *moenn.Dataset,
	batches int64) (float64, error) {
	info, err := valid.Info()
	if err != nil {
		return 0, err
	}
	if err := valid.SetPosition(0); err != nil {
		return 0, err
	}
	var nats, bytes float64
	for i := int64(0); i < batches && i < info.Batches; i++ {
		if err := valid.Next(tokens, targets); err != nil {
			return 0, err
		}
		loss, err := model.Evaluate(ctx, tokens, targets, batch)
		if err != nil {
			return 0, err
		}
		nats += float64(loss.Loss * float64(loss.Targets)) // the conversion keeps Go from fusing the sum
		bytes += float64(loss.Targets)
	}
	return nats / bytes, nil
}

// measure prints the validation loss, and how evenly it used the experts.
func measure(ctx context.Context, model *moenn.Model, valid *moenn.Dataset, layers int) error {
	if err := model.ResetExpertStats(); err != nil {
		return err
	}
	loss, err := validate(ctx, model, valid, math.MaxInt64)
	if err != nil {
		return err
	}
	fmt.Printf("validation loss %.4f nats per byte\n", loss)
	for layer := 0; layer < layers; layer++ {
		use, err := model.ExpertStats(layer, nil, nil)
		if err != nil {
			return err
		}
		fmt.Printf("layer %d: entropy of expert use %.3f of 1, the busiest has %.2f times its share\n",
			layer, use.Entropy, use.MaxLoad)
	}
	return nil
}

// printable writes control characters as question marks.
type printable struct{ io.Writer }

func (p printable) Write(text []byte) (int, error) {
	shown := append([]byte(nil), text...)
	for i, b := range shown {
		if b < ' ' && b != '\n' {
			shown[i] = '?'
		}
	}
	return p.Writer.Write(shown)
}

func writeSample(ctx context.Context, model *moenn.Model) error {
	session, err := model.NewSession(nil)
	if err != nil {
		return err
	}
	defer session.Close()
	bytes, err := moenn.NewByteTokenizer()
	if err != nil {
		return err
	}
	defer bytes.Close()
	sampling := moenn.SampleOptions{Temperature: 0.8, Seed: *seed}
	var text []byte
	var failed error
	_, _, err = session.Generate(ctx, 0, []int32{'\n'}, nil,
		&moenn.GenerateOptions{Sampling: &sampling,
			OnToken: func(token int32, index int64) bool { // a token is a byte, written as it is
				if text, failed = bytes.Decode(text[:0], []int32{token}); failed == nil {
					_, failed = printable{os.Stdout}.Write(text)
				}
				return failed == nil
			}})
	if failed != nil {
		err = failed
	}
	fmt.Print("\n\n")
	return err
}

// saveAndProve saves, loads, and compares every logit of a batch, bit for bit.
func saveAndProve(device *moenn.Device, model *moenn.Model) error {
	ctx := context.Background() // what was learnt is saved in any case
	if err := model.Save(ctx, *out, nil); err != nil {
		return err
	}
	loaded, err := device.LoadModel(ctx, *out, moenn.F32, nil)
	if err != nil {
		return err
	}
	defer loaded.Close()
	if err := loaded.Prepare(&shape); err != nil {
		return err
	}
	var logits [2][]float32
	for i, m := range []*moenn.Model{model, loaded} {
		logits[i] = make([]float32, batch*length*moenn.ByteVocab)
		if err := m.Forward(ctx, tokens, batch, logits[i]); err != nil {
			return err
		}
	}
	for i, value := range logits[0] {
		if math.Float32bits(value) != math.Float32bits(logits[1][i]) {
			return fmt.Errorf("%s: other logits", *out)
		}
	}
	fmt.Printf("saved in %s; reloaded, it gives the same logits, bit for bit\n", *out)
	return nil
}
