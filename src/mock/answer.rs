//! The shapes of answers, plain and streamed, as the OpenAI and Anthropic SDKs read them.

use bytes::Bytes;
use serde_json::{Value, json};

use crate::parse::Api;

/// The four forms of generated text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Chat,
    Text,
    Response,
    Message,
}

/// All that the parts of one answer have in common.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) api: Api,
    /// Unique in this engine; each API puts its own prefix before it.
    pub(super) number: u64,
    /// Seconds since the Unix epoch.
    pub(super) created: u64,
    pub(super) model: String,
    pub(super) prompt_tokens: u64,
    pub(super) cached_tokens: u64,
    pub(super) output_tokens: u64,
    /// It ends because the request's limit is reached.
    pub(super) is_cut: bool,
    pub(super) include_usage: bool,
}

impl Answer {
    /// What this API generates; those that generate nothing share the form of completions for their usage.
    const fn form(&self) -> Form {
        match self.api {
            Api::ChatCompletions => Form::Chat,
            Api::Responses => Form::Response,
            Api::Messages | Api::CountTokens => Form::Message,
            Api::Completions | Api::Embeddings | Api::Rerank | Api::Tokenize | Api::Detokenize => Form::Text,
        }
    }

    fn id(&self) -> String {
        let prefix = match self.api {
            Api::ChatCompletions => "chatcmpl",
            Api::Completions => "cmpl",
            Api::Responses => "resp",
            Api::Messages | Api::CountTokens => "msg",
            Api::Embeddings => "embd",
            Api::Rerank => "rerank",
            Api::Tokenize | Api::Detokenize => "tok",
        };
        format!("{prefix}_{:016x}", self.number)
    }

