// error: E0505
// A bitmap is there for as long as a slot has the flag.
use libkvm::*;

fn main() {
    let machine = Machine::new(Backing::Anonymous, 16);
    let bitmap = Bitmap::new(16);
    let flag = machine.enable(&bitmap);
    drop(bitmap);
    flag.disable();
}
