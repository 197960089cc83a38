//! Loads a saved model and streams text: generate FOLDER [PROMPT [TOKENS]].
use std::error::Error;
use std::io::{stdout, Write};
use std::{env, process};

use moenn::{
    Device, FileOptions, GenerateOptions, Model, SampleOptions, Session, SessionOptions,
    TextStream, Tokenizer,
};

fn run(folder: &str, prompt: &str, max_tokens: usize) -> Result<(), Box<dyn Error>> {
    let device = Device::cpu()?;
    let tokenizer = Tokenizer::bytes()?;
    let model = Model::load(&device, folder, None, FileOptions::default())?;
    let mut session = Session::new(&model, &SessionOptions::default())?;
    let options = GenerateOptions {
        sampling: SampleOptions { temperature: 0.8, seed: 1, ..Default::default() },
        max_tokens,
        stop_ids: &[Tokenizer::BYTE_EOS],
    };
    let ids = tokenizer.encode(prompt)?;
    let mut out = stdout();
    out.write_all(prompt.as_bytes())?;
    let mut text = TextStream::new(&tokenizer, false);
    for token in session.tokens(0, &ids, &options) {
        out.write_all(text.push(token?)?.as_bytes())?;
        out.flush()?;
    }
    out.write_all(text.finish()?.as_bytes())?;
    writeln!(out)?;
    Ok(())
}

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let result = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [folder] => run(folder, "\n", 0),
        [folder, prompt] => run(folder, prompt, 0),
        [folder, prompt, tokens] => {
            tokens.parse().map_err(Box::from).and_then(|n| run(folder, prompt, n))
        }
        _ => Err("usage: generate FOLDER [PROMPT [TOKENS]]".into()),
    };
    if let Err(error) = result {
        eprintln!("generate: {error}");
        process::exit(1)
    }
}
