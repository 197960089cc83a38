package moenn

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

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
	_, err = OpenText("data_test.go", b, DatasetOptions{SeqLen: 4})
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
