//! The allocator of the binary, and how it treats freed memory.
//!
//! Batches of hundreds of KiB come and go at the rate of the traffic. Given back to the operating
//! system and taken again, each page is cleared anew, which costs more than everything else that is
//! done with it. So freed pages are kept: the process stays as large as its peak, which its byte
//! budgets bound.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_purge_delay` of mimalloc's `mi_option_t`, which its binding does not name.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
const NEVER: std::ffi::c_long = -1;

/// Keeps freed pages. To be called before any thread is started.
pub fn keep_freed_pages() {
    // SAFETY: the option exists in every version of mimalloc that the binding builds, takes any
    // value, and is set while the process has one thread, as the function demands.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, NEVER) }
}
