//! The RFC 6962 Merkle tree: SHA-256, leaves prefixed by 0x00, inner nodes by 0x01.

use sha2::{Digest as _, Sha256};

/// A hash of the tree.
pub type Hash = [u8; 32];

/// Hash of a leaf.
pub fn leaf_hash(leaf: &[u8]) -> Hash {
    Sha256::new()
        .chain_update([0])
        .chain_update(leaf)
        .finalize()
        .into()
}

/// Hash of the node above two others.
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    Sha256::new()
        .chain_update([1])
        .chain_update(left)
        .chain_update(right)
        .finalize()
        .into()
}

/// All that has to be kept of a tree to append to it and to know its root: at most one hash per bit of its size.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Frontier {
    size: u64,
    /// Roots of the full subtrees, largest (leftmost) first.
    peaks: Vec<Hash>,
}

impl Frontier {
    /// An empty tree.
    pub const fn new() -> Self {
        Self {
            size: 0,
            peaks: Vec::new(),
        }
    }

    /// Leaves so far.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Appends a leaf by its hash.
    pub fn push(&mut self, leaf: Hash) {
        let mut node = leaf;
        // Each trailing one bit of the size is a full subtree that the new leaf completes.
        for _ in 0..self.size.trailing_ones() {
            if let Some(left) = self.peaks.pop() {
                node = node_hash(&left, &node);
            }
        }
        self.peaks.push(node);
        self.size += 1;
    }

    /// Root of the tree as it is; of an empty one, the hash of nothing.
    pub fn root(&self) -> Hash {
        let mut peaks = self.peaks.iter().rev();
        match peaks.next() {
            None => Sha256::digest([]).into(),
            Some(last) => peaks.fold(*last, |right, left| node_hash(left, &right)),
        }
    }
}

/// Root over the hashes of some leaves.
pub fn root(leaves: &[Hash]) -> Hash {
    let mut frontier = Frontier::new();
    leaves.iter().for_each(|leaf| frontier.push(*leaf));
    frontier.root()
}

/// Proof that leaf `index` is in the tree over `leaves`; `None` when there is no such leaf.
pub fn inclusion_proof(leaves: &[Hash], index: usize) -> Option<Vec<Hash>> {
    if index >= leaves.len() {
        return None;
    }
    if leaves.len() == 1 {
        return Some(Vec::new());
    }
    let (left, right) = leaves.split_at(split(leaves.len()));
    let (mut proof, sibling) = if index < left.len() {
        (inclusion_proof(left, index)?, root(right))
    } else {
        (inclusion_proof(right, index - left.len())?, root(left))
    };
    proof.push(sibling);
    Some(proof)
}

/// Proof that the tree over the first `old` of `leaves` is a beginning of the tree over all of them; `None` when
/// `old` is 0 or more than there are.
pub fn consistency_proof(leaves: &[Hash], old: usize) -> Option<Vec<Hash>> {
    (old > 0 && old <= leaves.len()).then(|| consistency_nodes(leaves, old, Known::Yes))
}

/// Whether the verifier already has the root of the subtree.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Known {
    Yes,
    No,
}

fn consistency_nodes(leaves: &[Hash], old: usize, known: Known) -> Vec<Hash> {
    if old == leaves.len() {
        return if known == Known::Yes {
            Vec::new()
        } else {
            vec![root(leaves)]
        };
    }
    let (left, right) = leaves.split_at(split(leaves.len()));
    let (mut proof, sibling) = if old <= left.len() {
        (consistency_nodes(left, old, known), root(right))
    } else {
        (
            consistency_nodes(right, old - left.len(), Known::No),
            root(left),
        )
    };
    proof.push(sibling);
    proof
}

/// Whether `proof` shows that the leaf of hash `leaf` is number `index` in the tree of `size` and `expected` root.
pub fn verify_inclusion(
    leaf: &Hash,
    index: u64,
    size: u64,
    proof: &[Hash],
    expected: &Hash,
) -> bool {
    if index >= size {
        return false;
    }
    let (mut position, mut last, mut hash) = (index, size - 1, *leaf);
    for sibling in proof {
        if last == 0 {
            return false;
        }
        if position & 1 == 1 || position == last {
            hash = node_hash(sibling, &hash);
            while position & 1 == 0 && position != 0 {
                position >>= 1;
                last >>= 1;
            }
        } else {
            hash = node_hash(&hash, sibling);
        }
        position >>= 1;
        last >>= 1;
    }
    last == 0 && hash == *expected
}

