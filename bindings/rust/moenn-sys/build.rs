//! Finds libmoenn: in the folder that MOENN_DIR names (a prefix or a build folder), else by
//! pkg-config. Hands its folder on to dependents as DEP_MOENN_LIBDIR.
use std::path::Path;
use std::process::{exit, Command};
use std::{env, fs};

fn main() {
    println!("cargo:rerun-if-env-changed=MOENN_DIR");
    println!("cargo:rerun-if-env-changed=PKG_CONFIG_PATH");
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-link-lib=dylib=moenn");
    let folders = match env::var("MOENN_DIR") {
        Ok(folder) => vec![in_folder(Path::new(&folder))],
        Err(_) => by_pkg_config(),
    };
    for folder in &folders {
        println!("cargo:rustc-link-search=native={folder}");
        println!("cargo:libdir={folder}");
    }
}

/// The folder below a prefix or build folder that holds libmoenn.so, `lib/x86_64-linux-gnu` of
/// Debian among them.
fn in_folder(folder: &Path) -> String {
    let mut places = vec![folder.to_path_buf()];
    for lib in ["lib", "lib64"].map(|name| folder.join(name)) {
        places.extend(fs::read_dir(&lib).into_iter().flatten().flatten().map(|entry| entry.path()));
        places.push(lib);
    }
    match places.iter().find(|place| place.join("libmoenn.so").is_file()) {
        Some(place) => {
            fs::canonicalize(place).unwrap_or_else(|_| place.clone()).display().to_string()
        }
        None => {
            fail(&format!("MOENN_DIR is {}, and there is no libmoenn.so in it", folder.display()))
        }
    }
}

/// Folders that pkg-config names; none where the library is in a place that the linker knows.
fn by_pkg_config() -> Vec<String> {
    let program = env::var("PKG_CONFIG").unwrap_or_else(|_| "pkg-config".into());
    let output =
        Command::new(&program).args(["--libs-only-L", "moenn >= 0.1"]).output().unwrap_or_else(
            |error| fail(&format!("MOENN_DIR is not set, and {program} does not run: {error}")),
        );
    if !output.status.success() {
        fail(&format!(
            "MOENN_DIR is not set, and {}",
            String::from_utf8_lossy(&output.stderr).trim()
        ));
    }
    let flags = String::from_utf8_lossy(&output.stdout).into_owned();
    flags.split_whitespace().filter_map(|flag| flag.strip_prefix("-L")).map(String::from).collect()
}

fn fail(reason: &str) -> ! {
    eprintln!(
        "{reason}.\nInstall libmoenn, or set MOENN_DIR to the absolute path of its prefix or build \
         folder."
    );
    exit(1)
}
