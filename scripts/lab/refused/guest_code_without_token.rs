// error: no rules expected
// Guest code takes what only a guest has, so the host cannot call it.
use libkvm::*;

guest_code! {
    fn host(_guest: u64, _base: Gva, _first: u64, _second: u64) {
        loop {}
    }
}

fn main() {
    host(0, Gva(0), 0, 0);
}