    const fn finish_reason(&self) -> &'static str {
        match (self.form(), self.is_cut) {
            (Form::Message, true) => "max_tokens",
            (Form::Message, false) => "end_turn",
            (_, true) => "length",
            (_, false) => "stop",
        }
    }

    /// `usage`, as this API has it.
    pub(super) fn usage(&self) -> Value {
        let (prompt, cached, output) = (self.prompt_tokens, self.cached_tokens, self.output_tokens);
        match self.form() {
            Form::Response => json!({
                "input_tokens": prompt,
                "input_tokens_details": {"cached_tokens": cached},
                "output_tokens": output,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": prompt + output,
            }),
            // Anthropic counts what was read from the cache apart.
            Form::Message => json!({
                "input_tokens": prompt - cached,
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": cached,
                "output_tokens": output,
            }),
            Form::Chat | Form::Text => json!({
                "prompt_tokens": prompt,
                "completion_tokens": output,
                "total_tokens": prompt + output,
                "prompt_tokens_details": {"cached_tokens": cached},
            }),
        }
    }

    /// The whole answer at once; `texts` has one text a prompt.
    pub(super) fn whole(&self, texts: &[String]) -> Value {
        let text = texts.first().map_or("", String::as_str);
        match self.form() {
            Form::Response => self.response("completed", Some(text)),
            Form::Message => json!({
                "id": self.id(), "type": "message", "role": "assistant", "model": self.model,
                "content": [{"type": "text", "text": text}],
                "stop_reason": self.finish_reason(), "stop_sequence": null, "usage": self.usage(),
            }),
            Form::Chat => json!({
                "id": self.id(), "object": "chat.completion", "created": self.created, "model": self.model,
                "choices": [{
                    "index": 0, "message": {"role": "assistant", "content": text},
                    "logprobs": null, "finish_reason": self.finish_reason(),
                }],
                "usage": self.usage(),
            }),
            Form::Text => {
                let choices: Vec<Value> = texts
                    .iter()
                    .enumerate()
                    .map(|(at, text)| {
                        json!({"index": at, "text": text, "logprobs": null, "finish_reason": self.finish_reason()})
                    })
                    .collect();
                json!({
                    "id": self.id(), "object": "text_completion", "created": self.created, "model": self.model,
                    "choices": choices, "usage": self.usage(),
                })
            }
        }
    }

    /// What a stream sends before its first word.
    pub(super) fn stream_start(&self) -> Bytes {
        let mut events = String::new();
        match self.form() {
            Form::Chat => {
                data(&mut events, &self.chat_chunk(&json!({"role": "assistant", "content": ""}), None));
            }
            Form::Response => {
                for (number, kind) in ["response.created", "response.in_progress"].into_iter().enumerate() {
                    let response = self.response("in_progress", None);
                    event(&mut events, kind, json!({"sequence_number": number, "response": response}));
                }
                let mut item = self.response_item("in_progress", "");
                let part = item.pointer("/content/0").cloned();
                if let Some(content) = item.get_mut("content") {
                    *content = json!([]);
                }
                let added = json!({"sequence_number": 2, "output_index": 0, "item": item});
                event(&mut events, "response.output_item.added", added);
                let added = self.response_part(3, &json!({"part": part}));
                event(&mut events, "response.content_part.added", added);
            }
            Form::Message => {
                let mut message = self.whole(&[]);
                if let Some(fields) = message.as_object_mut() {
                    fields.insert("content".to_owned(), json!([]));
                    fields.insert("stop_reason".to_owned(), Value::Null);
                }
                if let Some(output) = message.pointer_mut("/usage/output_tokens") {
                    *output = json!(1);
                }
                event(&mut events, "message_start", json!({"message": message}));
                let block = json!({"index": 0, "content_block": {"type": "text", "text": ""}});
                event(&mut events, "content_block_start", block);
            }
            Form::Text => {}
        }
        events.into()
    }

    /// Word `at` of the answer to prompt `index`.
    pub(super) fn stream_word(&self, index: usize, at: u32, word: &str) -> Bytes {
        let mut events = String::with_capacity(256);
        match self.form() {
            Form::Chat => data(&mut events, &self.chat_chunk(&json!({"content": word}), None)),
            Form::Response => {
                let delta = self.response_part(u64::from(at) + 4, &json!({"delta": word, "logprobs": []}));
                event(&mut events, "response.output_text.delta", delta);
            }
            Form::Message => {
                let delta = json!({"index": 0, "delta": {"type": "text_delta", "text": word}});
                event(&mut events, "content_block_delta", delta);
            }
            Form::Text => {
                data(&mut events, &self.text_chunk(&json!([{"index": index, "text": word, "finish_reason": null}])))
            }
        }
        events.into()
    }

    /// The end of the answer to prompt `index`. Only completions have more than one.
    pub(super) fn stream_prompt_end(&self, index: usize) -> Bytes {
        let mut events = String::new();
        let reason = self.finish_reason();
        match self.form() {
            Form::Chat => data(&mut events, &self.chat_chunk(&json!({}), Some(reason))),
            Form::Text => {
                data(&mut events, &self.text_chunk(&json!([{"index": index, "text": "", "finish_reason": reason}])));
            }
            Form::Response | Form::Message => {}
        }
        events.into()
    }

    /// What a stream sends last.
    pub(super) fn stream_end(&self, text: &str) -> Bytes {
        let mut events = String::new();
        match self.form() {
            Form::Response => {
                let number = self.output_tokens + 4;
                let item = self.response_item("completed", text);
                let part = item.pointer("/content/0").cloned();
                let done = self.response_part(number, &json!({"text": text, "logprobs": []}));
                event(&mut events, "response.output_text.done", done);
                let done = self.response_part(number + 1, &json!({"part": part}));
                event(&mut events, "response.content_part.done", done);
                let done = json!({"sequence_number": number + 2, "output_index": 0, "item": item});
                event(&mut events, "response.output_item.done", done);
                let response = self.response("completed", Some(text));
                event(&mut events, "response.completed", json!({"sequence_number": number + 3, "response": response}));
            }
            Form::Message => {
                event(&mut events, "content_block_stop", json!({"index": 0}));
                let delta = json!({"stop_reason": self.finish_reason(), "stop_sequence": null});
                event(&mut events, "message_delta", json!({"delta": delta, "usage": self.usage()}));
                event(&mut events, "message_stop", json!({}));
            }
            Form::Chat | Form::Text => {
                if self.include_usage {
                    let mut chunk = if self.form() == Form::Chat {
                        self.chat_chunk(&json!({}), None)
                    } else {
                        self.text_chunk(&json!([]))
                    };
                    if let Some(fields) = chunk.as_object_mut() {
                        fields.insert("choices".to_owned(), json!([]));
                        fields.insert("usage".to_owned(), self.usage());
                    }
                    data(&mut events, &chunk);
                }
                events.push_str("data: [DONE]\n\n");
            }
        }
        events.into()
    }

    fn chat_chunk(&self, delta: &Value, finish_reason: Option<&str>) -> Value {
        let mut chunk = json!({
            "id": self.id(), "object": "chat.completion.chunk", "created": self.created, "model": self.model,
            "choices": [{"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish_reason}],
        });
        self.null_usage(&mut chunk);
        chunk
    }

    fn text_chunk(&self, choices: &Value) -> Value {
        let mut chunk = json!({
            "id": self.id(), "object": "text_completion", "created": self.created, "model": self.model,
            "choices": choices,
        });
        self.null_usage(&mut chunk);
        chunk
    }

    /// With `include_usage`, all chunks but the last say `"usage": null`.
    fn null_usage(&self, chunk: &mut Value) {
        if self.include_usage
            && let Some(fields) = chunk.as_object_mut()
        {
            fields.insert("usage".to_owned(), Value::Null);
        }
    }

    /// The `response` object; without its usage and output while `text` is still to come.
    fn response(&self, status: &str, text: Option<&str>) -> Value {
        json!({
            "id": self.id(), "object": "response", "created_at": self.created, "status": status,
            "error": null, "incomplete_details": null, "instructions": null, "metadata": {},
            "model": self.model,
            "output": text.map_or_else(|| json!([]), |text| json!([self.response_item(status, text)])),
            "parallel_tool_calls": true, "temperature": 1.0, "tool_choice": "auto", "tools": [], "top_p": 1.0,
            "usage": text.map_or(Value::Null, |_| self.usage()),
        })
    }

    fn response_item(&self, status: &str, text: &str) -> Value {
        json!({
            "id": format!("msg_{:016x}", self.number), "type": "message", "role": "assistant", "status": status,
            "content": [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}],
        })
    }

    fn response_part(&self, number: u64, more: &Value) -> Value {
        let mut part = json!({
            "sequence_number": number, "item_id": format!("msg_{:016x}", self.number),
            "output_index": 0, "content_index": 0,
        });
        if let (Some(fields), Some(more)) = (part.as_object_mut(), more.as_object()) {
            fields.extend(more.clone());
        }
        part
    }
}

