// error: no rules expected
// As above: it takes all that a vCPU starts with.
use libkvm::*;

guest_code! {
    fn host() {
        loop {}
    }
}

fn main() {
    host();
}
