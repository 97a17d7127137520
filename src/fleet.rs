//! The fleet as one immutable snapshot: replicas, and pools of those that serve a model. A single writer
//! ([`Registry`]) builds a new snapshot when configuration or discovery changes; the shards only read.

use crate::config::{ModelConfig, ReplicaConfig};
use crate::id::{PoolId, ReplicaSlot};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// What a replica says of itself when it is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Discovered {
    /// Models it serves.
    pub models: Vec<String>,
    /// Which engine it is.
    pub engine: Engine,
    /// Requests it runs at once.
    pub slots: Option<u32>,
}

/// Engines that differ in what the gateway must know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Engine {
    /// One block cache for all requests, as vLLM, SGLang and TensorRT-LLM have, or not known.
    #[default]
    Shared,
    /// llama.cpp: each slot has a cache of its own, so a prefix that is in use by one request is of no use to another.
    LlamaCpp,
}

impl Engine {
    /// Name in `/replicas`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Shared => "shared_cache",
            Self::LlamaCpp => "llama.cpp",
        }
    }
}

/// One engine endpoint, as configured and discovered.
#[derive(Clone, Debug, PartialEq)]
pub struct Replica {
    /// Place in every column.
    pub slot: ReplicaSlot,
    /// What configuration says of it.
    pub config: ReplicaConfig,
    /// `host:port`, to connect to and for the `Host` header.
    pub authority: String,
    /// Models it serves; `None` until it has said so, and then it may be asked for any.
    pub models: Option<Vec<String>>,
    /// Which engine it is.
    pub engine: Engine,
    /// Requests it runs at once, configured or discovered.
    pub slots: Option<u32>,
}

/// One model and the replicas that serve it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Place in [`Fleet::pools`].
    pub id: PoolId,
    /// What clients ask for. Empty for the pool of replicas whose models are not known yet.
    pub model: String,
    /// What replicas call it, when that differs.
    pub served_as: Option<String>,
    /// Its replicas, in the order of the configuration.
    pub members: Vec<ReplicaSlot>,
}

impl Pool {
    /// True for the pool of replicas that have not said what they serve: it takes any model name.
    #[must_use]
    pub const fn is_wildcard(&self) -> bool {
        self.model.is_empty()
    }
}

/// A consistent picture of all replicas and pools. Never changes once built.
#[derive(Debug, Default)]
pub struct Fleet {
    /// Replicas in the order of the configuration.
    pub replicas: Vec<Arc<Replica>>,
    /// Pools, sorted by model; the wildcard pool, if any, is last.
    pub pools: Vec<Pool>,
    by_model: HashMap<String, PoolId>,
    by_slot: Vec<Option<Arc<Replica>>>,
}

/// Why no pool takes a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoPool {
    /// The client named no model and there are several.
    ModelNeeded,
    /// No pool serves the model.
    Unknown,
    /// There are no replicas at all.
    Empty,
}

impl Fleet {
    /// The replica at `slot`, while it is a member.
    #[must_use]
    pub fn replica(&self, slot: ReplicaSlot) -> Option<&Arc<Replica>> {
        self.by_slot.get(slot.index())?.as_ref()
    }

    /// The pool that serves `model`; with no model, the only pool there is.
    ///
    /// # Errors
    /// [`NoPool`] says why there is none.
    pub fn pool_for(&self, model: Option<&str>) -> Result<&Pool, NoPool> {
        let wildcard = || self.pools.last().filter(|pool| pool.is_wildcard());
        match model {
            _ if self.pools.is_empty() => Err(NoPool::Empty),
            Some(name) => match self.by_model.get(name) {
                Some(id) => self.pools.get(usize::from(id.0)).ok_or(NoPool::Unknown),
                None => wildcard().ok_or(NoPool::Unknown),
            },
            None => match self.pools.as_slice() {
                [only] => Ok(only),
                _ => wildcard().ok_or(NoPool::ModelNeeded),
            },
        }
    }
}

/// What a rebuild changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// Slots taken by replicas that are new (or came back at another address).
    pub joined: Vec<ReplicaSlot>,
    /// Slots of replicas that left; nothing new is sent there.
    pub left: Vec<ReplicaSlot>,
}

/// More replicas than slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the fleet has {wanted} replicas; at most {limit} fit")]
pub struct FleetFull {
    /// Replicas configured.
    pub wanted: usize,
    /// Slots.
    pub limit: usize,
}

