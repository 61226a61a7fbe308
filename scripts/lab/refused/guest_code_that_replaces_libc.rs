// error: no rules expected
// The host calls a function that is named so, in place of the C library's.
use libkvm::*;

guest_code! {
    /// The host's getpagesize().
    #[no_mangle]
    fn getpagesize(guest: Guest, _base: Gva, _first: u64, _second: u64) {
        guest.done()
    }
}

fn main() {
    let _ = Vm::new(1, 1, getpagesize);
}
