//! kubler
fn main() {}
