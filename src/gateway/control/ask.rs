//! Asks a replica what it is and serves, and a name service where it is. Both may block.

use crate::fleet::{Discovered, Engine, Replica};
use serde_json::Value;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(3);
/// Models believed of one replica, and bytes read to learn them.
const MODELS_MAX: usize = 1024;
const ANSWER_BYTES_MAX: u64 = 4 << 20;
/// Slots of a llama.cpp server that was not told how many to have.
const SLOTS_BY_DEFAULT: u32 = 4;

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
    let props = if is_llama(listed) { get("/props") } else { None };
    Some(read(listed, props.as_ref()))
}

fn is_llama(listed: &[Value]) -> bool {
    listed.iter().any(|model| model.get("owned_by").and_then(Value::as_str) == Some("llamacpp"))
}

/// What the answers say: that to `GET /v1/models`, and of llama.cpp that to `GET /props`.
fn read(listed: &[Value], props: Option<&Value>) -> Discovered {
    let mut models: Vec<String> =
        listed.iter().filter_map(|model| Some(model.get("id")?.as_str()?.to_owned())).take(MODELS_MAX).collect();
    models.sort();
    models.dedup();
    if !is_llama(listed) {
        return Discovered { models, ..Discovered::default() };
    }
    let props = props.unwrap_or(&Value::Null);
    let slots = props.get("total_slots").and_then(Value::as_u64).and_then(|slots| slots.try_into().ok());
    let slots: Option<u32> = slots.filter(|slots| *slots > 0);
    let context = props.pointer("/default_generation_settings/n_ctx").and_then(Value::as_u64);
    let trained = listed.iter().find_map(|model| model.pointer("/meta/n_ctx_train").and_then(Value::as_u64));
    let (kv_tokens, host_kv_tokens) = match context.filter(|tokens| *tokens > 0).zip(slots) {
        Some((context, slots)) => llama_context(context, slots, trained),
        None => (None, None),
    };
    Discovered { models, engine: Engine::LlamaCpp, slots, kv_tokens, host_kv_tokens }
}

/// Tokens that fit into the context of a llama.cpp server which says that one slot has `context` of them, and a guess of
/// what its host cache holds beside.
///
/// The server says what a slot may have, and not whether that is its own: by default the context is shared out evenly; with
/// `--kv-unified` each slot may have all of it. Nor does it say whether it keeps in the host's memory what leaves a slot
/// (`--cache-ram`; by default it does). Its own defaults are four slots that share all (`--parallel` left out), and a context
/// as long as the model was trained with, of which no slot is given more: who looks like that is taken to share, and to
/// remember as much as if it did not, for its host cache is taken to be on. Answers show what is true.
fn llama_context(context: u64, slots: u32, trained: Option<u64>) -> (Option<u64>, Option<u64>) {
    let all = context.saturating_mul(u64::from(slots));
    let is_shared = slots > 1 && (slots == SLOTS_BY_DEFAULT || trained.is_some_and(|trained| context >= trained));
    if is_shared { (Some(context), Some(all - context)) } else { (Some(all), None) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// What a server of llama.cpp says whose slots may have `context` tokens each.
    fn llama(context: u64, slots: u32, trained: u64) -> Discovered {
        let models = [json!({"id": "m", "owned_by": "llamacpp", "meta": {"n_ctx": context, "n_ctx_train": trained}})];
        let props = json!({"default_generation_settings": {"n_ctx": context}, "total_slots": slots});
        read(&models, Some(&props))
    }

    #[test]
    fn slots_have_a_context_each_or_share_one() {
        let tokens = |said: &Discovered| (said.slots, said.kv_tokens, said.host_kv_tokens);
        assert_eq!(tokens(&llama(4096, 2, 32_768)), (Some(2), Some(8192), None));
        assert_eq!(tokens(&llama(16_384, 1, 16_384)), (Some(1), Some(16_384), None));
        assert_eq!(
            tokens(&llama(32_768, 3, 32_768)),
            (Some(3), Some(32_768), Some(65_536)),
            "all that it was trained with"
        );
        assert_eq!(tokens(&llama(8192, 4, 32_768)), (Some(4), Some(8192), Some(24_576)), "as it starts by default");
    }

    #[test]
    fn who_says_little_is_believed_that() {
        let listed = [json!({"id": "b"}), json!({"id": "a", "owned_by": "vllm"}), json!({"id": "b"}), json!({})];
        let said = read(&listed, None);
        assert_eq!(said, Discovered { models: vec!["a".into(), "b".into()], ..Discovered::default() });
        let listed = [json!({"id": "m", "owned_by": "llamacpp"})];
        for props in
            [None, Some(json!({})), Some(json!({"total_slots": 0, "default_generation_settings": {"n_ctx": 9}}))]
        {
            let said = read(&listed, props.as_ref());
            assert_eq!((said.engine, said.slots, said.kv_tokens), (Engine::LlamaCpp, None, None));
        }
        assert_eq!(read(&[], None), Discovered::default());
        let huge = llama(u64::MAX, 2, 0);
        assert_eq!(huge.kv_tokens, Some(u64::MAX));
    }
}
