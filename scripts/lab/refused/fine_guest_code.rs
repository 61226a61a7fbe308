// fine
// What guest code may look like: public or not, with comments, several at a time.
use libkvm::*;

guest_code! {
    /// Calls the host once.
    pub fn first(guest: Guest, _base: Gva, first: u64, second: u64) {
        guest.sync(first, second);
        guest.done()
    }

    fn second(guest: Guest, base: Gva, pages: u64, stride: u64,) {
        guest.for_each_page(base, pages, stride, |page, address| {
            guest.write(address, page);
        })
    }
}

fn main() {
    let _ = (Vm::new(1, 1, first), Vm::new(1, 1, second));
}
