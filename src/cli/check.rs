//! `emberlane check`: reads a configuration file and prints the form it resolves to, or everything that is wrong.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::config::{self, Config, ConfigError, Flags};

/// The file read when none is named.
pub const DEFAULT_FILE: &str = "conf/emberlane.yaml";

/// Checks a configuration file and prints its resolved form, defaults filled in, as YAML.
#[derive(Debug, clap::Args)]
pub struct CheckArgs {
    /// The configuration file.
    #[arg(value_name = "FILE", conflicts_with = "config")]
    pub file: Option<PathBuf>,
    /// The same, as `serve` takes it.
    #[arg(short, long, value_name = "FILE", default_value = DEFAULT_FILE)]
    pub config: PathBuf,
    /// Print the JSON schema of configuration files instead.
    #[arg(long)]
    pub schema: bool,
}

/// Exits 0 and prints the resolved form; or exits 1 with every error on standard error, 2 when there is no such file.
#[must_use]
pub fn run(args: &CheckArgs) -> ExitCode {
    match report(args) {
        Ok(text) => print(&text),
        Err(error) => {
            // Nobody is left to tell when standard error is closed.
            let _ = writeln!(std::io::stderr().lock(), "{error}");
            error.exit_code()
        }
    }
}

fn report(args: &CheckArgs) -> Result<String, LoadError> {
    if args.schema {
        return Ok(format!("{:#}\n", config::schema()));
    }
    load(args.file.as_ref().unwrap_or(&args.config), &Flags::default()).map(|config| config::to_yaml(&config))
}

fn print(text: &str) -> ExitCode {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_closed) => ExitCode::FAILURE,
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file was read and is wrong. Displayed one error a line: `FILE:LINE:COLUMN: path: message`.
    #[error("{}", lines(path, errors))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// All that is wrong, in the order of the file.
        errors: Vec<ConfigError>,
    },
}

impl LoadError {
    /// 1 for a file that is wrong, 2 for one that cannot be read.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Unreadable { .. } => ExitCode::from(2),
            Self::Invalid { .. } => ExitCode::from(1),
        }
    }
}

/// Reads a configuration file; what the flags say goes before it.
///
/// # Errors
/// When the file cannot be read, or with everything that is wrong with it.
pub fn load(path: &Path, flags: &Flags) -> Result<Config, LoadError> {
    let bytes = read_bounded(path).map_err(|source| LoadError::Unreadable { path: path.to_owned(), source })?;
    let invalid = |errors| LoadError::Invalid { path: path.to_owned(), errors };
    match std::str::from_utf8(&bytes) {
        Ok(text) => config::parse_with(text, flags).and_then(with_its_files).map_err(invalid),
        Err(reason) => {
            let before = bytes.get(..reason.valid_up_to()).unwrap_or_default();
            let line = u32::try_from(memchr::memchr_iter(b'\n', before).count()).unwrap_or(u32::MAX).saturating_add(1);
            let message = "not UTF-8 text".to_owned();
            Err(invalid(vec![ConfigError { line, column: 0, path: String::new(), message }]))
        }
    }
}

/// The configuration, if the files it names that must be there can be read. (A list of replicas may come later.)
///
/// # Errors
/// Which cannot, and why.
pub fn with_its_files(config: Config) -> Result<Config, Vec<ConfigError>> {
    let Some(keys) = &config.beacons.keys else { return Ok(config) };
    let mut first = [0];
    match std::fs::File::open(keys).and_then(|mut file| file.read(&mut first)) {
        Ok(_) => Ok(config),
        Err(error) => {
            let message = format!("cannot read {}: {error}; beacons are not checked without it", keys.display());
            Err(vec![ConfigError { line: 0, column: 0, path: "beacons.keys".to_owned(), message }])
        }
    }
}

/// One byte more than is allowed at most, so that a file too large is told from one that just fits.
fn read_bounded(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let bound = u64::try_from(config::TEXT_BYTES_MAX).unwrap_or(u64::MAX).saturating_add(1);
    std::fs::File::open(path)?.take(bound).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn lines(file: &Path, errors: &[ConfigError]) -> String {
    let line = |error: &ConfigError| {
        let place = match (error.line, error.column) {
            (0, _) => String::new(),
            (line, 0) => format!("{}:{line}: ", file.display()),
            (line, column) => format!("{}:{line}:{column}: ", file.display()),
        };
        let path = if error.path.is_empty() { String::new() } else { format!("{}: ", error.path) };
        format!("{place}{path}{}", error.message)
    };
    errors.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Command {
        #[command(flatten)]
        check: CheckArgs,
    }

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        file
    }

    #[test]
    fn errors_are_shown_as_editors_read_them() {
        let file = file(b"replicas:\n  - https://a:1\nretry: { attempts: 0 }\n");
        let name = file.path().display();
        let error = load(file.path(), &Flags::default()).unwrap_err();
        assert_eq!(error.exit_code(), ExitCode::from(1));
        let lines: Vec<String> = error.to_string().lines().map(str::to_owned).collect();
        assert!(lines[0].starts_with(&format!("{name}:2:5: replicas[0]: TLS to replicas is not supported yet")));
        assert_eq!(lines[1], format!("{name}:3:20: retry.attempts: \"0\" is out of range: from 1 to 10"));
    }

    #[test]
    fn files_that_are_no_text_are_refused() {
        let error = load(file(b"listen:\n\xff").path(), &Flags::default()).unwrap_err();
        assert!(error.to_string().ends_with(":2: not UTF-8 text"), "{error}");
        let error = load(file(&vec![b'#'; 3 << 20]).path(), &Flags::default()).unwrap_err();
        assert!(error.to_string().contains("at most 2097152 are read"), "{error}");
        let error = load(Path::new("/nonexistent/file.yaml"), &Flags::default()).unwrap_err();
        assert_eq!(error.exit_code(), ExitCode::from(2));
        assert!(error.to_string().starts_with("/nonexistent/file.yaml: "), "{error}");
        assert!(matches!(load(Path::new("/"), &Flags::default()), Err(LoadError::Unreadable { .. })));
    }

    #[test]
    fn a_file_of_keys_that_cannot_be_read_is_told() {
        let error = load(file(b"replicas: []\nbeacons: {keys: /nonexistent/keys}\n").path(), &Flags::default());
        let error = error.unwrap_err();
        assert!(error.to_string().starts_with("beacons.keys: cannot read /nonexistent/keys: "), "{error}");
        let keys = file(b"1:00");
        let flags = Flags { beacon_keys: Some(keys.path().display().to_string()), ..Flags::default() };
        assert_eq!(load(file(b"replicas: []\n").path(), &flags).unwrap().beacons.keys.as_deref(), Some(keys.path()));
    }

    #[test]
    fn arguments_have_defaults() {
        let command = Command::try_parse_from(["check"]).unwrap();
        assert_eq!(command.check.config, Path::new(DEFAULT_FILE));
        let command = Command::try_parse_from(["check", "-c", "conf/minimal.yaml"]).unwrap();
        let printed = report(&command.check).unwrap();
        assert!(printed.contains("\n  - id: 127.0.0.1:8001\n    url: http://127.0.0.1:8001\n"), "{printed}");
        let command = Command::try_parse_from(["check", "--schema"]).unwrap();
        assert!(report(&command.check).unwrap().starts_with("{\n"));
    }
}