/// Whether `proof` shows that the tree of `old_size` and `old_root` is a beginning of the tree of `size` and `root`.
pub fn verify_consistency(
    old_size: u64,
    old_root: &Hash,
    size: u64,
    root: &Hash,
    proof: &[Hash],
) -> bool {
    if old_size == 0 || old_size > size {
        return false;
    }
    if old_size == size {
        return proof.is_empty() && old_root == root;
    }
    let mut nodes = proof.iter();
    let first = if old_size.is_power_of_two() {
        Some(old_root)
    } else {
        nodes.next()
    };
    let Some(first) = first else { return false };
    let full = (old_size - 1).trailing_ones();
    let (mut position, mut last) = ((old_size - 1) >> full, (size - 1) >> full);
    let (mut old_hash, mut hash) = (*first, *first);
    for node in nodes {
        if last == 0 {
            return false;
        }
        if position & 1 == 1 || position == last {
            old_hash = node_hash(node, &old_hash);
            hash = node_hash(node, &hash);
            while position & 1 == 0 && position != 0 {
                position >>= 1;
                last >>= 1;
            }
        } else {
            hash = node_hash(&hash, node);
        }
        position >>= 1;
        last >>= 1;
    }
    last == 0 && old_hash == *old_root && hash == *root
}

/// The largest power of two below `size`, for a `size` of 2 or more.
const fn split(size: usize) -> usize {
    1 << (size - 1).ilog2()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The leaves and roots that implementations of RFC 6962 test each other with.
    const LEAVES: [&str; 8] = [
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    ];
    const ROOTS: [&str; 8] = [
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    ];

    fn leaves() -> Vec<Hash> {
        LEAVES
            .iter()
            .map(|leaf| leaf_hash(&hex::decode(leaf).unwrap()))
            .collect()
    }

    #[test]
    fn l5_roots_are_those_of_rfc_6962() {
        let mut frontier = Frontier::new();
        assert_eq!(
            hex::encode(frontier.root()),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        for (leaf, expected) in leaves().into_iter().zip(ROOTS) {
            frontier.push(leaf);
            assert_eq!(
                hex::encode(frontier.root()),
                expected,
                "size {}",
                frontier.size()
            );
        }
    }

    #[test]
    fn l5_proofs_are_those_of_rfc_6962() {
        let expected = [
            "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
        ];
        let hex_of = |proof: Vec<Hash>| proof.iter().map(hex::encode).collect::<Vec<_>>();
        assert_eq!(hex_of(inclusion_proof(&leaves(), 0).unwrap()), expected);
        assert_eq!(hex_of(consistency_proof(&leaves(), 1).unwrap()), expected);
        assert_eq!(inclusion_proof(&leaves(), 8), None);
        assert_eq!(consistency_proof(&leaves(), 0), None);
    }

    proptest! {
        #[test]
        fn l5_every_leaf_and_every_beginning_can_be_proven_and_nothing_else(size in 1_usize..70, at in any::<prop::sample::Index>()) {
            let leaves: Vec<Hash> = (0..size).map(|n| leaf_hash(&n.to_be_bytes())).collect();
            let (index, tree) = (at.index(size), root(&leaves));
            let wide = |n: usize| u64::try_from(n).unwrap();

            let proof = inclusion_proof(&leaves, index).unwrap();
            prop_assert!(verify_inclusion(&leaves[index], wide(index), wide(size), &proof, &tree));
            prop_assert!(!verify_inclusion(&leaf_hash(b"other"), wide(index), wide(size), &proof, &tree));
            prop_assert!(!verify_inclusion(&leaves[index], wide(index + 1), wide(size), &proof, &tree));

            let (old, old_root) = (index + 1, root(&leaves[..=index]));
            let proof = consistency_proof(&leaves, old).unwrap();
            prop_assert!(verify_consistency(wide(old), &old_root, wide(size), &tree, &proof));
            prop_assert!(!verify_consistency(wide(old), &leaf_hash(b"other"), wide(size), &tree, &proof));
        }
    }
}
