//! Tokenizers and datasets.
mod common;
use common::*;
use moenn::*;
use std::ops::ControlFlow;

#[test]
fn bytes_go_both_ways() {
    let tokenizer = Tokenizer::bytes().unwrap();
    assert_eq!(tokenizer.vocab_size(), Tokenizer::BYTE_VOCAB);
    let text = "naïve \u{0} text";
    let ids = tokenizer.encode(text).unwrap();
    assert_eq!(ids.len(), text.len());
    assert_eq!(tokenizer.decode(&ids).unwrap(), text.as_bytes());
    assert_eq!(tokenizer.encode([255u8, 0]).unwrap(), [255, 0]);
    assert_eq!(tokenizer.encode("").unwrap(), []);
    assert_eq!(tokenizer.decode(&[]).unwrap(), []);
}

#[test]
fn specials_give_no_text() {
    let tokenizer = Tokenizer::bytes().unwrap();
    let ids = [Tokenizer::BYTE_BOS, 65, Tokenizer::BYTE_EOS, Tokenizer::BYTE_PAD];
    assert_eq!(tokenizer.decode(&ids).unwrap(), b"A");
    fails(tokenizer.decode(&[Tokenizer::BYTE_VOCAB as i32]), Status::Argument, "259");
    fails(tokenizer.decode(&[-1]), Status::Argument, "-1");
}

#[test]
fn special_tokens_have_spellings() {
    let tokenizer = Tokenizer::bytes().unwrap();
    assert_eq!(tokenizer.special(SpecialToken::Pad), Some(Tokenizer::BYTE_PAD));
    assert_eq!(tokenizer.special(SpecialToken::Unk), None);
    assert_eq!(tokenizer.token(Tokenizer::BYTE_EOS).unwrap(), "<|eos|>");
    assert_eq!(tokenizer.id("<|eos|>"), Some(Tokenizer::BYTE_EOS));
    assert_eq!(tokenizer.id("eos"), None);
    fails(tokenizer.token(Tokenizer::BYTE_VOCAB as i32), Status::NotFound, "259");
    let options = EncodeOptions { parse_special: true, add_special: true };
    let (ids, places) = tokenizer.encode_offsets("é<|eos|>", options).unwrap();
    assert_eq!(ids, [0xC3, 0xA9, Tokenizer::BYTE_EOS]);
    assert_eq!(places, [0..2, 0..2, 2..9]);
    assert_eq!(tokenizer.encode_with("é<|eos|>", options).unwrap(), ids);
    assert_eq!(tokenizer.decode(&ids).unwrap(), "é".as_bytes());
    assert_eq!(tokenizer.decode_special(&ids).unwrap(), "é<|eos|>".as_bytes());
}

#[test]
fn streams_give_whole_characters() {
    let tokenizer = Tokenizer::bytes().unwrap();
    let mut stream = TextStream::new(&tokenizer, true);
    let ids: Vec<i32> = "aé".bytes().map(i32::from).chain([Tokenizer::BYTE_EOS, 0xE2]).collect();
    let pieces: Vec<String> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
    assert_eq!(pieces, ["a", "", "é", "<|eos|>", ""]);
    assert_eq!(stream.finish().unwrap(), "\u{FFFD}");
}

#[test]
fn vocabularies_are_learnt() {
    let folder = Folder::new();
    let texts = ["low lower lowest", "new newer newest low"];
    let mut heard = 0;
    let mut progress = |done, total| {
        assert_eq!((done, total), (36, 36));
        heard += 1;
        ControlFlow::Continue(())
    };
    let options = TokenizerTrainOptions {
        vocab_size: 270,
        min_frequency: 1,
        specials: &["<|end|>", "<pad>"],
        eos: Some("<|end|>"),
        progress: Some(&mut progress),
        ..Default::default()
    };
    let tokenizer = Tokenizer::train(&texts, options).unwrap();
    assert!(heard > 0);
    assert_eq!(tokenizer.vocab_size(), 270);
    assert_eq!(tokenizer.special(SpecialToken::Eos), Some(0));
    assert_eq!(tokenizer.special(SpecialToken::Pad), Some(1));
    assert!(tokenizer.id("low").is_some());

    tokenizer.save(folder.path("")).unwrap();
    let again = Tokenizer::load(folder.path("")).unwrap();
    assert_eq!(again.encode("newest").unwrap(), tokenizer.encode("newest").unwrap());
    let path = folder.path("tokenizer.bin");
    tokenizer.save_llmc(&path).unwrap();
    assert_eq!(Tokenizer::load(&path).unwrap().vocab_size(), 270);

    let text = folder.write("text", "low low\nlower");
    let options = TokenizerTrainOptions {
        kind: TokenizerKind::Unigram,
        vocab_size: 20,
        specials: &["<unk>"],
        coverage: 1.0,
        ..Default::default()
    };
    let pieces = Tokenizer::train_files(&[&text], options).unwrap();
    assert_eq!(pieces.decode(&pieces.encode("lower low").unwrap()).unwrap(), b"lower low");
    fails(Tokenizer::load_tiktoken(&text, "."), Status::Format, "line 1");
    let options = TokenizerTrainOptions { kind: TokenizerKind::Unigram, ..Default::default() };
    fails(Tokenizer::train(&texts, options), Status::Argument, "<unk>");
    let mut stop = |_, _| ControlFlow::Break(());
    let options = TokenizerTrainOptions { progress: Some(&mut stop), ..Default::default() };
    fails(Tokenizer::train(&texts, options), Status::Cancelled, "36");
}

