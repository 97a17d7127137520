//! Watches a file that lists replicas: by asking for its size, its time and its inode, which works for files that are
//! replaced (renamed over, or behind a link that moves, as a mounted `ConfigMap` is) and on every file system.
//!
//! A file is read when it has looked the same twice, so that one that is being written is read when that is done; a cut
//! list would still be a list. While a file is missing or wrong, the list before it stays.

use super::sources::{Change, Origin};
use crate::config::{ReplicaConfig, TEXT_BYTES_MAX, parse_replicas};
use std::fs::{File, Metadata};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::mpsc;

/// How often the file is looked at.
const POLL: Duration = Duration::from_millis(250);
/// Most errors in a file that are told.
const ERRORS_SHOWN: usize = 3;

/// Watches the file at `path` until it is cut short, and tells what it finds over `changes`.
pub(super) async fn watch(path: PathBuf, changes: mpsc::Sender<Change>) {
    let origin = Origin::File(path.clone());
    let mut watched = Watched { path, read: None, seen: None, error: None };
    loop {
        // A file system that hangs holds up this task alone.
        let look = tokio::task::spawn_blocking(move || {
            let outcome = watched.look();
            (watched, outcome)
        });
        let Ok((next, outcome)) = look.await else { return };
        watched = next;
        let change = match outcome {
            None => None,
            Some(Ok(list)) => Some((Some(list.into_iter().map(Into::into).collect()), None)),
            Some(Err(error)) => Some((None, Some(error))),
        };
        if let Some((found, error)) = change
            && changes.send(Change { origin: origin.clone(), found, error }).await.is_err()
        {
            return;
        }
        tokio::time::sleep(POLL).await;
    }
}

/// What tells one version of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
}

impl Stamp {
    fn of(file: &Metadata) -> Self {
        let modified = (file.mtime(), file.mtime_nsec());
        Self { device: file.dev(), inode: file.ino(), bytes: file.size(), modified }
    }
}

#[derive(Debug)]
struct Watched {
    path: PathBuf,
    /// The version that was read last.
    read: Option<Stamp>,
    /// The version that was there at the last look.
    seen: Option<Stamp>,
    /// What was told last, while something is wrong.
    error: Option<String>,
}

impl Watched {
    /// What there is to tell: a new list, or what is newly wrong.
    fn look(&mut self) -> Option<Result<Vec<ReplicaConfig>, String>> {
        let is_first = self.read.is_none() && self.seen.is_none() && self.error.is_none();
        let stamp = match std::fs::metadata(&self.path) {
            Ok(file) => Stamp::of(&file),
            Err(error) => {
                (self.read, self.seen) = (None, None);
                return self.tell(format!("cannot read {}: {error}", self.path.display()));
            }
        };
        let has_settled = self.seen.replace(stamp) == Some(stamp);
        if self.read == Some(stamp) || !(has_settled || is_first) {
            return None;
        }
        let text = match read(&self.path) {
            Ok(text) => text,
            // No change of the file may tell when it can be read again: it is tried at each look.
            Err(error) => return self.tell(error),
        };
        let list = parse(&self.path, &text);
        if std::fs::metadata(&self.path).ok().as_ref().map(Stamp::of) != Some(stamp) {
            // It changed while it was read.
            return None;
        }
        self.read = Some(stamp);
        match list {
            Ok(list) => {
                self.error = None;
                Some(Ok(list))
            }
            Err(error) => self.tell(error),
        }
    }

    fn tell(&mut self, error: String) -> Option<Result<Vec<ReplicaConfig>, String>> {
        if self.error.as_ref() == Some(&error) {
            return None;
        }
        self.error = Some(error.clone());
        Some(Err(error))
    }
}

fn read(path: &Path) -> Result<String, String> {
    let mut text = String::new();
    let bound = u64::try_from(TEXT_BYTES_MAX).unwrap_or(u64::MAX).saturating_add(1);
    let outcome = File::open(path).and_then(|file| file.take(bound).read_to_string(&mut text));
    outcome.map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    Ok(text)
}

fn parse(path: &Path, text: &str) -> Result<Vec<ReplicaConfig>, String> {
    parse_replicas(text).map_err(|errors| {
        let shown: Vec<String> = errors.iter().take(ERRORS_SHOWN).map(ToString::to_string).collect();
        let more = errors.len().saturating_sub(ERRORS_SHOWN);
        let more = if more > 0 { format!("; and {more} more errors") } else { String::new() };
        format!("{}: {}{more}", path.display(), shown.join("; "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watched(path: &Path) -> Watched {
        Watched { path: path.to_owned(), read: None, seen: None, error: None }
    }

    fn ids(outcome: Option<Result<Vec<ReplicaConfig>, String>>) -> Vec<String> {
        outcome.expect("news").expect("a list").into_iter().map(|replica| replica.id).collect()
    }

    #[test]
    fn a_list_is_read_once_it_has_settled() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("replicas.yaml");
        let mut watched = watched(&path);
        let missing = watched.look().unwrap().unwrap_err();
        assert!(missing.contains("cannot read") && watched.look().is_none(), "told once: {missing}");
        std::fs::write(&path, "- http://h:1\n").unwrap();
        assert!(watched.look().is_none(), "somebody may still be writing it");
        std::fs::write(&path, "- http://h:1\n- http://h:2\n").unwrap();
        assert!(watched.look().is_none());
        assert_eq!(ids(watched.look()), ["h:1", "h:2"]);
        assert!(watched.look().is_none());
        std::fs::write(directory.path().join("next"), "[]").unwrap();
        std::fs::rename(directory.path().join("next"), &path).unwrap();
        assert!(watched.look().is_none());
        assert!(ids(watched.look()).is_empty());
    }

    #[test]
    fn at_the_start_a_file_is_read_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("replicas.json");
        std::fs::write(&path, r#"[{"url": "http://h:1"}]"#).unwrap();
        assert_eq!(ids(watched(&path).look()), ["h:1"]);
    }

    #[test]
    fn a_file_that_is_wrong_is_told_with_its_place_and_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("replicas.yaml");
        let mut watched = watched(&path);
        for (text, expected) in
            [("", "an empty file"), ("- http://h:1\n- h", "line 2: [1]: expected a URL"), ("[", "not valid YAML")]
        {
            std::fs::write(&path, text).unwrap();
            let told = watched.look().or_else(|| watched.look()).unwrap().unwrap_err();
            assert!(told.contains(expected), "{told}");
            assert!(watched.look().is_none());
        }
        std::fs::write(&path, "\u{0}\u{ff}").unwrap();
        assert!(watched.look().or_else(|| watched.look()).unwrap().is_err());
        std::fs::write(&path, "- http://h:1").unwrap();
        watched.look();
        assert_eq!(ids(watched.look()), ["h:1"]);
    }
}
