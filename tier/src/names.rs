//! Names of objects: built and parsed here and nowhere else.
//!
//! | name                                          | what             | owner               | lifetime                |
//! |-----------------------------------------------|------------------|---------------------|-------------------------|
//! | `cluster`                                     | the cluster's id | first process       | the cluster's           |
//! | `probe/<random 16 hex>`                       | a try at a start | that process        | seconds                 |
//! | `d/<hash 2>/<rev 16>/<session 16>-<count 16>` | runs             | that broker session | until no record names it|
//! | `m/<hash 2>/<rev 16>/<session 16>-<count 16>` | manifest parts   | that broker session | until no record names it|
//!
//! All numbers are hexadecimal. `rev` is a metadata revision that the uploader knew when it began:
//! garbage collection compares it with what live sessions promise. A session is never used by two
//! processes and counts its names, so no name is used twice, also not by a second try (I19). The
//! hash spreads the names over the store's partitions.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use forebay_meta::store::Revision;
use forebay_record::{SessionId, crc32c};

/// The object that says whose bucket this is.
pub(crate) const CLUSTER: &str = "cluster";
/// Prefix of the objects that a start tries the store with.
pub(crate) const PROBES: &str = "probe";

/// What an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKind {
    /// Runs of batches.
    Data,
    /// A root or page of a manifest.
    Manifest,
}

impl ObjectKind {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Data, Self::Manifest];

    /// What the names of this kind begin with, without the slash.
    #[must_use]
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Data => "d",
            Self::Manifest => "m",
        }
    }
}

/// The name of an object that a broker's session had written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName {
    /// What it is.
    pub kind: ObjectKind,
    /// A metadata revision known when the upload began.
    pub revision: Revision,
    /// The session.
    pub session: SessionId,
    /// Counted within the session.
    pub count: u64,
}

impl ObjectName {
    /// Reads a name; none where it is not one of ours, letter by letter.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let mut parts = name.split('/');
        let kind = match parts.next()? {
            "d" => ObjectKind::Data,
            "m" => ObjectKind::Manifest,
            _ => return None,
        };
        let _hash = parts.next()?;
        let revision = number(parts.next()?)?;
        let (session, count) = parts.next()?.split_once('-')?;
        let parsed = Self {
            kind,
            revision: Revision(revision),
            session: SessionId(number(session)?),
            count: number(count)?,
        };
        // The hash and every other letter are as we would write them.
        (parsed.to_string() == name).then_some(parsed)
    }
}

fn number(text: &str) -> Option<u64> {
    (text.len() == 16).then(|| u64::from_str_radix(text, 16).ok())?
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tail = format!(
            "{:016x}/{:016x}-{:016x}",
            self.revision.0, self.session.0, self.count
        );
        let hash = crc32c(tail.as_bytes()) & 0xff;
        write!(f, "{}/{hash:02x}/{tail}", self.kind.prefix())
    }
}

/// Makes the names of one session. There must be one of these per session, or names repeat.
#[derive(Debug)]
pub struct Names {
    session: SessionId,
    next: AtomicU64,
}

impl Names {
    /// Names of a session that made none before.
    #[must_use]
    pub const fn new(session: SessionId) -> Self {
        Self {
            session,
            next: AtomicU64::new(0),
        }
    }

    /// The session.
    #[must_use]
    pub const fn session(&self) -> SessionId {
        self.session
    }

    /// A name that was never given before. `revision` must be one that the session's `l0_floor`
    /// does not exceed, from now until the upload's outcome is decided. One from before the session
    /// counts as the session's own, which it knows: its objects are never older than it is.
    #[must_use]
    pub fn next(&self, kind: ObjectKind, revision: Revision) -> ObjectName {
        ObjectName {
            kind,
            revision: revision.max(Revision(self.session.0)),
            session: self.session,
            count: self.next.fetch_add(1, Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_name_says_what_it_is_and_never_repeats() {
        let names = Names::new(SessionId(0xabc));
        let one = names.next(ObjectKind::Data, Revision(0xdef));
        let two = names.next(ObjectKind::Data, Revision(0xdef));
        assert_ne!(one, two);
        let text = one.to_string();
        assert!(text.starts_with("d/"), "{text}");
        assert!(
            text.ends_with("/0000000000000def/0000000000000abc-0000000000000000"),
            "{text}"
        );
        assert!(
            names
                .next(ObjectKind::Manifest, Revision(7))
                .to_string()
                .starts_with("m/")
        );
    }

    #[test]
    fn no_object_is_older_than_its_session() {
        let early = Names::new(SessionId(50)).next(ObjectKind::Data, Revision(7));
        assert_eq!(early.revision, Revision(50));
    }

    #[test]
    fn foreign_names_are_not_ours() {
        let ours = Names::new(SessionId(1))
            .next(ObjectKind::Data, Revision(2))
            .to_string();
        let other_hash = ours.replacen(&ours[2..4], if &ours[2..4] == "00" { "01" } else { "00" }, 1);
        for name in [
            "",
            "d",
            "cluster",
            "x/00/1/2-3",
            &ours.to_uppercase(),
            &other_hash,
            &format!("{ours}0"),
            &format!("{ours}/x"),
            &ours.replace("0000000000000002", "+000000000000002"),
        ] {
            assert_eq!(ObjectName::parse(name), None, "{name}");
        }
        assert!(ObjectName::parse(&ours).is_some());
    }

    proptest! {
        #[test]
        fn names_parse_back(revision: u64, session: u64, count: u64, manifest: bool) {
            let kind = if manifest { ObjectKind::Manifest } else { ObjectKind::Data };
            let name = ObjectName { kind, revision: Revision(revision), session: SessionId(session), count };
            prop_assert_eq!(ObjectName::parse(&name.to_string()), Some(name));
        }

        #[test]
        fn any_text_is_parsed_without_panic(text in ".{0,80}") {
            let _ = ObjectName::parse(&text);
        }
    }
}
