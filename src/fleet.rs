//! The fleet as one immutable snapshot: replicas, and pools of those that serve a model. A single writer
//! ([`Registry`]) builds a new snapshot when configuration or discovery changes; the shards only read.

use crate::config::{ModelConfig, ReplicaConfig};
use crate::id::{PoolId, ReplicaSlot};
use arc_swap::ArcSwapOption;
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
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
    /// Tokens its KV cache holds.
    pub kv_tokens: Option<u64>,
    /// Tokens that it may hold in host memory beside it, guessed where nobody says.
    pub host_kv_tokens: Option<u64>,
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
#[derive(Debug)]
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
    /// Tokens its KV cache holds, configured or discovered.
    pub kv_tokens: Option<u64>,
    /// Tokens that it holds in host memory beside it, configured or guessed.
    pub host_kv_tokens: Option<u64>,
    /// Where it is, once its name has resolved. One cell for as long as its id and URL stay, whatever snapshot it is
    /// read from; a replica that takes over its slot has a cell of its own.
    address: Arc<ArcSwapOption<SocketAddr>>,
}

impl Replica {
    /// Where it is, once its name has resolved.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.address.load().as_deref().copied()
    }

    /// Its name resolved, perhaps anew.
    pub fn set_address(&self, address: SocketAddr) {
        if self.address() != Some(address) {
            self.address.store(Some(Arc::new(address)));
        }
    }

    /// Whether `other` is this replica, as another snapshot has it.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.address, &other.address)
    }

    /// What it serves, runs at once, and is: as configured, else as it says.
    fn resolve(config: &ReplicaConfig, said: Option<&Discovered>) -> Resolved {
        let models = match config.models.as_slice() {
            [] => said.map(|said| said.models.clone()).filter(|models| !models.is_empty()),
            named => Some(named.to_vec()),
        };
        let slots = config.slots.or_else(|| said?.slots);
        let kv_tokens = config.kv_tokens.or_else(|| said?.kv_tokens);
        let host_kv_tokens = config.host_kv_tokens.or_else(|| said?.host_kv_tokens);
        Resolved { models, slots, kv_tokens, host_kv_tokens, engine: said.map(|said| said.engine).unwrap_or_default() }
    }
}

/// What configuration and discovery make of a replica together.
#[derive(Debug, PartialEq, Eq)]
struct Resolved {
    models: Option<Vec<String>>,
    slots: Option<u32>,
    kv_tokens: Option<u64>,
    host_kv_tokens: Option<u64>,
    engine: Engine,
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

    /// Whether replicas say other things of themselves than this picture shows.
    #[must_use]
    pub fn is_outdated(&self, discovered: &HashMap<String, Discovered>) -> bool {
        self.replicas.iter().any(|replica| {
            discovered.get(&replica.config.id).is_some_and(|said| {
                let Resolved { models, slots, kv_tokens, host_kv_tokens, engine } =
                    Replica::resolve(&replica.config, Some(said));
                (&models, slots, kv_tokens, host_kv_tokens, engine)
                    != (&replica.models, replica.slots, replica.kv_tokens, replica.host_kv_tokens, replica.engine)
            })
        })
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
#[error("the fleet has {wanted} replicas; at most {limit} fit, with those that left and still have requests in flight")]
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

    /// Builds the snapshot for `replicas`. A replica keeps its slot and address as long as its id and URL stay; a slot
    /// that was or is left is given out again only once `is_idle` says that nothing is in flight there.
    ///
    /// `discovered` holds, by id, what replicas said of themselves. It is believed of those that stay (a newcomer of the
    /// same id has yet to be asked); what is configured wins over it.
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
        let plan = self.plan(replicas, discovered, is_idle);
        if !plan.left_out.is_empty() {
            return Err(FleetFull { wanted: replicas.len(), limit: self.slots.len() });
        }
        Ok(self.carry_out(plan, models))
    }

    /// As [`Self::rebuild`], but newcomers for whom no slot is free now are left out; the third value says which. They fit
    /// once others have left and are idle.
    pub fn rebuild_what_fits(
        &mut self,
        replicas: &[ReplicaConfig],
        models: &[ModelConfig],
        discovered: &HashMap<String, Discovered>,
        is_idle: impl Fn(ReplicaSlot) -> bool,
    ) -> (Fleet, Membership, Vec<String>) {
        let mut plan = self.plan(replicas, discovered, is_idle);
        let left_out = std::mem::take(&mut plan.left_out);
        let (fleet, change) = self.carry_out(plan, models);
        (fleet, change, left_out)
    }

