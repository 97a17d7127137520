//! Newtypes for every identifier, so that a replica's slot is never mistaken for a block's depth.

/// Place of a replica in every column of this process: a small dense number, reused after a replica has left and its
/// last request has ended. Configuration and people use the replica's string id instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicaSlot(pub u16);

impl ReplicaSlot {
    /// The most replicas one process can hold; slots are below it.
    pub const LIMIT: usize = 4096;

    /// The slot as an index into a column.
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// The slot at `index`.
    ///
    /// Returns `None` when `index` is not below [`ReplicaSlot::LIMIT`].
    #[expect(clippy::cast_possible_truncation, reason = "below LIMIT, which fits u16")]
    pub const fn from_index(index: usize) -> Option<Self> {
        if index < Self::LIMIT { Some(Self(index as u16)) } else { None }
    }
}

/// Place of a pool (one model and the replicas that serve it) in the fleet's list of pools.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolId(pub u16);

/// Number of a shard: one core's runtime and state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(pub u16);

/// Hash of a prompt's bytes from the first to the end of one block, chained and keyed.
/// Equal hashes mean equal prefixes (for one key), but for a 2⁻⁶⁴ chance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct BlockHash(pub u64);

/// Number of a decision, unique in this process and rising within a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DecisionId(pub u64);
