// error: usage of an `unsafe` block
// The section of guest code counts as unsafe, and what is in there must not be for that.
use libkvm::*;

guest_code! {
    fn unreachable(_guest: Guest, _base: Gva, _first: u64, _second: u64) {
        unsafe { std::hint::unreachable_unchecked() }
    }
}

fn main() {
    let _ = Vm::new(1, 1, unreachable);
}
