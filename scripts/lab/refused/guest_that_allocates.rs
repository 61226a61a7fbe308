// guest: alloc
// Guest code that allocates is refused: see check_guest.sh.
use libkvm::*;

guest_code! {
    fn allocate(guest: Guest, _base: Gva, first: u64, _second: u64) {
        loop {
            let boxed = std::hint::black_box(Box::new(first));
            guest.sync(*boxed, 0);
        }
    }
}

fn main() {
    let _ = Vm::new(1, 1, allocate);
}
