//! What replicas hold is what is predicted: the next turn of a conversation finds the answer of the one before, and a
//! cache that is smaller than believed is soon believed to be smaller.

use serde_json::{Value, json};

use crate::support::engine::{Engine, urls};
use crate::support::gateway::{Gateway, Setup};
use crate::support::http::{Answer, Client, events};
use crate::support::text;

/// One conversation over one API.
struct Talk {
    path: &'static str,
    messages: Vec<Value>,
    stream: bool,
}

impl Talk {
    /// The next turn's body: `words` are the user's.
    fn body(&mut self, words: &str, output_tokens: u64) -> Value {
        self.messages.push(json!({"role": "user", "content": words}));
        let mut body = json!({"model": "m", "max_tokens": output_tokens, "stream": self.stream});
        match self.path {
            "/v1/completions" => {
                let said = |message: &Value| message["content"].as_str().unwrap().to_owned();
                body["prompt"] = self.messages.iter().map(said).collect::<String>().into();
            }
            "/v1/responses" => {
                body["input"] = json!(self.messages);
                body["max_output_tokens"] = json!(output_tokens);
            }
            _ => body["messages"] = json!(self.messages),
        }
        if self.stream && !self.path.ends_with("messages") {
            body["stream_options"] = json!({"include_usage": true});
        }
        body
    }

    /// Sends a turn; what was found in the cache, and how long the prompt was. The answer joins the conversation.
    #[track_caller]
    fn send(&mut self, gateway: &Gateway, body: &Value) -> (u64, u64, f64) {
        let (answer, warm) = asked(gateway, self.path, body);
        let parts: Vec<Value> = if self.stream {
            events(&answer.body).iter().filter_map(|event| serde_json::from_str(event).ok()).collect()
        } else {
            vec![answer.json()]
        };
        let texts = ["/choices/0/delta/content", "/choices/0/message/content", "/choices/0/text", "/delta/text"];
        let whole = ["/content/0/text", "/output/0/content/0/text"];
        let pointers: Vec<&str> = texts.iter().chain(if self.stream { &[][..] } else { &whole[..] }).copied().collect();
        let mut said = String::new();
        for part in &parts {
            let is_response = part["type"] == "response.output_text.delta";
            said += if is_response { part["delta"].as_str() } else { None }
                .or_else(|| pointers.iter().find_map(|pointer| part.pointer(pointer)?.as_str()))
                .unwrap_or_default();
        }
        assert!(!said.is_empty(), "{}", answer.text());
        self.messages.push(json!({"role": "assistant", "content": said}));
        let mut usages =
            parts.iter().flat_map(|part| [&part["usage"], &part["response"]["usage"], &part["message"]["usage"]]);
        let usage = usages.rfind(|usage| usage.is_object()).expect("no usage").clone();
        let count = |pointer: &str| usage.pointer(pointer).and_then(Value::as_u64);
        let cached =
            count("/prompt_tokens_details/cached_tokens").or_else(|| count("/input_tokens_details/cached_tokens"));
        match (cached, count("/cache_read_input_tokens")) {
            (None, Some(read)) => (read, read + count("/input_tokens").unwrap(), warm),
            (cached, _) => (cached.unwrap(), count("/prompt_tokens").or_else(|| count("/input_tokens")).unwrap(), warm),
        }
    }
}

/// Sends `body`; the answer, and the tokens that the gateway predicted to be warm where it placed it.
fn asked(gateway: &Gateway, path: &str, body: &Value) -> (Answer, f64) {
    let headers = [("x-emberlane-explain", "1")];
    let mut client = Client::connect(gateway.listen).unwrap();
    let answer = client.exchange("POST", path, &headers, body.to_string().as_bytes()).unwrap();
    assert_eq!(answer.status(), 200, "{}", answer.text());
    let decision: Value = serde_json::from_str(answer.head.header("x-emberlane-decision").unwrap()).unwrap();
    (answer, decision["chosen"]["warm_tokens"].as_f64().unwrap())
}

