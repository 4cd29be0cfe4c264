//! The journal: one endless sequence of blocks over recycled files, written by one thread.
//!
//! 1. [`pool`] prepares files that were written once, so that writing them again changes no
//!    metadata of the file system; [`files`] knows those in use.
//! 2. [`writer`] collects frames in one aligned buffer and commits it as a block: one write, one
//!    fsync. When a file is full it begins the next with a snapshot.
//! 3. [`scan`] reads everything back at a start, tells a torn tail from damage, and hands the
//!    frames to the replica's rebuild.
//!
//! [`format`] is the byte layout, [`note`] what the node itself writes between the frames.

pub mod files;
pub mod format;
pub mod note;
pub mod pool;
pub mod scan;
pub mod writer;
