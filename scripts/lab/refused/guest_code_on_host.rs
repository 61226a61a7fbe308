// error: E0308
// Guest code cannot be called on the host: that takes what only a guest has.
use libkvm::*;

fn main() {
    guest::read_pages(0, Gva(0), 1, 4096);
}
