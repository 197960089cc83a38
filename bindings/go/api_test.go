package moenn

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
)

// The Go type of each struct of moenn.h.
var structs = map[string]any{
	"nn_device_options_t":          DeviceOptions{},
	"nn_device_info_t":             DeviceInfo{},
	"nn_memory_t":                  Memory{},
	"nn_tensor_info_t":             TensorInfo{},
	"nn_model_config_t":            Config{},
	"nn_plan_t":                    Plan{},
	"nn_train_options_t":           TrainOptions{},
	"nn_session_options_t":         SessionOptions{},
	"nn_file_options_t":            FileOptions{},
	"nn_loss_t":                    Loss{},
	"nn_expert_stats_t":            ExpertStats{},
	"nn_optim_options_t":           OptimizerOptions{},
	"nn_schedule_t":                Schedule{},
	"nn_dataset_options_t":         DatasetOptions{},
	"nn_dataset_info_t":            DatasetInfo{},
	"nn_encode_options_t":          EncodeOptions{},
	"nn_tokenizer_train_options_t": TokenizerTrainOptions{},
	"nn_sample_options_t":          SampleOptions{},
	"nn_generate_options_t":        GenerateOptions{},
}

// Members that Go has no use for: a slice has its length, a func its state.
var implied = map[string]bool{
	"struct_size": true, "unused": true,
	"log_user": true, "progress_user": true, "on_token_user": true,
	"nn_tensor_info_t.ndim": true, "nn_generate_options_t.stop_count": true,
	"nn_tokenizer_train_options_t.special_count": true,
}

// Structs that Go has as methods: DecodeSpecial, TextStream.
var ofMethods = map[string]bool{"nn_decode_options_t": true, "nn_decode_stream_t": true}

// The words of the package's code, comments and tests left out.
func usedWords(t *testing.T) map[string]bool {
	used := map[string]bool{}
	for _, pattern := range []string{"*.go", "bridge.h"} {
		for _, path := range must[[]string](t)(filepath.Glob(pattern)) {
			if strings.HasSuffix(path, "_test.go") {
				continue
			}
			source := must[[]byte](t)(os.ReadFile(path))
			for _, comment := range []string{`//[^\n]*`, `(?s)/\*.*?\*/`} {
				source = regexp.MustCompile(comment).ReplaceAll(source, nil)
			}
			for _, word := range regexp.MustCompile(`\w+`).FindAllString(string(source), -1) {
				used[word] = true
			}
		}
	}
	return used
}

// Everything that abi/api.json finds in moenn.h is bound.
func TestComplete(t *testing.T) {
	root := os.Getenv("SOURCE_DIR")
	if root == "" {
		root = filepath.Join("..", "..")
	}
	var api struct {
		Macros  []struct{ Name string }
		Enums   []struct{ Values []struct{ Name string } }
		Structs []struct {
			Name    string
			Members []struct{ Name string }
		}
		Functions []struct{ Name string }
	}
	ok(t, json.Unmarshal(must[[]byte](t)(os.ReadFile(filepath.Join(root, "abi", "api.json"))), &api))
	used := usedWords(t)
	if len(api.Functions) < 70 || len(api.Structs) < 17 || len(api.Enums) < 15 {
		t.Fatalf("api.json has %d functions, %d structs, %d enums",
			len(api.Functions), len(api.Structs), len(api.Enums))
	}
	need := func(name string) {
		if !used[name] {
			t.Errorf("%s is not bound", name)
		}
	}
	for _, f := range api.Functions {
		need(f.Name)
	}
	for _, m := range api.Macros {
		need(m.Name)
	}
	for _, e := range api.Enums {
		for _, value := range e.Values {
			need(value.Name)
		}
	}
	for _, s := range api.Structs {
		if ofMethods[s.Name] {
			continue
		}
		value, there := structs[s.Name]
		if !there {
			t.Errorf("%s has no type", s.Name)
			continue
		}
		fields := map[string]bool{}
		for _, field := range reflect.VisibleFields(reflect.TypeOf(value)) {
			fields[strings.ToLower(field.Name)] = true
		}
		for _, member := range s.Members {
			if implied[member.Name] || implied[s.Name+"."+member.Name] {
				continue
			}
			need(member.Name)
			if !fields[strings.ReplaceAll(member.Name, "_", "")] {
				t.Errorf("%s.%s is no field of %T", s.Name, member.Name, value)
			}
		}
	}
}
