//! What enters the prompt's bytes, what does not, and that one more message only adds to them.

use serde_json::{Value, json};

use super::*;

#[test]
fn one_more_message_only_adds_bytes() {
    bolero::check!().with_type::<Vec<(u8, u8)>>().for_each(|picks| {
        let messages: Vec<Value> = picks.iter().map(|(kind, text)| message(*kind, *text)).collect();
        for count in 1..messages.len() {
            let shorter = chat_prompt(&messages[..count].into());
            let longer = chat_prompt(&messages[..=count].into());
            assert!(longer.starts_with(&shorter) && longer.len() > shorter.len());
        }
    });
}

#[test]
fn different_conversations_have_different_bytes() {
    bolero::check!().with_type::<(Vec<(u8, u8)>, Vec<(u8, u8)>)>().for_each(|(left, right)| {
        let build =
            |picks: &[(u8, u8)]| picks.iter().map(|(kind, text)| message(*kind % 10, *text)).collect::<Vec<_>>();
        let (left, right) = (build(left), build(right));
        if !left.is_empty() && !right.is_empty() {
            let same = chat_prompt(&left.clone().into()) == chat_prompt(&right.clone().into());
            assert_eq!(same, left == right, "{left:?}\n{right:?}");
        }
    });
}

/// A message of one of ten shapes that all differ, with one of a few texts.
fn message(kind: u8, text: u8) -> Value {
    const TEXTS: [&str; 8] = [
        "a",
        "aa",
        "user",
        "\u{0}\u{1f}",
        "{\"a\":1}",
        "é🚀\n\"\\",
        "t",
        "the same thirty-two bytes and more, and more",
    ];
    let text = TEXTS[usize::from(text) % TEXTS.len()];
    match kind % 10 {
        0 => json!({"role": "user", "content": text}),
        1 => json!({"role": "assistant", "content": text}),
        2 => json!({"role": "user", "name": text, "content": "a"}),
        3 => json!({"role": "user", "content": [{"type": "text", "text": text}, {"type": "text", "text": "a"}]}),
        4 => json!({"role": "user", "content": [{"type": "image_url", "image_url": {"url": text}}]}),
        5 => {
            json!({"role": "assistant", "content": null, "tool_calls": [{"function": {"name": text, "arguments": "a"}}]})
        }
        6 => json!({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": text}}]}),
        7 => json!({"role": "assistant", "reasoning_content": text, "content": "a"}),
        8 => json!({"role": "user", "content": [{"type": "tool_result", "content": text}]}),
        _ => json!({"role": "assistant", "content": [{"type": "tool_use", "name": "f", "input": {"x": text}}]}),
    }
}

#[test]
fn field_order_and_white_space_do_not_matter() {
    for (api, body) in samples() {
        let expected = prompt(api, &body);
        let value: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(prompt(api, &serde_json::to_string_pretty(&value).unwrap()), expected);
        let mut top: Vec<_> = value.as_object().unwrap().clone().into_iter().collect();
        top.reverse();
        let mut reversed = Value::Object(top.into_iter().collect());
        for message in reversed.get_mut("messages").and_then(Value::as_array_mut).into_iter().flatten() {
            let mut members: Vec<_> = message.as_object().unwrap().clone().into_iter().collect();
            members.reverse();
            *message = Value::Object(members.into_iter().collect());
        }
        assert_eq!(prompt(api, &reversed.to_string()), expected, "{body}");
    }
}

#[test]
fn escapes_stay_as_sent_and_hide_no_field() {
    let said =
        |text: &str| prompt(Api::ChatCompletions, &format!(r#"{{"messages":[{{"role":"user","content":"{text}"}}]}}"#));
    assert!(said(r#"a\n\"é\u00e9\\"#).ends_with(r#"a\n\"é\u00e9\\"#.as_bytes()));
    assert_ne!(said("\\u00e9"), said("é"));
    for (api, body) in samples() {
        let (mut plain, mut escaped) = (parser(), parser());
        let escaped_body = escape_all(&body);
        let (plain, escaped) =
            (plain.parse(api, body.as_bytes()).unwrap(), escaped.parse(api, escaped_body.as_bytes()).unwrap());
        assert_eq!((plain.model, plain.user, plain.session), (escaped.model, escaped.user, escaped.session));
        assert_eq!(
            (plain.cache_salt, plain.adapter, plain.items),
            (escaped.cache_salt, escaped.adapter, escaped.items)
        );
    }
}

#[test]
fn members_left_out_leave_no_trace() {
    let built = |value: &str| prompt(Api::Responses, &format!(r#"{{"input":[{{"type":"x",{value}}}]}}"#));
    let base = built(r#""a":{"b":[1,{}]},"c":"d""#);
    for same in [
        r#""a" : { "b" : [ 1 , { } ] } , "c" : "d" "#,
        r#""id":1,"a":{"b":[1,{}]},"c":"d""#,
        r#""a":{"b":[1,{}]},"c":"d","id":[1],"status":{"a":1}"#,
        r#""id":1 , "call_id":2 , "a":{"cache_control":{}, "b":[1,{"cache_control":1}]},"c":"d", "cache_control":3"#,
        r#""a":{"b":[1,{"cache_control":1,"cache_control":[]}],"cache_control":{}},"id":"cache_control","c":"d""#,
    ] {
        assert_eq!(built(same), base, "{same}");
    }
    for other in [r#""a":{"b":[1,{}],"id":1},"c":"d""#, r#""a":{"b":[1,{}]},"c":["cache_control"]"#, r#""a":"{}""#] {
        assert_ne!(built(other), base, "{other}");
    }
    assert_ne!(built(r#""a":1"#), built(r#""a":"1""#));
    let content =
        |value| chat_prompt(&json!([{"role": "user", "content": [{"type": "tool_result", "content": value}]}]));
    assert_ne!(content(json!({})), content(json!("{}")));
}

/// The same JSON with every character of every string as `\uXXXX`.
fn escape_all(body: &str) -> String {
    fn write(value: &Value, out: &mut String) {
        let string = |text: &str, out: &mut String| {
            let units: String = text.encode_utf16().map(|unit| format!("\\u{unit:04X}")).collect();
            out.push_str(&format!("\"{units}\""));
        };
        match value {
            Value::String(text) => string(text, out),
            Value::Array(elements) => {
                out.push('[');
                for (at, element) in elements.iter().enumerate() {
                    out.push_str(if at == 0 { "" } else { "," });
                    write(element, out);
                }
                out.push(']');
            }
            Value::Object(members) => {
                out.push('{');
                for (at, (key, member)) in members.iter().enumerate() {
                    out.push_str(if at == 0 { "" } else { "," });
                    string(key, out);
                    out.push(':');
                    write(member, out);
                }
                out.push('}');
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => out.push_str(&value.to_string()),
        }
    }
    let mut out = String::new();
    write(&serde_json::from_str(body).unwrap(), &mut out);
    out
}

#[test]
fn what_the_cache_does_not_see_does_not_enter() {
    let anthropic = |extra: &str, control: &str, id: &str| {
        prompt(
            Api::Messages,
            &format!(
                r#"{{"system":[{{"type":"text","text":"s"{control}}}],"tools":[{{"name":"f"{control},"input_schema":{{}}}}],
            "messages":[{{"role":"assistant","content":[{{"type":"tool_use","id":"{id}","name":"f","input":{{}}}},
            {{"type":"image","source":{{"data":"A"}}{control}}}]{id_field}}}]{extra}}}"#,
                id_field = format_args!(r#","id":"{id}""#)
            ),
        )
    };
    let base = anthropic("", "", "1");
    assert_eq!(anthropic(r#","temperature":0.5,"tool_choice":{"type":"any"}"#, "", "1"), base);
    assert_eq!(anthropic("", r#","cache_control":{"type":"ephemeral"}"#, "1"), base);
    assert_eq!(anthropic("", r#","c\u0061che_control":{"type":"ephemeral"}"#, "2"), base);
}

#[test]
fn what_the_cache_sees_does_enter() {
    let body = &samples()[0].1;
    let base = prompt(Api::ChatCompletions, body);
    for (from, to) in [
        ("\"name\":\"f\"", "\"name\":\"g\""),
        ("\"description\":\"d\"", "\"description\":\"e\""),
        ("{\"type\":\"object\"}", "{\"type\":\"string\"}"),
        ("base64,AAAA", "base64,AAAB"),
        ("\"reasoning_content\":\"hm\"", "\"reasoning_content\":\"ho\""),
        ("\"content\":\"42\"", "\"content\":\"43\""),
        ("\"role\":\"tool\"", "\"role\":\"user\""),
    ] {
        assert!(body.contains(from), "{from}");
        assert_ne!(prompt(Api::ChatCompletions, &body.replacen(from, to, 1)), base, "{from}");
    }
    // A content of one text part is the same prompt as the text alone.
    assert_eq!(
        chat_prompt(&json!([{"role": "user", "content": [{"type": "text", "text": "a"}]}])),
        chat_prompt(&json!([{"role": "user", "content": "a"}]))
    );
    let tokens = |ids: &str| prompt(Api::Completions, &format!(r#"{{"prompt":{ids}}}"#));
    assert_ne!(tokens("[1,2,3]"), tokens("[1,2,4]"));
    assert_ne!(tokens("[[1,2],[3]]"), tokens("[[1],[2,3]]"));
    assert_eq!(tokens("[7,300]"), [7, 0, 0, 0, 44, 1, 0, 0]);
    assert_ne!(tokens(r#"["ab","c"]"#), tokens(r#"["a","bc"]"#));
}