    /// Who gets which slot. Changes nothing.
    fn plan(
        &self,
        replicas: &[ReplicaConfig],
        discovered: &HashMap<String, Discovered>,
        is_idle: impl Fn(ReplicaSlot) -> bool,
    ) -> Plan {
        let mut plan = Plan { slots: vec![None; self.slots.len()], ..Plan::default() };
        let mut newcomers = Vec::new();
        let known: HashMap<&str, &Arc<Replica>> =
            self.slots.iter().flatten().map(|old| (old.config.id.as_str(), old)).collect();
        for (place, config) in replicas.iter().enumerate() {
            match known.get(config.id.as_str()).filter(|old| old.config.url == config.url) {
                Some(old) => plan.members.push((place, Arc::new(kept(old, config, discovered.get(&config.id))))),
                None => newcomers.push((place, config)),
            }
        }
        for (_, member) in &plan.members {
            plan.slots[member.slot.index()] = Some(Arc::clone(member));
        }
        // Slots that nobody has come first: whoever has just left may have requests on the way to be counted.
        let mut free: Vec<ReplicaSlot> = (0..plan.slots.len())
            .filter(|place| plan.slots[*place].is_none())
            .filter_map(ReplicaSlot::from_index)
            .filter(|slot| is_idle(*slot))
            .collect();
        free.sort_by_key(|slot| self.slots[slot.index()].is_some());
        let mut free = free.into_iter();
        for (place, config) in newcomers {
            let Some(slot) = free.next() else {
                plan.left_out.push(config.id.clone());
                continue;
            };
            let member = Arc::new(newcomer(slot, config));
            plan.slots[slot.index()] = Some(Arc::clone(&member));
            plan.members.push((place, member));
            plan.change.joined.push(slot);
        }
        let left = self.slots.iter().flatten().map(|old| old.slot);
        plan.change.left = left.filter(|slot| plan.slots[slot.index()].is_none()).collect();
        plan.members.sort_by_key(|(place, _)| *place);
        plan
    }

    fn carry_out(&mut self, plan: Plan, models: &[ModelConfig]) -> (Fleet, Membership) {
        let Plan { slots, members, change, .. } = plan;
        let replicas: Vec<_> = members.into_iter().map(|(_, member)| member).collect();
        self.slots.clone_from(&slots);
        let pools = pools(&replicas, models);
        let by_model =
            pools.iter().filter(|pool| !pool.is_wildcard()).map(|pool| (pool.model.clone(), pool.id)).collect();
        (Fleet { replicas, pools, by_model, by_slot: slots }, change)
    }
}

/// Who is to have which slot.
#[derive(Debug, Default)]
struct Plan {
    slots: Vec<Option<Arc<Replica>>>,
    /// With their places in the list.
    members: Vec<(usize, Arc<Replica>)>,
    change: Membership,
    /// Ids of newcomers without a slot.
    left_out: Vec<String>,
}

/// A replica that is new, or whose URL is.
fn newcomer(slot: ReplicaSlot, config: &ReplicaConfig) -> Replica {
    let port = config.url.port_or_known_default().unwrap_or(80);
    let authority = format!("{}:{port}", config.url.host_str().unwrap_or("localhost"));
    // An address needs no name service: it is known before the first request.
    let literal = authority.parse().ok().map(Arc::new);
    let Resolved { models, slots, kv_tokens, host_kv_tokens, engine } = Replica::resolve(config, None);
    let address = Arc::new(ArcSwapOption::new(literal));
    Replica { slot, config: config.clone(), authority, models, engine, slots, kv_tokens, host_kv_tokens, address }
}

