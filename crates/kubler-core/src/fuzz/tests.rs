use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::*;

/// Changed copies of each seed that are tried here; the fuzzer tries millions.
const CHANGED_COPIES: u64 = 150;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz")
}

fn names(folder: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

fn seeds(name: &str) -> Vec<(String, Vec<u8>)> {
    let folder = folder().join("seeds").join(name);
    names(&folder)
        .into_iter()
        .map(|seed| {
            let bytes = std::fs::read(folder.join(&seed)).unwrap();
            (seed, bytes)
        })
        .collect()
}

/// Numbers that are the same in every run (xorshift64).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % u64::try_from(bound.max(1)).unwrap()).unwrap()
    }
}

fn changed(seed: &[u8], other: &[u8], numbers: &mut Numbers) -> Vec<u8> {
    let mut copy = seed.to_vec();
    for _ in 0..=numbers.below(3) {
        let at = numbers.below(copy.len());
        match numbers.below(4) {
            0 => copy.truncate(at),
            1 => copy.insert(at, u8::try_from(numbers.below(256)).unwrap()),
            2 => copy.extend_from_slice(&other[numbers.below(other.len())..]),
            _ => {
                if let Some(byte) = copy.get_mut(at) {
                    *byte ^= 1 << numbers.below(8);
                }
            }
        }
    }
    copy
}

#[test]
fn every_property_has_a_target_and_seeds_that_are_taken() {
    let known: BTreeSet<_> = PROPERTIES
        .iter()
        .map(|(name, _)| (*name).to_owned())
        .collect();
    assert_eq!(known.len(), PROPERTIES.len());
    assert_eq!(names(&folder().join("seeds")), known);
    let targets = names(&folder().join("fuzz_targets"));
    assert_eq!(
        targets,
        known.iter().map(|name| format!("{name}.rs")).collect()
    );
    for (name, property) in PROPERTIES {
        let taken = seeds(name).iter().any(|(_, seed)| property(seed));
        assert!(taken, "no seed of `{name}` is taken");
    }
}

#[rstest::rstest]
fn every_seed_and_what_is_near_it_keeps_its_property(
    #[values(
        "token",
        "path",
        "headers",
        "policy",
        "cases",
        "configuration",
        "record",
        "notes",
        "verify",
        "artifact"
    )]
    name: &str,
) {
    let seeds = seeds(name);
    let mut numbers = Numbers(0x6b75_626c_6572);
    for (seed, bytes) in &seeds {
        println!("{name}/{seed}");
        run(name, bytes);
        for _ in 0..CHANGED_COPIES {
            let (_, other) = &seeds[numbers.below(seeds.len())];
            run(name, &changed(bytes, other, &mut numbers));
        }
    }
}
