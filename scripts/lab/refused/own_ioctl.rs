// error: E0603
// Which ioctl takes what is for the crate to say.
use libkvm::sys::Ioctl;

fn main() {
    let _: Option<Ioctl<u64>> = None;
}
