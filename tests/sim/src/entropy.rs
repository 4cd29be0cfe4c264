//! The process's own randomness and time, as a function of the seed.
//!
//! Hash maps and the scheduler ask the operating system for random numbers once per thread. Here
//! that call is answered from the seed on threads that simulate, so that the order in which a map
//! is gone through, and with it a whole run, repeats. The system's clocks stand still on them: what goes
//! by real time in a library (a date header, when a closed stream is forgotten) does not move at all.
//! Other threads get what they would have got.

use std::cell::Cell;

use forebay_runtime::random::{Random, SeededRandom};

/// What the system's clocks show on threads that simulate: 2026-01-01T00:00:00Z.
const STILL_SECONDS: libc::time_t = 1_767_225_600;

thread_local! {
    static SEED: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Answers this thread's questions for randomness from a seed, until it ends.
///
/// The same question always has the same answer: libraries that ask once per process would shift
/// the answers of everybody after them if there were an order.
pub fn seed_thread(seed: u64) {
    SEED.set(Some(seed));
}

/// What libc's `getrandom` is called for, by the standard library and by crates.
///
/// # Safety
/// `buffer` must be writable for `len` bytes, as for the system call of this name.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(buffer: *mut libc::c_void, len: usize, flags: u32) -> isize {
    let seeded = SEED.try_with(|seed| {
        let random = SeededRandom::stream(seed.get()?, len as u64);
        if len > 0 {
            // SAFETY: the caller promises that the buffer is writable for `len` bytes.
            let bytes = unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), len) };
            random.fill(bytes);
        }
        Some(isize::try_from(len).unwrap_or(isize::MAX))
    });
    if let Ok(Some(filled)) = seeded {
        return filled;
    }
    // SAFETY: passes on the caller's own arguments to the system call that it meant.
    let filled = unsafe { libc::syscall(libc::SYS_getrandom, buffer, len, flags) };
    filled as isize
}

/// What libc's `clock_gettime` is called for.
///
/// # Safety
/// `time` must be writable, as for the system call of this name.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, time: *mut libc::timespec) -> libc::c_int {
    let simulated = SEED.try_with(Cell::get);
    if let Ok(Some(_)) = simulated {
        // SAFETY: the caller promises that `time` is writable.
        unsafe {
            (*time).tv_sec = STILL_SECONDS;
            (*time).tv_nsec = 0;
        }
        return 0;
    }
    // SAFETY: passes on the caller's own arguments to the system call that it meant.
    unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) as libc::c_int }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn order(seed: u64) -> Vec<u32> {
        let run = move || {
            seed_thread(seed);
            let set: HashSet<u32> = (0..64).collect();
            set.into_iter().collect()
        };
        std::thread::spawn(run).join().unwrap_or_default()
    }

    #[test]
    fn a_seed_decides_the_order_of_a_hash_map_and_another_seed_another_one() {
        assert_eq!(order(1), order(1));
        assert_ne!(order(1), order(2));
        let crate_bytes = |seed| {
            std::thread::spawn(move || {
                seed_thread(seed);
                forebay_runtime::random::OsRandom.u64()
            })
            .join()
            .unwrap_or_default()
        };
        assert_eq!(crate_bytes(3), crate_bytes(3));
        assert_ne!(crate_bytes(3), crate_bytes(4));
    }

    #[test]
    fn clocks_stand_still_on_a_thread_that_simulates() {
        let run = || {
            seed_thread(1);
            let (then, begin) = (std::time::SystemTime::now(), std::time::Instant::now());
            std::hint::black_box((0..100_000_u64).sum::<u64>());
            (then.elapsed().ok(), begin.elapsed())
        };
        let still = std::thread::spawn(run).join().ok();
        assert_eq!(
            still,
            Some((Some(std::time::Duration::ZERO), std::time::Duration::ZERO))
        );
    }
}
