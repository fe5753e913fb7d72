//! `kubler-server`: the broker's command line.
fn main() {}
