//! The direction of the arrows between our crates: what each may use, as its manifest says.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests stop at the first surprise"
)]

use std::collections::BTreeSet;
use std::path::Path;

use rstest::rstest;

/// Our crates in a section of a manifest.
fn used(name: &str, section: &str) -> BTreeSet<String> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .join(name)
        .join("Cargo.toml");
    let text = std::fs::read_to_string(manifest).unwrap();
    let wanted = format!("[{section}]");
    let lines = text.lines().skip_while(|line| *line != wanted).skip(1);
    lines
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| line.split(['.', ' ', '=']).next())
        .filter(|dependency| dependency.starts_with("kubler-"))
        .map(str::to_owned)
        .collect()
}

#[rstest]
#[case("kubler-core", &[])]
#[case("kubler-api", &[])]
#[case("kubler-server", &["kubler-api", "kubler-core"])]
#[case("kubler-cli", &["kubler-api", "kubler-core"])]
// It must not depend on what it helps to test.
#[case("kubler-testkit", &[])]
fn a_crate_uses_only_what_it_may(#[case] name: &str, #[case] allowed: &[&str]) {
    let allowed: BTreeSet<_> = allowed.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(used(name, "dependencies"), allowed);
}

#[test]
fn the_core_touches_no_world() {
    let manifest =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap();
    let (dependencies, _) = manifest.split_once("[dev-dependencies]").unwrap();
    for world in [
        "tokio",
        "hyper",
        "reqwest",
        "sqlx",
        "rustix",
        "getrandom",
        "rand",
        "axum",
    ] {
        assert!(
            !dependencies.contains(&format!("\n{world}")),
            "the core uses `{world}`"
        );
    }
}
