//! Refusals before anybody is known to call: counted, and written within a number of bytes per hour, so that
//! whoever knocks without end fills neither disk nor memory.

use std::collections::HashMap;
use std::net::IpAddr;

use jiff::Timestamp;
use serde_json::json;

use super::record::{Body, Kind, LedgerAction, Sealed};

/// Refusals are written at most this often, in seconds.
pub const REFUSAL_WINDOW_SECONDS: i64 = 10;
/// Sources and reasons that are counted one by one in a window; what comes after them is counted together.
pub const REFUSAL_SOURCES_MAX: usize = 1024;

/// Refusals of one source and reason that are named one by one in a window.
pub const REFUSALS_NAMED_EACH_MAX: u64 = 5;
/// Refusals that are named one by one in a window.
pub const REFUSALS_NAMED_MAX: u32 = 200;

const HOUR_MICROSECONDS: u128 = 3_600_000_000;
/// Room for the record that counts all other sources of one reason.
const OTHERS_BYTES: u64 = 512;

/// Somebody was refused before they could be told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RefusalBeforeVerification {
    /// The other side.
    pub peer: IpAddr,
    /// Stable code of the reason.
    pub reason: &'static str,
}

/// What a refusal is among those of its window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Noted {
    /// One of the first of its source and reason: worth naming.
    First,
    /// One of many: its count says enough.
    Counted,
}

#[derive(Debug, Clone, Copy)]
struct Tally {
    count: u64,
    first: Timestamp,
    last: Timestamp,
}

impl Tally {
    const fn one(now: Timestamp) -> Self {
        Self {
            count: 1,
            first: now,
            last: now,
        }
    }

    fn add(&mut self, other: Self) {
        self.count = self.count.saturating_add(other.count);
        self.first = self.first.min(other.first);
        self.last = self.last.max(other.last);
    }
}

/// Counts of what was not written yet. Nothing is forgotten: what finds no room is counted with the others.
#[derive(Debug)]
pub struct Refusals {
    bytes_per_hour_max: u64,
    bytes: u64,
    refilled_at: Timestamp,
    window_began: Option<Timestamp>,
    named: u32,
    sources: HashMap<(IpAddr, &'static str), Tally>,
    others: HashMap<&'static str, Tally>,
}

impl Refusals {
    /// Counts nothing yet, and will write at most `bytes_per_hour_max` in any hour.
    pub fn new(bytes_per_hour_max: u64, now: Timestamp) -> Self {
        Self {
            bytes_per_hour_max,
            bytes: bytes_per_hour_max / 2,
            refilled_at: now,
            window_began: None,
            named: 0,
            sources: HashMap::new(),
            others: HashMap::new(),
        }
    }

    /// Counts one refusal.
    pub fn note(&mut self, refusal: RefusalBeforeVerification, now: Timestamp) -> Noted {
        self.window_began.get_or_insert(now);
        let key = (source(refusal.peer), refusal.reason);
        let one = Tally::one(now);
        let mut nth = None;
        if let Some(tally) = self.sources.get_mut(&key) {
            tally.add(one);
            nth = Some(tally.count);
        } else if self.sources.len() < REFUSAL_SOURCES_MAX {
            self.sources.insert(key, one);
            nth = Some(one.count);
        } else {
            self.others
                .entry(refusal.reason)
                .and_modify(|tally| tally.add(one))
                .or_insert(one);
        }
        let is_first = nth.is_some_and(|nth| nth <= REFUSALS_NAMED_EACH_MAX);
        if is_first && self.named < REFUSALS_NAMED_MAX {
            self.named += 1;
            Noted::First
        } else {
            Noted::Counted
        }
    }

    /// Whether there is something to write at `now`.
    pub fn is_due(&self, now: Timestamp) -> bool {
        self.window_began
            .is_some_and(|began| now.duration_since(began).as_secs() >= REFUSAL_WINDOW_SECONDS)
    }

    /// Takes out what is to be written now, most frequent first, as far as the bytes reach.
    pub fn drain(&mut self, now: Timestamp) -> Vec<Sealed> {
        self.refill(now);
        self.window_began = None;
        self.named = 0;
        let mut sources: Vec<_> = self.sources.drain().collect();
        sources.sort_by_key(|((peer, reason), tally)| {
            (std::cmp::Reverse(tally.count), *reason, *peer)
        });
        let mut reasons: Vec<_> = sources
            .iter()
            .map(|((_, reason), _)| *reason)
            .chain(self.others.keys().copied())
            .collect();
        reasons.sort_unstable();
        reasons.dedup();
        let kept_for_others = u64::try_from(reasons.len())
            .unwrap_or(u64::MAX)
            .saturating_mul(OTHERS_BYTES);

        let mut records = Vec::new();
        for ((peer, reason), tally) in sources {
            let written = write(Some(peer), reason, tally);
            match written.filter(|sealed| {
                sealed.line_bytes_max().saturating_add(kept_for_others) <= self.bytes
            }) {
                Some(sealed) => {
                    self.bytes -= sealed.line_bytes_max();
                    records.push(sealed);
                }
                None => {
                    self.others
                        .entry(reason)
                        .and_modify(|others| others.add(tally))
                        .or_insert(tally);
                }
            }
        }
        for reason in reasons {
            let written = self
                .others
                .get(reason)
                .and_then(|tally| write(None, reason, *tally));
            if let Some(sealed) = written.filter(|sealed| sealed.line_bytes_max() <= self.bytes) {
                self.bytes -= sealed.line_bytes_max();
                self.others.remove(reason);
                records.push(sealed);
            }
        }
        if !self.others.is_empty() {
            self.window_began = Some(now);
        }
        records
    }

