// error: E0308
// The number of a page is not that of a word.
use libkvm::*;

fn main() {
    let machine = Machine::new(Backing::Anonymous, 16);
    machine.slot.write(0, Page(0), 1);
}
