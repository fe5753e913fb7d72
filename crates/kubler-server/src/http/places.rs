//! Places for connections, and for bodies on their way: so many in all, so many for each address, so that nobody takes
//! them all.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use kubler_core::configuration::Limits;
use kubler_core::ledger::refusals::source;

/// Descriptors that are kept for everything but connections: files, etcd, control planes.
const DESCRIPTORS_KEPT: u64 = 256;
/// Descriptors of a connection: its own, and one to the API server that its request is about.
const DESCRIPTORS_EACH: u64 = 2;

/// Who may have how many connections, and how many they have.
#[derive(Debug)]
pub struct Places {
    /// As many as there are descriptors for.
    possible: usize,
    all_max: AtomicUsize,
    address_max: AtomicUsize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// One place. Dropped, it is free again.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    source: IpAddr,
}

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    /// For nobody.
    House,
    /// For this address.
    Address,
}

impl Full {
    /// Stable code.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::House => "connections",
            Self::Address => "connections_of_address",
        }
    }
}

impl Places {
    /// As configured, and no more than `descriptors` open files allow.
    pub fn new(limits: &Limits, descriptors: u64) -> Self {
        let possible = descriptors.saturating_sub(DESCRIPTORS_KEPT) / DESCRIPTORS_EACH;
        let places = Self {
            possible: usize::try_from(possible).unwrap_or(usize::MAX).max(1),
            ..Self::of([0, 0])
        };
        places.set_limits(limits);
        places
    }

    /// So many in all, and so many for each address.
    pub(super) fn of([all_max, address_max]: [usize; 2]) -> Self {
        Self {
            possible: all_max,
            all_max: AtomicUsize::new(all_max),
            address_max: AtomicUsize::new(address_max),
            taken: Mutex::default(),
        }
    }

    /// As configured, and no more than this process may open files.
    pub fn of_this_process(limits: &Limits) -> Self {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        Self::new(limits, limit.current.unwrap_or(u64::MAX))
    }

    /// Other bounds, for whoever connects from now on. Whoever is connected stays.
    pub fn set_limits(&self, limits: &Limits) {
        let wanted = limits.connections_max as usize;
        if self.possible < wanted {
            tracing::warn!(
                wanted,
                possible = self.possible,
                "there are fewer places for connections than configured: the limit of open files is too low"
            );
        }
        let all_max = wanted.min(self.possible);
        let address_max = (limits.connections_per_address_max as usize).min(all_max);
        self.all_max.store(all_max, Ordering::Relaxed);
        self.address_max.store(address_max, Ordering::Relaxed);
    }

    /// Connections at once.
    pub fn all_max(&self) -> usize {
        self.all_max.load(Ordering::Relaxed)
    }

    /// Connections now.
    pub fn taken(&self) -> usize {
        self.lock().all
    }

    /// A place for a connection from `peer`.
    pub(super) fn take(self: &Arc<Self>, peer: IpAddr) -> Result<Place, Full> {
        let source = source(peer);
        let mut taken = self.lock();
        if taken.all >= self.all_max() {
            return Err(Full::House);
        }
        let of_address = taken.by_address.get(&source).copied().unwrap_or(0);
        if of_address >= self.address_max.load(Ordering::Relaxed) {
            return Err(Full::Address);
        }
        taken.all += 1;
        taken.by_address.insert(source, of_address + 1);
        drop(taken);
        Ok(Place {
            places: Arc::clone(self),
            source,
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        taken.all = taken.all.saturating_sub(1);
        // An address without connections is forgotten, so that the table is no longer than the house is full.
        if let Some(left) = taken.by_address.get_mut(&self.source) {
            *left = left.saturating_sub(1);
            if *left == 0 {
                taken.by_address.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(all: u32, address: u32) -> Limits {
        Limits {
            connections_max: all,
            connections_per_address_max: address,
            ..Limits::default()
        }
    }

    fn places(all: u32, address: u32, descriptors: u64) -> Arc<Places> {
        Arc::new(Places::new(&limits(all, address), descriptors))
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn one_address_does_not_take_all_places_and_gives_them_back() {
        let places = places(10, 6, 1_000_000);
        let greedy = || places.take(address("192.0.2.1"));
        let kept: Vec<_> = (0..6).map(|_| greedy().unwrap()).collect();
        assert_eq!(greedy().unwrap_err(), Full::Address);
        let others: Vec<_> = (0..4)
            .map(|nth| {
                places
                    .take(address(&format!("192.0.2.{}", 2 + nth)))
                    .unwrap()
            })
            .collect();
        assert_eq!(places.take(address("192.0.2.9")).unwrap_err(), Full::House);
        drop(others);
        assert_eq!(places.taken(), 6);
        assert_eq!(greedy().unwrap_err(), Full::Address);
        drop(kept);
        assert_eq!(places.taken(), 0);
        assert!(places.lock().by_address.is_empty());
        assert!(greedy().is_ok());
    }

    #[test]
    fn a_network_of_ipv6_and_a_mapped_address_are_one_source() {
        let places = places(10, 1, 1_000_000);
        let _one = places.take(address("2001:db8::1")).unwrap();
        let again = places.take(address("2001:db8::ffff:2"));
        assert_eq!(again.unwrap_err(), Full::Address);
        let _four = places.take(address("192.0.2.1")).unwrap();
        let mapped = places.take(address("::ffff:192.0.2.1"));
        assert_eq!(mapped.unwrap_err(), Full::Address);
    }

    #[test]
    fn other_bounds_are_for_whoever_comes_and_nobody_has_to_go() {
        let places = places(10, 6, 1024);
        let one = || places.take(address("192.0.2.1"));
        let two = || places.take(address("192.0.2.2"));
        let mut kept: Vec<_> = (0..4).map(|_| one().unwrap()).collect();
        places.set_limits(&limits(6, 3));
        assert_eq!(places.taken(), 4);
        assert_eq!(one().unwrap_err(), Full::Address);
        kept.extend([two().unwrap(), two().unwrap()]);
        assert_eq!(two().unwrap_err(), Full::House);
        places.set_limits(&limits(10_000, 5));
        assert_eq!(places.all_max(), 384, "what descriptors allow");
        kept.push(one().unwrap());
        assert_eq!(one().unwrap_err(), Full::Address);
        drop(kept);
        assert_eq!(places.taken(), 0);
    }

    #[test]
    fn there_are_no_more_places_than_descriptors_allow() {
        assert_eq!(places(10_000, 5000, 1_000_000).all_max(), 10_000);
        assert_eq!(places(10_000, 5000, 1024).all_max(), 384);
        assert_eq!(places(10_000, 5000, 10).all_max(), 1);
    }
}