/// The single writer of the fleet: hands out slots and builds snapshots.
#[derive(Debug)]
pub struct Registry {
    slots: Vec<Option<Arc<Replica>>>,
}

impl Registry {
    /// A registry of `slots_max` slots, all free.
    #[must_use]
    pub fn new(slots_max: usize) -> Self {
        Self { slots: vec![None; slots_max.clamp(1, ReplicaSlot::LIMIT)] }
    }

    /// Builds the snapshot for `replicas`. A replica keeps its slot as long as its id and URL stay; a slot that was left
    /// is given out again only once `is_idle` says that nothing is in flight there.
    ///
    /// `discovered` holds, by replica id, what replicas said of themselves; what is configured wins over it.
    ///
    /// # Errors
    /// [`FleetFull`] when there are more replicas than free slots; nothing changes then.
    pub fn rebuild(
        &mut self,
        replicas: &[ReplicaConfig],
        models: &[ModelConfig],
        discovered: &HashMap<String, Discovered>,
        is_idle: impl Fn(ReplicaSlot) -> bool,
    ) -> Result<(Fleet, Membership), FleetFull> {
        let mut slots: Vec<Option<Arc<Replica>>> = vec![None; self.slots.len()];
        let mut change = Membership::default();
        let mut members = Vec::with_capacity(replicas.len());
        let mut newcomers = Vec::new();
        for (place, config) in replicas.iter().enumerate() {
            let kept = self.slots.iter().flatten().find(|r| r.config.id == config.id && r.config.url == config.url);
            match kept {
                Some(old) => members.push((place, Arc::new(replica(old.slot, config, discovered)))),
                None => newcomers.push((place, config)),
            }
        }
        for (_, member) in &members {
            slots[member.slot.index()] = Some(Arc::clone(member));
        }
        let mut free = (0..slots.len())
            .filter_map(ReplicaSlot::from_index)
            .filter(|slot| self.slots[slot.index()].is_none() && is_idle(*slot))
            .collect::<Vec<_>>()
            .into_iter();
        for (place, config) in newcomers {
            let slot = free.next().ok_or(FleetFull { wanted: replicas.len(), limit: self.slots.len() })?;
            let member = Arc::new(replica(slot, config, discovered));
            slots[slot.index()] = Some(Arc::clone(&member));
            members.push((place, member));
            change.joined.push(slot);
        }
        change.left =
            self.slots.iter().flatten().map(|old| old.slot).filter(|slot| slots[slot.index()].is_none()).collect();
        members.sort_by_key(|(place, _)| *place);
        let replicas: Vec<_> = members.into_iter().map(|(_, member)| member).collect();
        self.slots.clone_from(&slots);
        let pools = pools(&replicas, models);
        let by_model =
            pools.iter().filter(|pool| !pool.is_wildcard()).map(|pool| (pool.model.clone(), pool.id)).collect();
        Ok((Fleet { replicas, pools, by_model, by_slot: slots }, change))
    }
}

fn replica(slot: ReplicaSlot, config: &ReplicaConfig, discovered: &HashMap<String, Discovered>) -> Replica {
    let said = discovered.get(&config.id);
    let models = match config.models.as_slice() {
        [] => said.map(|said| said.models.clone()).filter(|models| !models.is_empty()),
        named => Some(named.to_vec()),
    };
    let port = config.url.port_or_known_default().unwrap_or(80);
    let authority = format!("{}:{port}", config.url.host_str().unwrap_or("localhost"));
    let slots = config.slots.or_else(|| said?.slots);
    Replica {
        slot,
        config: config.clone(),
        authority,
        models,
        engine: said.map(|said| said.engine).unwrap_or_default(),
        slots,
    }
}

fn pools(replicas: &[Arc<Replica>], models: &[ModelConfig]) -> Vec<Pool> {
    let unknown: Vec<ReplicaSlot> = replicas.iter().filter(|r| r.models.is_none()).map(|r| r.slot).collect();
    let mut served: BTreeMap<&str, Vec<ReplicaSlot>> = BTreeMap::new();
    for replica in replicas {
        for model in replica.models.iter().flatten() {
            served.entry(model).or_default().push(replica.slot);
        }
    }
    let mut named: BTreeMap<&str, (Option<&str>, Vec<ReplicaSlot>)> =
        served.iter().map(|(model, slots)| (*model, (None, slots.clone()))).collect();
    for model in models {
        let slots = served.get(model.served_as.as_str()).cloned().unwrap_or_default();
        named.insert(&model.name, (Some(&model.served_as), slots));
    }
    let mut pools: Vec<Pool> = Vec::with_capacity(named.len() + 1);
    for (model, (served_as, mut members)) in named {
        members.extend(&unknown);
        members.dedup();
        push_pool(&mut pools, model, served_as, members);
    }
    if !unknown.is_empty() {
        push_pool(&mut pools, "", None, unknown);
    }
    pools
}

