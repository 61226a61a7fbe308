// error: that must be used
// The flag is cleared when what enable() returned is dropped, so that has to be kept.
#![deny(unused_must_use)]
use libkvm::*;

fn main() {
    let machine = Machine::new(Backing::Anonymous, 16);
    let bitmap = Bitmap::new(16);
    machine.enable(&bitmap);
}
