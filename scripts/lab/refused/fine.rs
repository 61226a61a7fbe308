// fine
// What the others do wrong, done right: they are refused for no other reason.
use libkvm::*;

guest_code! {
    fn count(guest: Guest, base: Gva, first: u64, _second: u64) {
        let mut value = first;
        loop {
            guest.write(base + Bytes(8), value);
            guest.sync(value, 0);
            value = value.wrapping_add(1);
        }
    }
}

fn main() {
    let machine = Machine::with_guest(Backing::Anonymous, 16, 1, count);
    let bitmap = Bitmap::new(16);
    let flag = machine.enable(&bitmap);
    machine.slot.write(Page(0), 0, 1);
    flag.disable();
    drop(bitmap);
}
