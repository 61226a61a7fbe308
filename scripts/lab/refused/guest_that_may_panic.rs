// guest: panic
// Guest code that can panic is refused: see check_guest.sh.
use libkvm::*;

guest_code! {
    fn index(guest: Guest, base: Gva, first: u64, _second: u64) {
        let table = [1, 2, 3, base.0];
        loop {
            guest.sync(table[first as usize], 0);
        }
    }
}

fn main() {
    let _ = Vm::new(1, 1, index);
}
