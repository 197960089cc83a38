//! Sessions: serving a model.
use std::iter::FusedIterator;
use std::ops::ControlFlow;
use std::os::raw::c_void;
use std::ptr;

use moenn_sys as sys;

use crate::error::{c_enum, check, int32, int64, sized};
use crate::handle::{Handle, Lent};
use crate::{Device, Error, ExpertStats, Model, Result};

/// Options of [`Session::new`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SessionOptions {
    /// Sequences held side by side. 0: 1.
    pub batch: usize,
    /// Most tokens in a sequence. 0: the context. Beyond the context RoPE is stretched.
    pub max_len: usize,
    /// Prompt tokens computed at once. 0: 256.
    pub prefill_chunk: usize,
}

impl SessionOptions {
    pub(crate) fn raw(&self) -> sys::nn_session_options_t {
        sized!(nn_session_options_t {
            batch: int64(self.batch),
            max_len: int64(self.max_len),
            prefill_chunk: int64(self.prefill_chunk),
        })
    }
}

/// How the next token is chosen. The default is greedy.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct SampleOptions {
    /// Divides the logits. 0: greedy.
    pub temperature: f32,
    /// Keep the k largest. 0: all.
    pub top_k: usize,
    /// Keep the fewest whose probabilities reach p. 0 or 1: all.
    pub top_p: f32,
    /// Drop those below min_p times the largest probability. 0: none.
    pub min_p: f32,
    /// Logits of ids already in the sequence are divided by it when positive, multiplied when
    /// negative. 0: 1.
    pub repetition_penalty: f32,
    /// At a given length of a sequence the choice depends on this alone.
    pub seed: u64,
}

impl SampleOptions {
    fn raw(&self) -> sys::nn_sample_options_t {
        sized!(nn_sample_options_t {
            temperature: self.temperature,
            top_k: int32(self.top_k),
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed,
        })
    }
}

/// Options of generation.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct GenerateOptions<'a> {
    /// How tokens are chosen.
    pub sampling: SampleOptions,
    /// Most tokens to make. 0: as many as fit.
    pub max_tokens: usize,
    /// Ids that end the text and are not part of it.
    pub stop_ids: &'a [i32],
}

c_enum! {
    /// Why generation ended.
    StopReason {
        /// The most tokens asked for were made.
        Length = NN_STOP_LENGTH,
        /// A stop id was chosen.
        Id = NN_STOP_ID,
        /// The closure asked for it.
        Callback = NN_STOP_CALLBACK,
        /// The sequence reached the session's `max_len`.
        Context = NN_STOP_CONTEXT,
    }
}

/// Key-value caches of sequences being served by a model.
///
/// It keeps the model's parameters alive and sees them as they are between steps of training, which
/// may run on another thread.
#[derive(Debug)]
pub struct Session {
    handle: Handle<sys::nn_session_t>,
    batch: usize,
    max_len: usize,
    vocab_size: usize,
    experts: usize,
    device: Device,
}

/* One handle, one thread at a time, beside its model's. */
unsafe impl Send for Session {}

impl Session {
    /// Allocates cache and workspace.
    pub fn new(model: &Model, options: &SessionOptions) -> Result<Session> {
        let handle = Handle::create(|out| unsafe {
            sys::nn_session_create(model.raw(), &options.raw(), out)
        })?;
        let config = model.config();
        Ok(Session {
            handle,
            batch: options.batch.max(1),
            max_len: if options.max_len > 0 { options.max_len } else { config.context },
            vocab_size: config.vocab_size,
            experts: config.experts,
            device: model.device().clone(),
        })
    }

    /// The device that holds it.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Appends tokens to a sequence and computes them. `logits` takes the \[vocab_size\] after the
    /// last one.
    pub fn prefill(
        &mut self,
        sequence: usize,
        tokens: &[i32],
        logits: Option<&mut [f32]>,
    ) -> Result<()> {
        let logits = self.logits(logits, 1)?;
        let count = int64(tokens.len());
        check(unsafe {
            sys::nn_session_prefill(
                self.handle.get(),
                int64(sequence),
                tokens.as_ptr(),
                count,
                logits,
            )
        })
    }

    /// Appends one token to each sequence and computes them together; a negative one leaves its
    /// sequence alone. `logits` takes \[batch, vocab_size\]; rows of sequences left alone are not
    /// written.
    pub fn decode(&mut self, tokens: &[i32], logits: Option<&mut [f32]>) -> Result<()> {
        if tokens.len() != self.batch {
            return Err(Error::argument(format!(
                "{} tokens for {} sequences",
                tokens.len(),
                self.batch
            )));
        }
        let logits = self.logits(logits, self.batch)?;
        check(unsafe { sys::nn_session_decode(self.handle.get(), tokens.as_ptr(), logits) })
    }

    fn logits(&self, logits: Option<&mut [f32]>, rows: usize) -> Result<*mut f32> {
        match logits {
            None => Ok(ptr::null_mut()),
            Some(logits) if Some(logits.len()) == rows.checked_mul(self.vocab_size) => {
                Ok(logits.as_mut_ptr())
            }
            Some(logits) => Err(Error::argument(format!(
                "logits has room for {} numbers; the call gives {rows} x {}",
                logits.len(),
                self.vocab_size
            ))),
        }
    }

    /// Tokens in a sequence; 0 for one out of range.
    pub fn length(&self, sequence: usize) -> usize {
        unsafe { sys::nn_session_length(self.handle.get(), int64(sequence)) as usize }
    }