    /// Half of the bytes may be saved up and half flow in, so that no hour has more than all of them.
    fn refill(&mut self, now: Timestamp) {
        let half = self.bytes_per_hour_max / 2;
        let elapsed = u128::try_from(now.duration_since(self.refilled_at).as_micros()).unwrap_or(0);
        let inflow =
            u64::try_from(u128::from(half) * elapsed / HOUR_MICROSECONDS).unwrap_or(u64::MAX);
        // A small inflow waits for the next time instead of being rounded away.
        if inflow > 0 {
            self.bytes = self.bytes.saturating_add(inflow).min(half);
            self.refilled_at = now;
        }
    }
}

/// What counts as one source: an address, or a network of IPv6, since one customer of a provider has a whole /64.
pub fn source(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => {
            let network = u128::from(address) & !u128::from(u64::MAX);
            IpAddr::V6(network.into())
        }
    }
}

fn write(peer: Option<IpAddr>, reason: &str, tally: Tally) -> Option<Sealed> {
    let mut body = Body::new(Kind::Event, LedgerAction::CallerRefuseMany);
    body.peer = peer.map(|peer| match peer {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(network) => format!("{network}/64"),
    });
    body.details.insert("reason".into(), json!(reason));
    body.details.insert("count".into(), json!(tally.count));
    body.details
        .insert("first".into(), json!(tally.first.to_string()));
    body.details
        .insert("last".into(), json!(tally.last.to_string()));
    if peer.is_none() {
        body.details.insert("sources".into(), json!("other"));
    }
    body.seal().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::record::Record;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + seconds).unwrap()
    }

    fn refusal(n: u32, reason: &'static str) -> RefusalBeforeVerification {
        RefusalBeforeVerification {
            peer: IpAddr::V4(n.into()),
            reason,
        }
    }

    fn count(sealed: &[Sealed]) -> (u64, u64) {
        let (mut refusals, mut bytes) = (0, 0);
        for sealed in sealed {
            let mut line = Vec::new();
            sealed.write_line(0, at(0), &mut line);
            refusals += Record::from_line(&line).unwrap().body.details["count"]
                .as_u64()
                .unwrap();
            bytes += u64::try_from(line.len()).unwrap() + 1;
        }
        (refusals, bytes)
    }

    #[test]
    fn refusals_of_one_source_and_reason_are_one_record() {
        let mut refusals = Refusals::new(1 << 20, at(0));
        for second in 0..3 {
            refusals.note(refusal(1, "bad_signature"), at(second));
        }
        refusals.note(refusal(2, "bad_signature"), at(3));
        assert!(!refusals.is_due(at(9)));
        assert!(refusals.is_due(at(10)));
        let records = refusals.drain(at(10));
        assert_eq!(records.len(), 2);
        assert_eq!(count(&records).0, 4);
        assert!(!refusals.is_due(at(100)));
    }

    #[test]
    fn l4_a_flood_from_spoofed_sources_stays_within_bytes_and_memory_and_no_refusal_is_lost() {
        const BYTES: u64 = 64 * 1024;
        let mut refusals = Refusals::new(BYTES, at(0));
        let (mut noted, mut written, mut bytes) = (0_u64, 0, 0);
        for second in 0..3600_u32 {
            for n in 0..50 {
                refusals.note(refusal(second * 50 + n, "bad_signature"), at(second.into()));
                noted += 1;
            }
            assert!(refusals.sources.len() <= REFUSAL_SOURCES_MAX);
            if refusals.is_due(at(second.into())) {
                let (refusals, used) = count(&refusals.drain(at(second.into())));
                written += refusals;
                bytes += used;
            }
        }
        assert!(bytes <= BYTES, "{bytes}");
        assert!(bytes > BYTES / 4, "{bytes}: the bytes are used");
        written += count(&refusals.drain(at(3 * 3600))).0;
        assert_eq!(written, noted);
    }

    #[test]
    fn the_first_of_each_source_are_named_and_a_flood_is_not() {
        let mut refusals = Refusals::new(1 << 20, at(0));
        let named = |refusals: &mut Refusals, n| {
            let noted = (0..100).map(|_| refusals.note(refusal(n, "bad_signature"), at(0)));
            noted.filter(|noted| *noted == Noted::First).count() as u64
        };
        assert_eq!(named(&mut refusals, 1), REFUSALS_NAMED_EACH_MAX);
        let of_all: u64 = (2..2000).map(|n| named(&mut refusals, n)).sum();
        assert_eq!(
            of_all,
            u64::from(REFUSALS_NAMED_MAX) - REFUSALS_NAMED_EACH_MAX
        );
        refusals.drain(at(10));
        assert_eq!(named(&mut refusals, 1), REFUSALS_NAMED_EACH_MAX);
    }

    #[test]
    fn a_network_of_ipv6_is_one_source() {
        let mut refusals = Refusals::new(1 << 20, at(0));
        for peer in [
            "2001:db8::1",
            "2001:db8::2",
            "::ffff:192.0.2.1",
            "192.0.2.1",
        ] {
            refusals.note(
                RefusalBeforeVerification {
                    peer: peer.parse().unwrap(),
                    reason: "expired",
                },
                at(0),
            );
        }
        assert_eq!(refusals.drain(at(10)).len(), 2);
    }
}
