//! Asks the scheduler for a short slice for the calling thread.
//!
//! On a busy machine a woken I/O thread waits for whoever computes to use up its slice. A thread
//! that asks for short slices of its own is let in earlier. Linux takes the wish from 6.12 on and
//! from anybody; elsewhere nothing changes. The only unsafe code of this crate.

#![allow(unsafe_code)]

const SLICE_NS: u64 = 100_000;

/// `struct sched_attr` of the kernel, first version.
#[repr(C)]
#[derive(Default)]
struct SchedAttr {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// Asks for slices of 100 µs for this thread. A refusal is only logged.
pub(crate) fn ask_for_short_slices() {
    let size = u32::try_from(size_of::<SchedAttr>()).unwrap_or_default();
    let mut attr = SchedAttr {
        size,
        ..SchedAttr::default()
    };
    // SAFETY: `attr` is writable and `size` bytes long, which the call is told; thread 0 is the
    // calling one. The kernel writes at most `size` bytes and keeps no pointer.
    let got = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attr, size, 0) };
    if got == 0 {
        attr.runtime = SLICE_NS;
        // SAFETY: `attr` is readable and says its own length; the kernel keeps no pointer.
        let set = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0) };
        if set == 0 {
            return;
        }
    }
    let error = std::io::Error::last_os_error();
    tracing::debug!(%error, "no short slices for the journal thread");
}

#[cfg(test)]
mod tests {
    #[test]
    fn asking_does_no_harm() {
        std::thread::spawn(super::ask_for_short_slices).join().unwrap();
    }
}
