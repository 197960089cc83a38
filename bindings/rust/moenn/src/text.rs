//! Tokenizers and datasets.
use std::ffi::CString;
use std::ops::Range;
use std::os::raw::c_char;
use std::path::Path;
use std::ptr;

use moenn_sys as sys;

use crate::error::{c_enum, c_path, c_string, check, int64, sized};
use crate::handle::{Handle, Lent};
use crate::model::on_progress;
use crate::{Error, ProgressFn, Result};

/// Text to ids and back. Any number of threads may use it at once.
#[derive(Debug)]
pub struct Tokenizer(Handle<sys::nn_tokenizer_t>);

/* The header: immutable, may be used from several threads at once. */
unsafe impl Send for Tokenizer {}
unsafe impl Sync for Tokenizer {}

impl Tokenizer {
    /// The byte tokenizer's id of the beginning of a text.
    pub const BYTE_BOS: i32 = sys::NN_BYTE_BOS as i32;
    /// The byte tokenizer's id of the end of a text.
    pub const BYTE_EOS: i32 = sys::NN_BYTE_EOS as i32;
    /// The byte tokenizer's id of padding.
    pub const BYTE_PAD: i32 = sys::NN_BYTE_PAD as i32;
    /// Ids of the byte tokenizer in all.
    pub const BYTE_VOCAB: usize = sys::NN_BYTE_VOCAB as usize;

    /// The byte tokenizer: id = byte, and the specials above.
    pub fn bytes() -> Result<Tokenizer> {
        Ok(Tokenizer(Handle::create(|out| unsafe { sys::nn_tokenizer_create_bytes(out) })?))
    }

    /// A tokenizer file, or the folder that holds one.
    pub fn load(path: impl AsRef<Path>) -> Result<Tokenizer> {
        let path = c_path(path.as_ref())?;
        Ok(Tokenizer(Handle::create(|out| unsafe { sys::nn_tokenizer_load(path.as_ptr(), out) })?))
    }

    /// A tiktoken rank file, whose words are the matches of a pattern.
    pub fn load_tiktoken(path: impl AsRef<Path>, pattern: &str) -> Result<Tokenizer> {
        let (path, pattern) = (c_path(path.as_ref())?, c_string(pattern)?);
        Ok(Tokenizer(Handle::create(|out| unsafe {
            sys::nn_tokenizer_load_tiktoken(path.as_ptr(), pattern.as_ptr(), out)
        })?))
    }

    /// Learns a vocabulary from texts; words do not go from one to the next.
    pub fn train<T: AsRef<[u8]>>(
        texts: &[T],
        options: TokenizerTrainOptions<'_>,
    ) -> Result<Tokenizer> {
        let data: Vec<_> =
            texts.iter().map(|text| text.as_ref().as_ptr() as *const c_char).collect();
        let bytes: Vec<_> = texts.iter().map(|text| text.as_ref().len()).collect();
        options.lend(|options, out| unsafe {
            sys::nn_tokenizer_train(data.as_ptr(), bytes.as_ptr(), int64(data.len()), options, out)
        })
    }

    /// The same from files, of which each line with its end is a text.
    pub fn train_files<P: AsRef<Path>>(
        paths: &[P],
        options: TokenizerTrainOptions<'_>,
    ) -> Result<Tokenizer> {
        let paths = paths.iter().map(|path| c_path(path.as_ref())).collect::<Result<Vec<_>>>()?;
        let names = pointers(&paths);
        options.lend(|options, out| unsafe {
            sys::nn_tokenizer_train_files(names.as_ptr(), int64(names.len()), options, out)
        })
    }

