// Command generate loads a saved model and writes text after a prompt, token by token, until it has
// enough or Ctrl-C.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"

	"moenn"
)

var (
	prompt      = flag.String("prompt", "\n", "what to go on from")
	name        = flag.String("device", "cpu", "cpu, or cuda:0")
	maxTokens   = flag.Int("max-tokens", 0, "most tokens to make (default as many as fit)")
	temperature = flag.Float64("temperature", 0.8, "0 takes the likeliest token")
	seed        = flag.Uint64("seed", 1, "of the choice")
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("generate: ")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: generate [options] FOLDER")
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() != 1 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, flag.Arg(0)); errors.Is(err, context.Canceled) {
		os.Exit(130)
	} else if err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, folder string) error {
	device, err := moenn.OpenDevice(*name, nil)
	if err != nil {
		return err
	}
	defer device.Close()
	model, err := device.LoadModel(ctx, folder, moenn.DTypeFile, nil)
	if err != nil {
		return err
	}
	defer model.Close()
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
	fmt.Print(*prompt)
	_, err = session.GenerateText(ctx, os.Stdout, bytes, 0, *prompt, &moenn.GenerateOptions{
		MaxTokens: *maxTokens,
		Sampling:  &moenn.SampleOptions{Temperature: float32(*temperature), Seed: *seed},
	})
	fmt.Println()
	return err
}
