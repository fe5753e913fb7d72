//! kubler-server
fn main() {}