#[test]
fn tokens_are_saved() {
    let folder = Folder::new();
    let path = folder.path("tokens");
    Dataset::save_tokens(&path, &[1, 65535]).unwrap();
    let options = DatasetOptions { seq_len: 1, ..Default::default() };
    let info = Dataset::open_tokens(&path, &options).unwrap().info().unwrap();
    assert_eq!((info.tokens, info.max_id), (2, 65535));
    fails(Dataset::save_tokens(&path, &[65536]), Status::Unsupported, "65536");
}

#[test]
fn files_are_loaded() {
    let folder = Folder::new();
    let text = r#"{"model": {"type": "WordLevel", "vocab": {"a": 0, "?": 1}, "unk_token": "?"}}"#;
    let path = folder.write("tokenizer.json", text);
    let tokenizer = Tokenizer::load(&path).unwrap();
    assert_eq!(tokenizer.encode("b").unwrap(), [1]);
    assert_eq!(tokenizer.special(SpecialToken::Unk), Some(1));
    fails(Tokenizer::load(folder.path("none")), Status::NotFound, "none");
}

fn next(dataset: &mut Dataset, size: usize) -> (Vec<i32>, Vec<i32>) {
    let (mut tokens, mut targets) = (vec![0; size], vec![0; size]);
    dataset.next_batch(&mut tokens, &mut targets).unwrap();
    (tokens, targets)
}

#[test]
fn windows_come_in_order() {
    let ids: Vec<i32> = (0..10).collect();
    let options = DatasetOptions { seq_len: 4, ..Default::default() };
    let mut dataset = Dataset::from_tokens(&ids, &options).unwrap();
    let info = dataset.info().unwrap();
    assert_eq!((info.tokens, info.windows, info.batches, info.max_id), (10, 3, 3, 9));
    assert_eq!(next(&mut dataset, 4), (vec![0, 1, 2, 3], vec![1, 2, 3, 4]));
    assert_eq!(next(&mut dataset, 4), (vec![4, 5, 6, 7], vec![5, 6, 7, 8]));
    assert_eq!(next(&mut dataset, 4).1, [9, -1, -1, -1]);
    assert_eq!(dataset.position(), 3);
    dataset.seek(1).unwrap();
    assert_eq!(next(&mut dataset, 4).0, [4, 5, 6, 7]);
}

#[test]
fn a_shuffle_resumes() {
    let ids: Vec<i32> = (0..1000).collect();
    let options =
        DatasetOptions { batch: 2, seq_len: 8, shuffle: true, seed: 3, ..Default::default() };
    let mut first = Dataset::from_tokens(&ids, &options).unwrap();
    (0..70).for_each(|_| drop(next(&mut first, 16)));
    let mut second = Dataset::from_tokens(&ids, &options).unwrap();
    second.seek(first.position()).unwrap();
    assert_eq!(next(&mut second, 16), next(&mut first, 16));
    let mut other = Dataset::from_tokens(&ids, &DatasetOptions { seed: 4, ..options }).unwrap();
    other.seek(second.position() - 1).unwrap();
    assert_ne!(next(&mut other, 16), next(&mut first, 16));
}

#[test]
fn files_are_datasets() {
    let folder = Folder::new();
    let path = folder.write("text", "abcdefgh");
    let options = DatasetOptions { seq_len: 3, begin: 1, end: 7, ..Default::default() };
    let mut bytes = Dataset::open_text(&path, None, &options).unwrap();
    let tokenizer = Tokenizer::bytes().unwrap();
    let mut encoded = Dataset::open_text(&path, Some(&tokenizer), &options).unwrap();
    drop(tokenizer);
    assert_eq!(bytes.info().unwrap().tokens, 6);
    let batch = next(&mut bytes, 3);
    assert_eq!(batch.0, [98, 99, 100]);
    assert_eq!(next(&mut encoded, 3), batch);

    let mut file: Vec<u8> =
        [20240520i32, 1, 5].iter().flat_map(|word| word.to_le_bytes()).collect();
    file.resize(1024, 0);
    file.extend((10..15u16).flat_map(u16::to_le_bytes));
    let path = folder.write("tokens.bin", &file);
    let mut tokens =
        Dataset::open_tokens(&path, &DatasetOptions { seq_len: 4, ..Default::default() }).unwrap();
    assert_eq!(next(&mut tokens, 4), (vec![10, 11, 12, 13], vec![11, 12, 13, 14]));
}

#[test]
fn bad_data_is_refused() {
    let folder = Folder::new();
    let options = DatasetOptions { seq_len: 4, ..Default::default() };
    fails(Dataset::open_text(folder.path("none"), None, &options), Status::NotFound, "none");
    let bad = folder.write("bad.bin", vec![0; 2000]);
    fails(Dataset::open_tokens(bad, &options), Status::Format, "");
    fails(Dataset::from_tokens(&[1, -1, 2], &options), Status::Argument, "");
    fails(Dataset::from_tokens(&[1, 2, 3], &Default::default()), Status::Argument, "seq_len");
    let mut dataset = Dataset::from_tokens(&[1, 2, 3, 4, 5, 6], &options).unwrap();
    fails(dataset.next_batch(&mut [0; 4], &mut [0; 3]), Status::Argument, "room for 4 and 3");
    fails(dataset.seek(u64::MAX), Status::Argument, "");
    let huge = DatasetOptions { batch: usize::MAX, seq_len: usize::MAX, ..Default::default() };
    fails(Dataset::from_tokens(&[1, 2, 3], &huge), Status::Argument, "");
}
