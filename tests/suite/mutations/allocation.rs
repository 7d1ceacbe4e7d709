//! What a parser may hold in memory, and an allocator that keeps the account. The fuzz targets (fuzz/) share this file.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::panic::catch_unwind;

/// What a parser may hold at a time: so many bytes for each of the file, and this many more. The names of all tensors of a
/// model of 1000 blocks, which a config.json of some bytes can ask for, are the latter.
const TIMES: usize = 64;
const MORE: usize = 48 << 20;

/// Feeds a file to a parser. Errors: the parser panicked, or held more than it may.
pub fn check(parser: fn(&[u8]), bytes: &[u8]) -> Result<(), String> {
    let mut panicked = false;
    let held = most_held(|| panicked = catch_unwind(|| parser(bytes)).is_err());
    let limit = TIMES * bytes.len() + MORE;
    if panicked {
        return Err("a panic".to_string());
    }
    if held > limit {
        return Err(format!("{held} bytes held for a file of {}, which allows {limit}", bytes.len()));
    }
    Ok(())
}

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

/// The system's allocator, with an account per thread.
struct Counting;

fn book(bytes: isize) {
    // What it takes to say where a panic was, which the parser may catch, is not the parser's.
    if std::thread::panicking() {
        return;
    }
    let _ = HELD.try_with(|held| {
        held.set(held.get() + bytes);
        let _ = MOST.try_with(|most| most.set(most.get().max(held.get())));
    });
}

// SAFETY: every call is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        book(layout.size() as isize);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        book(-(layout.size() as isize));
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        book(layout.size() as isize);
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        book(size as isize - layout.size() as isize);
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most that `work` holds at a time on this thread.
fn most_held(work: impl FnOnce()) -> usize {
    let before = HELD.get();
    MOST.set(before);
    work();
    (MOST.get() - before) as usize
}