fn push_pool(pools: &mut Vec<Pool>, model: &str, served_as: Option<&str>, members: Vec<ReplicaSlot>) {
    if let Ok(id) = u16::try_from(pools.len()) {
        pools.push(Pool {
            id: PoolId(id),
            model: model.to_owned(),
            served_as: served_as.filter(|served| *served != model).map(str::to_owned),
            members,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(id: &str, models: &[&str]) -> ReplicaConfig {
        ReplicaConfig {
            id: id.into(),
            url: format!("http://{id}:8000").parse().unwrap(),
            models: models.iter().map(ToString::to_string).collect(),
            slots: None,
            kv_tokens: None,
            prefill_tokens_per_s: None,
        }
    }

    fn build(registry: &mut Registry, replicas: &[ReplicaConfig]) -> (Fleet, Membership) {
        registry.rebuild(replicas, &[], &HashMap::new(), |_| true).unwrap()
    }

    #[test]
    fn slots_stay_with_their_replica() {
        let mut registry = Registry::new(8);
        let (first, change) = build(&mut registry, &[config("a", &["m"]), config("b", &["m"])]);
        assert_eq!(change.joined.len(), 2);
        let (second, change) = build(&mut registry, &[config("c", &["m"]), config("b", &["m"])]);
        assert_eq!((change.joined.len(), change.left.len()), (1, 1));
        assert_eq!(first.replicas[1].slot, second.replicas[1].slot);
        assert_eq!(second.replicas[0].config.id, "c");
    }

    #[test]
    fn a_slot_with_requests_in_flight_is_not_given_out() {
        let mut registry = Registry::new(2);
        let (first, _) = build(&mut registry, &[config("a", &[])]);
        let busy = first.replicas[0].slot;
        build(&mut registry, &[]);
        let (next, _) = registry.rebuild(&[config("b", &[])], &[], &HashMap::new(), |slot| slot != busy).unwrap();
        assert_ne!(next.replicas[0].slot, busy);
    }

    #[test]
    fn too_many_replicas_change_nothing() {
        let mut registry = Registry::new(1);
        build(&mut registry, &[config("a", &[])]);
        let full = registry.rebuild(&[config("a", &[]), config("b", &[])], &[], &HashMap::new(), |_| true);
        assert_eq!(full.unwrap_err(), FleetFull { wanted: 2, limit: 1 });
        assert_eq!(build(&mut registry, &[config("a", &[])]).1, Membership::default());
    }

    #[test]
    fn pools_follow_models_aliases_and_unknowns() {
        let mut registry = Registry::new(8);
        let alias = ModelConfig { name: "gpt".into(), served_as: "m".into() };
        let replicas = [config("a", &["m"]), config("b", &["n"]), config("c", &[])];
        let (fleet, _) = registry.rebuild(&replicas, &[alias], &HashMap::new(), |_| true).unwrap();
        let members = |model| fleet.pool_for(Some(model)).map(|pool| pool.members.len());
        assert_eq!(members("m"), Ok(2));
        assert_eq!(members("gpt"), Ok(2));
        assert_eq!(fleet.pool_for(Some("gpt")).unwrap().served_as.as_deref(), Some("m"));
        assert_eq!(members("anything"), Ok(1), "the replica that has not said what it serves");
        let said = Discovered { models: vec!["m".to_owned()], ..Discovered::default() };
        let known = HashMap::from([("c".to_owned(), said)]);
        let (fleet, change) = registry.rebuild(&replicas, &[], &known, |_| true).unwrap();
        assert_eq!(change, Membership::default());
        assert_eq!(fleet.pool_for(Some("anything")), Err(NoPool::Unknown));
        assert_eq!(fleet.pool_for(None), Err(NoPool::ModelNeeded));
    }
}
