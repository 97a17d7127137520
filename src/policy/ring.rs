//! Consistent hashing (Karger and others, 1997): replicas and keys stand on a ring, each replica at many places, and a
//! key belongs to the next replica clockwise. A replica that comes or goes moves its own keys only.
//!
//! There is no ring in memory, for the candidates differ from request to request. A replica's distance from a key is that
//! of its next place, and the walk around the ring is the order of distances. The places of a slot are computed when it is
//! first seen; a distance is a binary search among them.

use crate::id::ReplicaSlot;
use std::sync::OnceLock;

/// Sets the hashes of places apart from those of keys.
const PLACES: u64 = 0x6a09_e667_f3bc_c908;

/// Those of one replica, sorted.
type Places = Box<[u64]>;

/// The places of each replica, by its slot.
pub(super) struct Ring {
    virtual_nodes: u16,
    places: Box<[OnceLock<Places>]>,
}

impl Ring {
    /// A ring on which each replica has `virtual_nodes` places.
    pub(super) fn new(virtual_nodes: u16) -> Self {
        let places = (0..ReplicaSlot::LIMIT).map(|_| OnceLock::new()).collect();
        Self { virtual_nodes: virtual_nodes.max(1), places }
    }

    /// How far clockwise from `key` the next place of `slot` is.
    pub(super) fn distance(&self, slot: ReplicaSlot, key: u64) -> u64 {
        let Some(places) = self.places.get(slot.index()) else { return u64::MAX };
        let places = places.get_or_init(|| places_of(slot, self.virtual_nodes));
        let next = places.partition_point(|place| *place < key);
        places.get(next).or_else(|| places.first()).map_or(u64::MAX, |place| place.wrapping_sub(key))
    }
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").field("virtual_nodes", &self.virtual_nodes).finish_non_exhaustive()
    }
}

fn places_of(slot: ReplicaSlot, virtual_nodes: u16) -> Places {
    // The finaliser is one to one: no two places are the same, and none is that of a small number's hash.
    let place = |node: u16| mix(PLACES ^ (u64::from(slot.0) << 16 | u64::from(node)));
    let mut places: Places = (0..virtual_nodes).map(place).collect();
    places.sort_unstable();
    places
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood, 2014).
pub(super) const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home(ring: &Ring, slots: &[u16], key: u64) -> u16 {
        *slots.iter().min_by_key(|slot| ring.distance(ReplicaSlot(**slot), key)).unwrap()
    }

    #[test]
    fn a_walk_by_distance_is_a_walk_around_a_ring_in_memory() {
        let ring = Ring::new(16);
        let mut nodes: Vec<(u64, u16)> = Vec::new();
        for slot in 0..9 {
            nodes.extend(places_of(ReplicaSlot(slot), 16).iter().map(|place| (*place, slot)));
        }
        nodes.sort_unstable();
        let mut rng = fastrand::Rng::with_seed(6);
        for key in (0..500).map(|_| rng.u64(..)).chain([0, u64::MAX, nodes[3].0, nodes[3].0 + 1]) {
            let from = nodes.partition_point(|node| node.0 < key);
            let mut walk: Vec<u16> = Vec::new();
            for (_, slot) in nodes[from..].iter().chain(&nodes[..from]) {
                if !walk.contains(slot) {
                    walk.push(*slot);
                }
            }
            let mut by_distance: Vec<u16> = (0..9).collect();
            by_distance.sort_by_key(|slot| ring.distance(ReplicaSlot(*slot), key));
            assert_eq!(by_distance, walk);
        }
    }

    #[test]
    fn keys_are_spread_and_only_those_of_the_one_that_left_move() {
        let ring = Ring::new(256);
        let (all, fewer): (Vec<u16>, Vec<u16>) = ((0..8).collect(), (0..7).collect());
        let mut homes = [0_u32; 8];
        for key in (0..8000).map(|key| mix(key + 1)) {
            let before = home(&ring, &all, key);
            homes[usize::from(before)] += 1;
            assert!(before == 7 || home(&ring, &fewer, key) == before);
        }
        assert!(homes.iter().all(|count| (750..1300).contains(count)), "{homes:?}");
    }
}