    /// Shortens a sequence to its first `length` tokens.
    pub fn truncate(&mut self, sequence: usize, length: usize) -> Result<()> {
        check(unsafe {
            sys::nn_session_truncate(self.handle.get(), int64(sequence), int64(length))
        })
    }

    /// Chooses a token from the logits after a sequence's last token, without appending it.
    pub fn sample(&mut self, sequence: usize, options: &SampleOptions) -> Result<i32> {
        let mut token = 0;
        check(unsafe {
            sys::nn_session_sample(self.handle.get(), int64(sequence), &options.raw(), &mut token)
        })?;
        Ok(token)
    }

    /// Prefills a prompt, which may be empty when the sequence is not, and generates after it.
    /// Calls `on_token` for each token; `Break` stops after it.
    ///
    /// After [`StopReason::Id`] every token made is part of the sequence; otherwise all but the
    /// last, which is the prompt to go on with. After a failure [`length`](Session::length) tells.
    pub fn generate<F>(
        &mut self,
        sequence: usize,
        prompt: &[i32],
        options: &GenerateOptions<'_>,
        on_token: F,
    ) -> Result<StopReason>
    where
        F: FnMut(i32) -> ControlFlow<()>,
    {
        unsafe extern "C" fn call<F>(token: i32, _index: i64, user: *mut c_void) -> i32
        where
            F: FnMut(i32) -> ControlFlow<()>,
        {
            unsafe { Lent::<F>::run(user, |on_token| on_token(token)) }
        }
        let mut lent = Lent::new(on_token);
        let user = lent.user();
        let result = self.generate_raw(sequence, prompt, options, Some(call::<F>), user);
        lent.back();
        result
    }

    fn generate_raw(
        &mut self,
        sequence: usize,
        prompt: &[i32],
        options: &GenerateOptions<'_>,
        on_token: sys::nn_token_fn,
        user: *mut c_void,
    ) -> Result<StopReason> {
        let sampling = options.sampling.raw();
        let raw = sized!(nn_generate_options_t {
            sampling: &sampling,
            max_tokens: int64(options.max_tokens),
            stop_ids: options.stop_ids.as_ptr(),
            stop_count: int64(options.stop_ids.len()),
            on_token: on_token,
            on_token_user: user,
        });
        let (mut count, mut reason) = (0, 0);
        check(unsafe {
            sys::nn_session_generate(
                self.handle.get(),
                int64(sequence),
                prompt.as_ptr(),
                int64(prompt.len()),
                &raw,
                ptr::null_mut(),
                0,
                &mut count,
                &mut reason,
            )
        })?;
        StopReason::from_raw(reason)
    }

    /// The tokens that [`generate`](Session::generate) would make, one by one.
    pub fn tokens<'a>(
        &'a mut self,
        sequence: usize,
        prompt: &'a [i32],
        options: &GenerateOptions<'a>,
    ) -> Tokens<'a> {
        Tokens {
            session: self,
            sequence,
            prompt,
            last: None,
            options: *options,
            made: 0,
            state: State::Going,
        }
    }

    /// As [`Model::expert_stats`], over this session's calls since its creation.
    pub fn expert_stats(&self, layer: usize) -> Result<ExpertStats> {
        ExpertStats::read(self.experts, |counts, mean_prob, stats| unsafe {
            sys::nn_session_expert_stats(self.handle.get(), int64(layer), counts, mean_prob, stats)
        })
    }
}

/// Iterator over generated tokens; ends after an error.
#[derive(Debug)]
pub struct Tokens<'a> {
    session: &'a mut Session,
    sequence: usize,
    prompt: &'a [i32],
    last: Option<i32>, /* made and not yet in the sequence: the prompt to go on with */
    options: GenerateOptions<'a>,
    made: usize,
    state: State,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Going,
    Stopped(StopReason),
    Failed,
}

impl Tokens<'_> {
    /// Why generation ended; `None` before it has, and after an error.
    pub fn reason(&self) -> Option<StopReason> {
        match self.state {
            State::Stopped(reason) => Some(reason),
            State::Going | State::Failed => None,
        }
    }

    /// One token of the same generation: the choice depends on the seed and the length alone.
    fn make(&mut self) -> Result<Option<i32>> {
        let one = GenerateOptions { max_tokens: 1, ..self.options };
        let mut made = None;
        let prompt = match &self.last {
            Some(last) => std::slice::from_ref(last),
            None => self.prompt,
        };
        self.session.generate(self.sequence, prompt, &one, |token| {
            made = Some(token);
            ControlFlow::Continue(())
        })?;
        Ok(made)
    }
}

impl Iterator for Tokens<'_> {
    type Item = Result<i32>;

    fn next(&mut self) -> Option<Result<i32>> {
        if !matches!(self.state, State::Going) {
            return None;
        }
        if self.options.max_tokens > 0 && self.made == self.options.max_tokens {
            self.state = State::Stopped(StopReason::Length);
            return None;
        }
        if self.last.is_some() && self.session.length(self.sequence) == self.session.max_len {
            self.state = State::Stopped(StopReason::Context);
            return None;
        }
        match self.make() {
            Ok(Some(token)) => {
                self.last = Some(token);
                self.made += 1;
                Some(Ok(token))
            }
            Ok(None) => {
                self.state = State::Stopped(StopReason::Id);
                None
            }
            Err(error) => {
                self.state = State::Failed;
                Some(Err(error))
            }
        }
    }
}

impl FusedIterator for Tokens<'_> {}