    /// Writes tokenizer.json; into a folder also tokenizer_config.json.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = c_path(path.as_ref())?;
        check(unsafe { sys::nn_tokenizer_save(self.0.get(), path.as_ptr()) })
    }

    /// Writes a tokenizer file of llm.c.
    pub fn save_llmc(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = c_path(path.as_ref())?;
        check(unsafe { sys::nn_tokenizer_save_llmc(self.0.get(), path.as_ptr()) })
    }

    /// One past the largest id.
    pub fn vocab_size(&self) -> usize {
        unsafe { sys::nn_tokenizer_vocab_size(self.0.get()) as usize }
    }

    /// The id of a special token, where there is one.
    pub fn special(&self, which: SpecialToken) -> Option<i32> {
        let id = unsafe { sys::nn_tokenizer_special(self.0.get(), which as i32) };
        (id >= 0).then_some(id)
    }

    /// The id of a token as the vocabulary spells it.
    pub fn id(&self, token: &str) -> Option<i32> {
        let id = unsafe {
            sys::nn_tokenizer_id(self.0.get(), token.as_ptr() as *const c_char, token.len())
        };
        (id >= 0).then_some(id)
    }

    /// How the vocabulary spells a token.
    pub fn token(&self, id: i32) -> Result<String> {
        let (mut text, mut bytes) = (ptr::null(), 0);
        check(unsafe { sys::nn_tokenizer_token(self.0.get(), id, &mut text, &mut bytes) })?;
        let spelled = unsafe { std::slice::from_raw_parts(text as *const u8, bytes) };
        Ok(String::from_utf8_lossy(spelled).into_owned())
    }

    /// Encodes any byte string, with options.
    pub fn encode_with(&self, text: impl AsRef<[u8]>, options: EncodeOptions) -> Result<Vec<i32>> {
        let text = text.as_ref();
        filled(text.len(), |ids: *mut i32, capacity| {
            self.encode_raw(text, options, ids, ptr::null_mut(), capacity)
        })
    }

    /// Encodes, and says where the text of each id lies, in bytes.
    pub fn encode_offsets(
        &self,
        text: impl AsRef<[u8]>,
        options: EncodeOptions,
    ) -> Result<(Vec<i32>, Vec<Range<usize>>)> {
        let text = text.as_ref();
        let mut offsets: Vec<i64> = Vec::new();
        let ids = filled(text.len(), |ids: *mut i32, capacity| {
            offsets.resize(2 * capacity, 0);
            self.encode_raw(text, options, ids, offsets.as_mut_ptr(), capacity)
        })?;
        let places = offsets.chunks_exact(2).map(|place| place[0] as usize..place[1] as usize);
        let places = places.take(ids.len()).collect();
        Ok((ids, places))
    }

    fn encode_raw(
        &self,
        text: &[u8],
        options: EncodeOptions,
        ids: *mut i32,
        offsets: *mut i64,
        capacity: usize,
    ) -> (sys::nn_status_t, usize) {
        let options = sized!(nn_encode_options_t {
            add_special: options.add_special as i32,
            parse_special: options.parse_special as i32,
        });
        let (data, mut count) = (text.as_ptr() as *const c_char, 0);
        let status = unsafe {
            sys::nn_tokenizer_encode_with(
                self.0.get(),
                data,
                text.len(),
                &options,
                ids,
                offsets,
                int64(capacity),
                &mut count,
            )
        };
        (status, count as usize)
    }

    /// Encodes any byte string.
    pub fn encode(&self, text: impl AsRef<[u8]>) -> Result<Vec<i32>> {
        let text = text.as_ref();
        filled(text.len(), |ids: *mut i32, capacity| {
            let mut count = 0;
            let status = unsafe {
                let text_ptr = text.as_ptr() as *const c_char;
                sys::nn_tokenizer_encode(
                    self.0.get(),
                    text_ptr,
                    text.len(),
                    ids,
                    int64(capacity),
                    &mut count,
                )
            };
            (status, count as usize)
        })
    }

    /// Decodes ids; special tokens give their spelling.
    pub fn decode_special(&self, ids: &[i32]) -> Result<Vec<u8>> {
        let options = sized!(nn_decode_options_t { keep_special: 1 });
        filled(ids.len(), |text: *mut u8, capacity| {
            let (mut bytes, count, text) = (0, int64(ids.len()), text as *mut c_char);
            let status = unsafe {
                let ids = ids.as_ptr();
                sys::nn_tokenizer_decode_with(
                    self.0.get(),
                    ids,
                    count,
                    &options,
                    text,
                    capacity,
                    &mut bytes,
                )
            };
            (status, bytes)
        })
    }

    /// Decodes ids; specials give no text.
    pub fn decode(&self, ids: &[i32]) -> Result<Vec<u8>> {
        filled(ids.len(), |text: *mut u8, capacity| {
            let mut bytes = 0;
            let (count, text) = (int64(ids.len()), text as *mut c_char);
            let status = unsafe {
                sys::nn_tokenizer_decode(
                    self.0.get(),
                    ids.as_ptr(),
                    count,
                    text,
                    capacity,
                    &mut bytes,
                )
            };
            (status, bytes)
        })
    }
}

