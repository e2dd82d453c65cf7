//! Memory of a process that only serves requests.
//!
//! The allocator asks for huge pages, which pays for the tables of the topologies: fewer misses of the address cache. An API or a
//! relay lives in a few megabytes, of which every huge page wastes most: with them it took 34 MB, without 21.

/// No huge pages from here on. Call before threads and large allocations; what it cannot do, it leaves as it is.
#[cfg(target_os = "linux")]
pub fn small_pages() {
    // SAFETY: the call takes numbers only, and changes nothing but how later page faults are served.
    unsafe {
        libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0);
    }
}

/// Elsewhere the system decides.
#[cfg(not(target_os = "linux"))]
pub fn small_pages() {}
