// error: no rules expected
// As guest_code_that_replaces_libc.rs, by the other attribute.
use libkvm::*;

guest_code! {
    /// The host's free().
    #[export_name = "free"]
    fn any(guest: Guest, _base: Gva, _first: u64, _second: u64) {
        guest.done()
    }
}

fn main() {
    let _ = Vm::new(1, 1, any);
}