/// Options of [`Tokenizer::encode_with`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EncodeOptions {
    /// With the ids that the tokenizer puts around a text.
    pub add_special: bool,
    /// Special tokens that the text spells become their ids.
    pub parse_special: bool,
}

/// Special tokens that programs ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum SpecialToken {
    /// Beginning of a text.
    Bos = sys::NN_TOKEN_BOS as i32,
    /// End of a text.
    Eos = sys::NN_TOKEN_EOS as i32,
    /// Padding.
    Pad = sys::NN_TOKEN_PAD as i32,
    /// What the vocabulary cannot express.
    Unk = sys::NN_TOKEN_UNK as i32,
}

/// Ids to text one by one: each piece as soon as its characters are whole.
#[derive(Debug)]
pub struct TextStream<'t> {
    tokenizer: &'t Tokenizer,
    state: sys::nn_decode_stream_t,
    window: Vec<i32>,
}

impl<'t> TextStream<'t> {
    /// A text's beginning. keep_special: special tokens give their spelling.
    pub fn new(tokenizer: &'t Tokenizer, keep_special: bool) -> TextStream<'t> {
        let state =
            sized!(nn_decode_stream_t { keep_special: keep_special as i32, first: 0, given: 0 });
        TextStream { tokenizer, state, window: Vec::new() }
    }

    /// The text that has become certain with one more id.
    pub fn push(&mut self, id: i32) -> Result<String> {
        self.window.push(id);
        let text = self.next(false)?;
        self.window.drain(..self.state.first as usize); // ids that nothing to come depends on
        self.state.first = 0;
        Ok(text)
    }

    /// The rest; what ends within a character ends with U+FFFD.
    pub fn finish(mut self) -> Result<String> {
        self.next(true)
    }

    fn next(&mut self, finish: bool) -> Result<String> {
        let (tokenizer, window, state) = (self.tokenizer.0.get(), &self.window, &mut self.state);
        let text = filled(64, |text: *mut u8, capacity| {
            let (mut bytes, text) = (0, text as *mut c_char);
            let status = unsafe {
                let (ids, count) = (window.as_ptr(), int64(window.len()));
                sys::nn_tokenizer_decode_next(
                    tokenizer,
                    state,
                    ids,
                    count,
                    finish as i32,
                    text,
                    capacity,
                    &mut bytes,
                )
            };
            (status, bytes)
        })?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

c_enum! {
    /// A kind of vocabulary that can be learnt.
    #[derive(Default)]
    TokenizerKind {
        /// Byte-level BPE: knows every text.
        #[default]
        Bpe = NN_TOKENIZER_BPE,
        /// Unigram with spaces at the beginning of words; needs a special for unknown characters.
        Unigram = NN_TOKENIZER_UNIGRAM,
    }
}

/// Options of [`Tokenizer::train`].
#[derive(Default)]
pub struct TokenizerTrainOptions<'a> {
    /// What is learnt.
    pub kind: TokenizerKind,
    /// Ids in all, if the texts have enough to learn. 0: 32,000.
    pub vocab_size: usize,
    /// How often what is learnt must come. 0: 2.
    pub min_frequency: usize,
    /// Special tokens, which get the first ids.
    pub specials: &'a [&'a str],
    /// BPE: regular expression whose matches are words. `None`: GPT-2's.
    pub pattern: Option<&'a str>,
    /// Unigram: share of the text that characters in the vocabulary make up. 0: 0.9995.
    pub coverage: f32,
    /// Which special begins a text. `None`: `<s>`.
    pub bos: Option<&'a str>,
    /// Which special ends a text. `None`: `</s>`.
    pub eos: Option<&'a str>,
    /// Which special is padding. `None`: `<pad>`.
    pub pad: Option<&'a str>,
    /// Which special is what the vocabulary cannot express. `None`: `<unk>`.
    pub unk: Option<&'a str>,
    /// Called as bytes of text are read, and while learning.
    pub progress: Option<ProgressFn<'a>>,
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ptr()).collect()
}