/// The replica `old`, as it is configured and discovered now.
fn kept(old: &Replica, config: &ReplicaConfig, said: Option<&Discovered>) -> Replica {
    let Resolved { models, slots, kv_tokens, host_kv_tokens, engine } = Replica::resolve(config, said);
    let (slot, authority, address) = (old.slot, old.authority.clone(), Arc::clone(&old.address));
    Replica { slot, config: config.clone(), authority, models, engine, slots, kv_tokens, host_kv_tokens, address }
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
        let models = models.iter().map(ToString::to_string).collect();
        ReplicaConfig { models, ..ReplicaConfig::new(id.into(), format!("http://{id}:8000").parse().unwrap()) }
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
    fn with_every_slot_taken_a_url_can_change_once_its_replica_is_idle() {
        let mut registry = Registry::new(ReplicaSlot::LIMIT);
        let mut replicas: Vec<_> = (0..ReplicaSlot::LIMIT).map(|n| config(&format!("r{n}"), &["m"])).collect();
        let (first, _) = build(&mut registry, &replicas);
        replicas[7].url = "http://elsewhere:1".parse().unwrap();
        let (moved, others) = (first.replicas[7].slot, ReplicaSlot::LIMIT);
        let busy = registry.rebuild(&replicas, &[], &HashMap::new(), |slot| slot != moved);
        assert_eq!(busy.unwrap_err(), FleetFull { wanted: others, limit: others });
        let (second, change) = build(&mut registry, &replicas);
        assert_eq!(change, Membership { joined: vec![moved], left: Vec::new() });
        assert_eq!(second.replicas[7].authority, "elsewhere:1");
        assert_eq!(second.replica(moved).map(|replica| replica.config.id.as_str()), Some("r7"));
    }

    #[test]
    fn an_address_stays_with_its_replica_and_not_with_its_slot() {
        let mut registry = Registry::new(1);
        let mut replicas = [config("a", &["m"])];
        let (first, _) = build(&mut registry, &replicas);
        let before = &first.replicas[0];
        assert_eq!(before.address(), None);
        let here = SocketAddr::from(([10, 0, 0, 1], 8000));
        before.set_address(here);
        replicas[0].models = vec!["n".to_owned()];
        let (second, _) = build(&mut registry, &replicas);
        assert_eq!(second.replicas[0].address(), Some(here));
        assert!(second.replicas[0].is_same(before));
        let there = SocketAddr::from(([10, 0, 0, 2], 8000));
        before.set_address(there);
        assert_eq!(second.replicas[0].address(), Some(there), "whichever snapshot is told");
        replicas[0].url = "http://[::1]:9000".parse().unwrap();
        let (third, _) = build(&mut registry, &replicas);
        let after = &third.replicas[0];
        assert_eq!((after.slot, after.address()), (before.slot, "[::1]:9000".parse().ok()));
        assert_eq!(before.address(), Some(there), "who still holds the old snapshot still reaches the old replica");
    }

    #[test]
    fn a_replica_that_moved_is_asked_anew() {
        let mut registry = Registry::new(4);
        let mut replicas = [config("a", &[])];
        build(&mut registry, &replicas);
        let said = Discovered { models: vec!["m".to_owned()], slots: Some(4), ..Discovered::default() };
        let known = HashMap::from([("a".to_owned(), said)]);
        let (fleet, _) = registry.rebuild(&replicas, &[], &known, |_| true).unwrap();
        assert_eq!(
            (fleet.replicas[0].models.as_deref(), fleet.replicas[0].slots),
            (Some(&["m".to_owned()][..]), Some(4))
        );
        assert!(!fleet.is_outdated(&known));
        replicas[0].url = "http://elsewhere:1".parse().unwrap();
        let (fleet, _) = registry.rebuild(&replicas, &[], &known, |_| true).unwrap();
        assert_eq!((fleet.replicas[0].models.as_ref(), fleet.replicas[0].slots), (None, None));
        assert!(fleet.is_outdated(&known));
        assert!(!fleet.is_outdated(&HashMap::new()));
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
    fn who_does_not_fit_is_told_and_fits_once_there_is_room() {
        let mut registry = Registry::new(2);
        let replicas: Vec<_> = ["a", "b", "c"].map(|id| config(id, &["m"])).into();
        let fit = |registry: &mut Registry, replicas: &[ReplicaConfig], idle| {
            let (fleet, _, left_out) = registry.rebuild_what_fits(replicas, &[], &HashMap::new(), |_| idle);
            (fleet.replicas.iter().map(|replica| replica.config.id.clone()).collect::<Vec<_>>(), left_out)
        };
        assert_eq!(fit(&mut registry, &replicas, true), (vec!["a".into(), "b".into()], vec!["c".to_owned()]));
        assert_eq!(
            fit(&mut registry, &replicas[1..], false),
            (vec!["b".into()], vec!["c".to_owned()]),
            "a is busy yet"
        );
        assert_eq!(fit(&mut registry, &replicas[1..], true), (vec!["b".into(), "c".into()], Vec::new()));
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
