// error: E0423
// What only guests have cannot be made.
use libkvm::*;

fn main() {
    Guest(0).write(Gva(0), 1);
}