/// An event without a name.
fn data(events: &mut String, value: &Value) {
    for part in ["data: ", &value.to_string(), "\n\n"] {
        events.push_str(part);
    }
}

/// A named event; its data repeat the name as `type`, first.
fn event(events: &mut String, kind: &str, fields: Value) {
    let mut value = json!({"type": kind});
    if let (Some(all), Value::Object(fields)) = (value.as_object_mut(), fields) {
        all.extend(fields);
    }
    for part in ["event: ", kind, "\n"] {
        events.push_str(part);
    }
    data(events, &value);
}

/// The body of an error.
pub(super) fn error(api: Option<Api>, status: u16, message: &str) -> Value {
    let (openai, anthropic, code) = match status {
        404 => ("invalid_request_error", "not_found_error", Value::from("model_not_found")),
        429 => ("rate_limit_error", "rate_limit_error", Value::from("rate_limit_exceeded")),
        503 | 529 => ("server_error", "overloaded_error", Value::from("overloaded")),
        400..=499 => ("invalid_request_error", "invalid_request_error", Value::Null),
        _ => ("server_error", "api_error", Value::Null),
    };
    if api.is_some_and(Api::is_anthropic) {
        json!({"type": "error", "error": {"type": anthropic, "message": message}})
    } else {
        let param = if status == 404 { Value::from("model") } else { Value::Null };
        json!({"error": {"message": message, "type": openai, "param": param, "code": code}})
    }
}