impl TokenizerTrainOptions<'_> {
    /// Makes a call with the options as the library takes them.
    fn lend(
        self,
        train: impl FnOnce(
            *const sys::nn_tokenizer_train_options_t,
            *mut *mut sys::nn_tokenizer_t,
        ) -> sys::nn_status_t,
    ) -> Result<Tokenizer> {
        let specials =
            self.specials.iter().map(|name| c_string(*name)).collect::<Result<Vec<_>>>()?;
        let names = pointers(&specials);
        let texts = [self.pattern, self.bos, self.eos, self.pad, self.unk];
        let texts =
            texts.iter().map(|text| text.map(c_string).transpose()).collect::<Result<Vec<_>>>()?;
        let text = |index: usize| texts[index].as_ref().map_or(ptr::null(), |text| text.as_ptr());
        let mut raw = sized!(nn_tokenizer_train_options_t {
            kind: self.kind.raw(),
            vocab_size: int64(self.vocab_size),
            min_frequency: int64(self.min_frequency),
            specials: names.as_ptr(),
            special_count: int64(names.len()),
            pattern: text(0),
            coverage: self.coverage,
            bos: text(1),
            eos: text(2),
            pad: text(3),
            unk: text(4),
        });
        let mut lent = self.progress.map(Lent::<ProgressFn>::new);
        if let Some(lent) = &mut lent {
            raw.progress = Some(on_progress);
            raw.progress_user = lent.user();
        }
        let made = Handle::create(|out| train(&raw, out));
        if let Some(lent) = lent {
            lent.back();
        }
        Ok(Tokenizer(made?))
    }
}

/// A vector that the library fills: with a guessed capacity, and once more where that is too small.
fn filled<T: Copy + Default>(
    guess: usize,
    mut fill: impl FnMut(*mut T, usize) -> (sys::nn_status_t, usize),
) -> Result<Vec<T>> {
    let mut made = vec![T::default(); guess];
    let (mut status, mut count) = fill(made.as_mut_ptr(), made.len());
    if status == sys::NN_ERR_CAPACITY {
        made.resize(count, T::default());
        (status, count) = fill(made.as_mut_ptr(), made.len());
    }
    check(status)?;
    made.truncate(count);
    Ok(made)
}

/// Options of a [`Dataset`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DatasetOptions {
    /// Sequences per batch. 0: 1.
    pub batch: usize,
    /// Tokens per sequence. Required.
    pub seq_len: usize,
    /// First token of the stream to use.
    pub begin: usize,
    /// One past the last. 0: the end of the stream.
    pub end: usize,
    /// In each epoch windows begin at a random phase and come in a random order. Otherwise they
    /// come in order, the last one filled up with targets of -1.
    pub shuffle: bool,
    /// Of the shuffle.
    pub seed: u64,
}

/// Sizes of a dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct DatasetInfo {
    /// Tokens between begin and end.
    pub tokens: usize,
    /// Windows in an epoch.
    pub windows: usize,
    /// Batches that cover an epoch, rounded up.
    pub batches: usize,
    /// Largest id in the stream.
    pub max_id: i32,
}

/// A token stream cut into windows, with a deterministic, resumable order. It never ends: epoch
/// follows epoch.
#[derive(Debug)]
pub struct Dataset {
    handle: Handle<sys::nn_dataset_t>,
    batch_tokens: usize,
}

/* One handle, one thread at a time. */
unsafe impl Send for Dataset {}

