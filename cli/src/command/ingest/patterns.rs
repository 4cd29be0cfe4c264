//! Which files are meant: paths and patterns, looked up again and again while following.
//!
//! A path that exists is itself, also where it has characters of a pattern in it. One file counts
//! once, whatever leads to it.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use crate::command::Usage;

use super::source::FileId;

/// What stands for standard input.
const STDIN: &str = "-";
/// Inputs of one run: no more producers are remembered by a partition.
pub const INPUTS_MAX: usize = 10_000;

/// The inputs, as they were named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patterns {
    /// Whether standard input is one of them.
    pub stdin: bool,
    patterns: Vec<Pattern>,
    /// Files that patterns pass over.
    own: Vec<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Pattern {
    Path(PathBuf),
    Glob(String),
}

/// A regular file or a stream that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Where.
    pub path: PathBuf,
    /// Which file.
    pub id: FileId,
    /// Its size.
    pub size: u64,
}

/// What was found at one look.
#[derive(Debug, Default)]
pub struct Sighting {
    /// Files, each once.
    pub found: Vec<Found>,
    /// Files beyond [`INPUTS_MAX`].
    pub too_many: usize,
    /// What there is no file for, and why.
    pub missing: Vec<(String, io::Error)>,
}

impl Patterns {
    /// Takes the inputs of a command line.
    pub fn parse(arguments: &[OsString]) -> Result<Self, Usage> {
        let mut parsed = Self {
            stdin: false,
            patterns: Vec::new(),
            own: Vec::new(),
        };
        for argument in arguments {
            if argument == STDIN {
                if std::mem::replace(&mut parsed.stdin, true) {
                    return Err(Usage("standard input (-) is named twice".to_owned()));
                }
                continue;
            }
            let path = std::path::absolute(argument)
                .map_err(|error| Usage(format!("{}: {error}", Path::new(argument).display())))?;
            let text = path.to_str().filter(|text| text.contains(['*', '?', '[']));
            let pattern = match text {
                Some(text) if std::fs::symlink_metadata(&path).is_err() => {
                    glob::Pattern::new(text).map_err(|error| {
                        Usage(format!("{}: {}", Path::new(argument).display(), error.msg))
                    })?;
                    Pattern::Glob(text.to_owned())
                }
                _ => Pattern::Path(path),
            };
            parsed.patterns.push(pattern);
        }
        Ok(parsed)
    }

    /// Passes over these files where a pattern leads to them: a command that ships what it writes
    /// itself would never end.
    pub fn pass_over(&mut self, own: impl IntoIterator<Item = PathBuf>) {
        self.own.extend(own);
    }

    /// Looks at what is there now. Folders that a pattern leads to are passed over.
    pub fn look(&self) -> Sighting {
        let mut sighting = Sighting::default();
        let mut seen = BTreeSet::new();
        for pattern in &self.patterns {
            match pattern {
                Pattern::Path(path) => match std::fs::metadata(path) {
                    Ok(metadata) if metadata.is_dir() => {
                        let error = io::Error::new(io::ErrorKind::IsADirectory, "it is a directory");
                        sighting.missing.push((path.display().to_string(), error));
                    }
                    Ok(metadata) => sighting.add(&mut seen, path.clone(), &metadata),
                    Err(error) => sighting.missing.push((path.display().to_string(), error)),
                },
                Pattern::Glob(text) => {
                    let before = seen.len();
                    let mut any = false;
                    // Checked when it was parsed.
                    for path in glob::glob(text).into_iter().flatten() {
                        any = true;
                        match path {
                            Ok(path) if self.own.contains(&path) => {}
                            Ok(path) => match std::fs::metadata(&path) {
                                Ok(metadata) if metadata.is_dir() => {}
                                Ok(metadata) => sighting.add(&mut seen, path, &metadata),
                                // Gone since it was listed.
                                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                                Err(error) => sighting.missing.push((path.display().to_string(), error)),
                            },
                            Err(error) => {
                                let path = error.path().display().to_string();
                                sighting.missing.push((path, error.into()));
                            }
                        }
                    }
                    if !any && seen.len() == before {
                        let error = io::Error::new(io::ErrorKind::NotFound, "no file matches the pattern");
                        sighting.missing.push((text.clone(), error));
                    }
                }
            }
        }
        sighting
    }
}

impl Sighting {
    fn add(&mut self, seen: &mut BTreeSet<FileId>, path: PathBuf, metadata: &std::fs::Metadata) {
        let id = FileId::of(metadata);
        if !seen.insert(id) {
            return;
        }
        if self.found.len() >= INPUTS_MAX {
            self.too_many += 1;
            return;
        }
        self.found.push(Found {
            path,
            id,
            size: metadata.len(),
        });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use super::*;

    fn parse(arguments: &[&str]) -> Result<Patterns, Usage> {
        let arguments: Vec<_> = arguments.iter().map(OsString::from).collect();
        Patterns::parse(&arguments)
    }

    fn names(sighting: &Sighting) -> Vec<String> {
        let name = |found: &Found| found.path.file_name().unwrap().to_string_lossy().into_owned();
        sighting.found.iter().map(name).collect()
    }

    #[test]
    fn patterns_and_paths_lead_to_each_file_once() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        for name in ["a.log", "b.log", "c.txt", "d[1].log"] {
            std::fs::write(at(name), name).unwrap();
        }
        std::fs::create_dir(at("sub.log")).unwrap();
        std::os::unix::fs::symlink(at("a.log"), at("link")).unwrap();
        let patterns = parse(&[&at("link"), &at("*.log"), &at("d[1].log"), &at("c.txt")]).unwrap();
        let sighting = patterns.look();
        assert_eq!(names(&sighting), ["link", "b.log", "d[1].log", "c.txt"]);
        assert!(sighting.missing.is_empty(), "{:?}", sighting.missing);
        std::fs::write(at("new.log"), "x").unwrap();
        assert_eq!(patterns.look().found.len(), 5);
        let mut but_one = parse(&[&at("*.log")]).unwrap();
        but_one.pass_over([folder.path().join("b.log")]);
        assert_eq!(names(&but_one.look()), ["a.log", "d[1].log", "new.log"]);
    }

    #[test]
    fn what_is_not_there_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        let patterns = parse(&[&at("no"), &at("*.no"), folder.path().to_str().unwrap(), "-"]).unwrap();
        assert!(patterns.stdin);
        let sighting = patterns.look();
        let missing: Vec<_> = sighting
            .missing
            .iter()
            .map(|(path, error)| format!("{path}: {error}"))
            .collect();
        assert_eq!(missing.len(), 3);
        assert!(missing[0].contains("/no: No such file"), "{missing:?}");
        assert!(missing[1].contains("/*.no: no file matches"), "{missing:?}");
        assert!(missing[2].ends_with("it is a directory"), "{missing:?}");
        assert!(parse(&["-", "-"]).unwrap_err().0.contains("twice"));
        assert!(parse(&["/a/***"]).unwrap_err().0.contains("***"));
    }
}