/// Embeddings that depend on nothing but the prompt's hash.
pub(super) fn embeddings(answer: &Answer, seeds: &[u64]) -> Value {
    let data: Vec<Value> = seeds
        .iter()
        .enumerate()
        .map(|(at, seed)| {
            let mut random = fastrand::Rng::with_seed(*seed);
            let vector: Vec<f32> = (0..8).map(|_| random.f32() - 0.5).collect();
            json!({"object": "embedding", "index": at, "embedding": vector})
        })
        .collect();
    json!({"object": "list", "model": answer.model, "data": data, "usage": answer.usage()})
}

/// Documents by falling score.
pub(super) fn rerank(answer: &Answer, seeds: &[u64]) -> Value {
    let mut scored: Vec<(usize, f64)> =
        seeds.iter().enumerate().map(|(at, seed)| (at, fastrand::Rng::with_seed(*seed).f64())).collect();
    scored.sort_by(|a, b| b.1.total_cmp(&a.1));
    let results: Vec<Value> =
        scored.into_iter().map(|(at, score)| json!({"index": at, "relevance_score": score})).collect();
    json!({"id": answer.id(), "model": answer.model, "results": results, "usage": answer.usage()})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(api: Api) -> Answer {
        Answer {
            api,
            number: 7,
            created: 1,
            model: "m".to_owned(),
            prompt_tokens: 100,
            cached_tokens: 64,
            output_tokens: 2,
            is_cut: true,
            include_usage: true,
        }
    }

    fn events(api: Api) -> Vec<Value> {
        let answer = answer(api);
        let parts = [
            answer.stream_start(),
            answer.stream_word(0, 0, " bad"),
            answer.stream_word(0, 1, " dog"),
            answer.stream_prompt_end(0),
            answer.stream_end(" bad dog"),
        ];
        let text = String::from_utf8(parts.concat()).unwrap();
        assert!(text.ends_with("\n\n"));
        text.lines()
            .filter_map(|line| line.strip_prefix("data: "))
            .filter(|data| *data != "[DONE]")
            .map(|data| serde_json::from_str(data).unwrap())
            .collect()
    }

    #[test]
    fn chat_streams_role_words_reason_and_usage() {
        let events = events(Api::ChatCompletions);
        assert_eq!(events[0].pointer("/choices/0/delta/role").unwrap(), "assistant");
        assert_eq!(events[1].pointer("/choices/0/delta/content").unwrap(), " bad");
        assert_eq!(events[3].pointer("/choices/0/finish_reason").unwrap(), "length");
        assert!(events[3].get("usage").unwrap().is_null());
        assert_eq!(events[4].pointer("/usage/prompt_tokens_details/cached_tokens").unwrap(), 64);
        assert_eq!(events[4].get("choices").unwrap(), &json!([]));
    }

    #[test]
    fn named_events_come_in_the_order_of_each_api() {
        let kinds = |api| -> Vec<String> {
            events(api).iter().map(|event| event["type"].as_str().unwrap().to_owned()).collect()
        };
        assert_eq!(
            kinds(Api::Messages),
            [
                "message_start",
                "content_block_start",
                "content_block_delta",
                "content_block_delta",
                "content_block_stop",
                "message_delta",
                "message_stop"
            ]
        );
        let responses = events(Api::Responses);
        for (at, event) in responses.iter().enumerate() {
            assert_eq!(event["sequence_number"], at);
        }
        assert_eq!(responses.last().unwrap()["type"], "response.completed");
        assert_eq!(responses.last().unwrap().pointer("/response/output/0/content/0/text").unwrap(), " bad dog");
    }

    #[test]
    fn usage_adds_up_in_each_dialect() {
        assert_eq!(answer(Api::Messages).usage()["input_tokens"], 36);
        assert_eq!(answer(Api::Messages).usage()["cache_read_input_tokens"], 64);
        assert_eq!(answer(Api::Responses).usage()["total_tokens"], 102);
        assert_eq!(error(Some(Api::Messages), 404, "x")["error"]["type"], "not_found_error");
        assert_eq!(error(None, 404, "x")["error"]["code"], "model_not_found");
    }
}
