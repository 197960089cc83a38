//! Tokenizers and datasets.
use std::os::raw::c_char;
use std::path::Path;
use std::ptr;

use moenn_sys as sys;

use crate::error::{c_path, check, int64, sized};
use crate::handle::Handle;
use crate::{Error, Result};

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

    /// The byte tokenizer: id = byte, and the specials above, which encoding never makes.
    pub fn bytes() -> Result<Tokenizer> {
        Ok(Tokenizer(Handle::create(|out| unsafe { sys::nn_tokenizer_create_bytes(out) })?))
    }

    /// Ids in the vocabulary.
    pub fn vocab_size(&self) -> usize {
        unsafe { sys::nn_tokenizer_vocab_size(self.0.get()) as usize }
    }

    /// Encodes any byte string.
    pub fn encode(&self, text: impl AsRef<[u8]>) -> Result<Vec<i32>> {
        let text = text.as_ref();
        filled(text.len(), |ids: *mut i32, capacity| {
            let mut count = 0;
            let status = unsafe {
                let text_ptr = text.as_ptr() as *const c_char;
                sys::nn_tokenizer_encode(self.0.get(), text_ptr, text.len(), ids, int64(capacity), &mut count)
            };
            (status, count as usize)
        })
    }

    /// Decodes ids; specials give no text.
    pub fn decode(&self, ids: &[i32]) -> Result<Vec<u8>> {
        filled(ids.len(), |text: *mut u8, capacity| {
            let mut bytes = 0;
            let (count, text) = (int64(ids.len()), text as *mut c_char);
            let status = unsafe {
                sys::nn_tokenizer_decode(self.0.get(), ids.as_ptr(), count, text, capacity, &mut bytes)
            };
            (status, bytes)
        })
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
    /// In each epoch windows begin at a random phase and come in a random order. Otherwise they come in
    /// order, the last one filled up with targets of -1.
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

/// A token stream cut into windows, with a deterministic, resumable order. It never ends: epoch follows
/// epoch.
#[derive(Debug)]
pub struct Dataset {
    handle: Handle<sys::nn_dataset_t>,
    batch_tokens: usize,
}

/* One handle, one thread at a time. */
unsafe impl Send for Dataset {}

impl Dataset {
    /// Opens a text file, encoded by a tokenizer; `None`: its bytes. With `None` the file stays mapped, and
    /// must not be truncated.
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

    fn new(
        options: &DatasetOptions,
        open: impl FnOnce(*const sys::nn_dataset_options_t, *mut *mut sys::nn_dataset_t) -> sys::nn_status_t,
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

    /// Writes the next batch: \[batch, seq_len\] ids, and the id after each, or -1 where there is none.
    pub fn next_batch(&mut self, tokens: &mut [i32], targets: &mut [i32]) -> Result<()> {
        if tokens.len() != self.batch_tokens || targets.len() != self.batch_tokens {
            return Err(Error::argument(format!(
                "a batch has {} tokens; there is room for {} and {} targets",
                self.batch_tokens,
                tokens.len(),
                targets.len()
            )));
        }
        check(unsafe { sys::nn_dataset_next(self.handle.get(), tokens.as_mut_ptr(), targets.as_mut_ptr()) })
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
