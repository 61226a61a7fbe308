// error: E0308
// The token is the crate's, whatever else has its name here.
use libkvm::{guest_code, Gva};

struct Guest;

guest_code! {
    fn host(_guest: Guest, _base: Gva, _first: u64, _second: u64) {
        loop {}
    }
}

fn main() {
    host(Guest, Gva(0), 0, 0);
}
