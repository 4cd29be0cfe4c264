//! What checking and building batches costs in memory, counted by the allocator.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use forebay_record::batch::{Builder, Codec, Limits, Scratch, decode, validate, validate_with};

thread_local! {
    /// Allocations and the bytes asked for, by this thread.
    static ASKED: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
}

struct Counting;

impl Counting {
    fn count(bytes: usize) {
        // A thread that ends may still allocate after its counter is gone: nobody asks it then.
        let _ = ASKED.try_with(|asked| {
            let (times, sum) = asked.get();
            asked.set((times + 1, sum + bytes));
        });
    }
}

// SAFETY: every call goes on to the system's allocator with the same arguments.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::count(layout.size());
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::count(layout.size());
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        Self::count(bytes.saturating_sub(layout.size()));
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(memory, layout, bytes) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations and bytes that `work` asks for.
fn asked(work: impl FnOnce()) -> (usize, usize) {
    let (times, bytes) = ASKED.get();
    work();
    let (times_after, bytes_after) = ASKED.get();
    (times_after - times, bytes_after - bytes)
}

const NO_HEADERS: &[(&str, Option<&[u8]>)] = &[];
const LIMITS: Limits = Limits {
    batch_bytes_max: 1 << 20,
    decompressed_bytes_max: 1 << 20,
    allow_control: false,
};

fn fill(builder: &mut Builder) {
    for index in 0..100 {
        let value = [index as u8; 1000];
        builder
            .append(index, Some(b"key"), Some(&value), &[("h", Some(&b"x"[..]))])
            .unwrap();
    }
}

#[test]
fn checking_an_uncompressed_batch_allocates_nothing() {
    let mut builder = Builder::new(Codec::None, 1 << 20);
    fill(&mut builder);
    let batch = builder.finish(None).unwrap();
    assert_eq!(asked(|| assert!(validate(&batch, &LIMITS).is_ok())), (0, 0));
}

#[test]
fn reading_an_uncompressed_batch_allocates_nothing_for_a_record() {
    let mut builder = Builder::new(Codec::None, 1 << 20);
    fill(&mut builder);
    let batch = builder.finish(None).unwrap();
    let (times, bytes) = asked(|| {
        for record in decode(&batch, &LIMITS).unwrap() {
            assert_eq!(record.unwrap().headers.iter().count(), 1);
        }
    });
    // Sharing a buffer for the first time takes a counter, once.
    assert!(times <= 1 && bytes <= 64, "{times} allocations, {bytes} bytes");
}

#[test]
fn checking_a_second_compressed_batch_allocates_nothing() {
    for codec in [Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd] {
        let mut builder = Builder::new(codec, 1 << 20);
        fill(&mut builder);
        let batch = builder.finish(None).unwrap();
        let mut scratch = Scratch::new();
        assert!(validate_with(&batch, &LIMITS, &mut scratch).is_ok());
        let second = asked(|| assert!(validate_with(&batch, &LIMITS, &mut scratch).is_ok()));
        assert_eq!(second, (0, 0), "{codec}");
    }
}

#[test]
fn a_bomb_allocates_no_more_than_the_limit() {
    for codec in [Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd] {
        let mut builder = Builder::new(codec, 1 << 20);
        builder
            .append(0, None, Some(&vec![0; 16 << 20]), NO_HEADERS)
            .unwrap();
        let batch = builder.finish(None).unwrap();
        let (_, bytes) = asked(|| assert!(validate(&batch, &LIMITS).is_err()));
        // Beside the output: the decoder's own state and the text of the error.
        let state = 256 << 10;
        assert!(
            bytes <= LIMITS.decompressed_bytes_max + state,
            "{codec}: {bytes} bytes"
        );
    }
}

#[test]
fn an_uncompressed_batch_within_the_capacity_is_one_buffer() {
    let mut builder = Builder::new(Codec::None, 200 << 10);
    fill(&mut builder);
    drop(builder.finish(None).unwrap());
    let (times, bytes) = asked(|| {
        fill(&mut builder);
        drop(builder.finish(None).unwrap());
    });
    // The buffer and the counter by which batch and builder share it.
    assert!(
        times <= 2 && bytes <= (200 << 10) + 64,
        "{times} allocations, {bytes} bytes"
    );
}
