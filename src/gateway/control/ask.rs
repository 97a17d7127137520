//! Asks a replica what it is and serves, and a name service where it is. Both may block.

use crate::fleet::{Discovered, Engine, Replica};
use serde_json::Value;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(3);
/// Models believed of one replica, and bytes read to learn them.
const MODELS_MAX: usize = 1024;
const ANSWER_BYTES_MAX: u64 = 4 << 20;

/// What `replica` says of itself, after its name was looked up if `look_up`.
pub(super) fn find_and_ask(replica: &Replica, look_up: bool) -> Option<Discovered> {
    if look_up && let Some(address) = look_up_address(&replica.authority) {
        replica.set_address(address);
    }
    ask(replica.address()?)
}

fn look_up_address(authority: &str) -> Option<SocketAddr> {
    let found: Vec<_> = authority.to_socket_addrs().ok()?.collect();
    let v4 = found.iter().find(|address| matches!(address.ip(), IpAddr::V4(_)));
    v4.or_else(|| found.first()).copied()
}

/// `GET /v1/models`, and of llama.cpp `GET /props`; `None` while there is no answer.
fn ask(address: SocketAddr) -> Option<Discovered> {
    let agent: ureq::Agent = ureq::Agent::config_builder().timeout_global(Some(TIMEOUT)).build().into();
    let get = |path: &str| -> Option<Value> {
        let mut answer = agent.get(format!("http://{address}{path}")).call().ok()?;
        let body = answer.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_vec().ok()?;
        serde_json::from_slice(&body).ok()
    };
    let listed = get("/v1/models")?;
    let listed = listed.get("data")?.as_array()?;
    let mut models: Vec<String> =
        listed.iter().filter_map(|model| Some(model.get("id")?.as_str()?.to_owned())).take(MODELS_MAX).collect();
    models.sort();
    models.dedup();
    let is_llama = listed.iter().any(|model| model.get("owned_by").and_then(Value::as_str) == Some("llamacpp"));
    if !is_llama {
        return Some(Discovered { models, ..Discovered::default() });
    }
    let props = get("/props").unwrap_or_default();
    let slots = props.get("total_slots").and_then(Value::as_u64).and_then(|slots| slots.try_into().ok());
    let slots: Option<u32> = slots.filter(|slots| *slots > 0);
    // Of one slot: the context is shared out evenly.
    let context = props.pointer("/default_generation_settings/n_ctx").and_then(Value::as_u64);
    let kv_tokens = context.zip(slots).map(|(tokens, slots)| tokens.saturating_mul(u64::from(slots)));
    Some(Discovered { models, engine: Engine::LlamaCpp, slots, kv_tokens: kv_tokens.filter(|tokens| *tokens > 0) })
}