/// Three turns with long answers: from the second on, what is predicted is what is found, within
/// `slack` tokens.
fn turns_are_warm(gateway: &Gateway, (seed, is_random): (u64, bool), path: &'static str, stream: bool, slack: f64) {
    let mut talk = Talk { path, messages: Vec::new(), stream };
    let mut prompt_before = 0;
    for turn in 0..3 {
        let body = talk.body(&text(seed + turn, 900), 400);
        let (cached, prompt, warm) = talk.send(gateway, &body);
        let what = format!("{path}, stream {stream}, turn {turn}: {warm} predicted, {cached} of {prompt} found");
        eprintln!("{what}");
        if turn > 0 {
            // A random model says half characters, which come back as other tokens than it said: then an engine finds
            // the prompt before its answer only.
            let is_kept = cached > prompt_before + 200;
            assert!(is_kept || is_random, "the engine has not kept its answer: {what}");
            assert!(warm > (prompt_before + 100) as f64, "the answer is not on record: {what}");
            assert!(!is_kept || (warm - cached as f64).abs() < slack, "{what}");
        }
        prompt_before = prompt;
    }
}

#[test]
fn a_turn_finds_the_answer_before_it() {
    let engines = Engine::mocks(1, &[]);
    let gateway = Setup::new(&urls(&engines)).yaml("shards: 1").start();
    let paths = ["/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"];
    for (seed, path) in (1..).map(|seed| seed * 100).zip(paths) {
        for (stream, seed) in [(true, seed), (false, seed + 50)] {
            turns_are_warm(&gateway, (seed, false), path, stream, 96.0);
        }
    }
}

#[test]
fn answers_are_left_out_where_the_file_says_so() {
    let engines = Engine::mocks(1, &[]);
    let gateway = Setup::new(&urls(&engines)).yaml("shards: 1\nindex: {outputs: false}").start();
    let mut talk = Talk { path: "/v1/chat/completions", messages: Vec::new(), stream: true };
    let mut last = (0, 0, 0.0);
    for turn in 0..2 {
        let body = talk.body(&text(turn, 900), 400);
        last = talk.send(&gateway, &body);
    }
    assert!(last.0 > 500 && last.2 < 300.0, "{last:?}");
}

#[test]
fn a_turn_finds_the_answer_before_it_on_real_engines() {
    let Some(engines) = Engine::llama(1, 4, 32_768) else { return };
    let gateway = Setup::new(&urls(&engines)).yaml("shards: 1").start();
    for (seed, stream) in [(1, true), (100, false)] {
        turns_are_warm(&gateway, (seed, true), "/v1/chat/completions", stream, 160.0);
    }
}

#[test]
fn a_cache_that_is_smaller_or_larger_than_said_is_soon_known() {
    for (said, kv_tokens) in [("16k", "8000"), ("6k", "12000")] {
        let engines = Engine::mocks(1, &["--kv-tokens", kv_tokens]);
        let replica = format!("replicas: [{{url: '{}', models: [m], kv_tokens: {said}}}]", engines[0].url());
        let gateway = Setup::new(&[]).yaml(&format!("shards: 1\n{replica}")).start();
        let system = text(7, 1000);
        let mut random = fastrand::Rng::with_seed(11);
        let mut sums = [(0.0, 0); 2];
        for request in 0..800 {
            let most = random.u64(..60);
            let group = random.u64(..=most);
            let body = json!({
                "model": "m", "max_tokens": 1, "messages": [
                    {"role": "system", "content": system},
                    {"role": "user", "content": text(100 + group, 1600)},
                    {"role": "user", "content": text(10_000 + request, 100)},
                ],
            });
            let (answer, warm) = asked(&gateway, "/v1/chat/completions", &body);
            let cached = answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
            let sum = &mut sums[usize::from(request >= 400)];
            sum.0 += warm;
            sum.1 += cached;
        }
        let ratio = |(predicted, found): (f64, u64)| predicted / found as f64;
        let replica = &gateway.replicas()[0];
        let what =
            format!("{said} said, {kv_tokens} there: {:.3}, then {:.3}; {replica}", ratio(sums[0]), ratio(sums[1]));
        eprintln!("{what}");
        assert!((0.9..1.1).contains(&ratio(sums[1])), "{what}");
        let factor = replica["capacity_factor"].as_f64().unwrap();
        assert_eq!(factor < 1.0, said == "16k", "{what}");
    }
}