impl Dataset {
    /// Opens a text file, encoded by a tokenizer; `None`: its bytes. With `None` the file stays
    /// mapped, and must not be truncated.
    pub fn open_text(
        path: impl AsRef<Path>,
        tokenizer: Option<&Tokenizer>,
        options: &DatasetOptions,
    ) -> Result<Dataset> {
        let path = c_path(path.as_ref())?;
        let tokenizer = tokenizer.map_or(ptr::null_mut(), |tokenizer| tokenizer.0.get());
        Dataset::new(options, |options, out| unsafe {
            sys::nn_dataset_open_text(path.as_ptr(), tokenizer, options, out)
        })
    }

    /// Opens an llm.c token file (uint16 ids). It stays mapped, and must not be truncated.
    pub fn open_tokens(path: impl AsRef<Path>, options: &DatasetOptions) -> Result<Dataset> {
        let path = c_path(path.as_ref())?;
        Dataset::new(options, |options, out| unsafe {
            sys::nn_dataset_open_tokens(path.as_ptr(), options, out)
        })
    }

    /// Makes a dataset of a copy of ids, none negative.
    pub fn from_tokens(ids: &[i32], options: &DatasetOptions) -> Result<Dataset> {
        Dataset::new(options, |options, out| unsafe {
            sys::nn_dataset_from_tokens(ids.as_ptr(), int64(ids.len()), options, out)
        })
    }

    /// Writes ids below 65,536 to an llm.c token file, which [`Dataset::open_tokens`] reads.
    pub fn save_tokens(path: impl AsRef<Path>, ids: &[i32]) -> Result<()> {
        let path = c_path(path.as_ref())?;
        check(unsafe { sys::nn_dataset_save_tokens(path.as_ptr(), ids.as_ptr(), int64(ids.len())) })
    }

    fn new(
        options: &DatasetOptions,
        open: impl FnOnce(
            *const sys::nn_dataset_options_t,
            *mut *mut sys::nn_dataset_t,
        ) -> sys::nn_status_t,
    ) -> Result<Dataset> {
        let raw = sized!(nn_dataset_options_t {
            batch: int64(options.batch),
            seq_len: int64(options.seq_len),
            begin: int64(options.begin),
            end: int64(options.end),
            shuffle: options.shuffle as i32,
            seed: options.seed,
        });
        let handle = Handle::create(|out| open(&raw, out))?;
        Ok(Dataset { handle, batch_tokens: options.batch.max(1).saturating_mul(options.seq_len) })
    }

    /// Describes the dataset.
    pub fn info(&self) -> Result<DatasetInfo> {
        let mut info = sized!(nn_dataset_info_t {});
        check(unsafe { sys::nn_dataset_info(self.handle.get(), &mut info) })?;
        Ok(DatasetInfo {
            tokens: info.tokens as usize,
            windows: info.windows as usize,
            batches: info.batches as usize,
            max_id: info.max_id,
        })
    }

    /// Writes the next batch: \[batch, seq_len\] ids, and the id after each, or -1 where there is
    /// none.
    pub fn next_batch(&mut self, tokens: &mut [i32], targets: &mut [i32]) -> Result<()> {
        if tokens.len() != self.batch_tokens || targets.len() != self.batch_tokens {
            return Err(Error::argument(format!(
                "a batch has {} tokens; there is room for {} and {} targets",
                self.batch_tokens,
                tokens.len(),
                targets.len()
            )));
        }
        check(unsafe {
            sys::nn_dataset_next(self.handle.get(), tokens.as_mut_ptr(), targets.as_mut_ptr())
        })
    }

    /// Batches taken so far. With the same tokens, options and position, the same batches follow.
    pub fn position(&self) -> u64 {
        unsafe { sys::nn_dataset_position(self.handle.get()) as u64 }
    }

    /// Goes to a position.
    pub fn seek(&mut self, position: u64) -> Result<()> {
        let position = i64::try_from(position).unwrap_or(-1); /* which is refused */
        check(unsafe { sys::nn_dataset_seek(self.handle.get(), position) })
    }
}
