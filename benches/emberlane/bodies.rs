//! Request bodies for benches and tests: chats of prose, code, accents and emoji with tools, as agents send them. The
//! same size and seed make the same body.

const WORDS: &[&str] = &[
    "the",
    "model",
    "cache",
    "request",
    "prefix",
    "of",
    "and",
    "to",
    "in",
    "a",
    "that",
    "replica",
    "latency",
    "token",
    "is",
    "for",
    "decode",
    "with",
    "as",
    "on",
    "scheduler",
    "system",
    "please",
    "return",
    "function",
    "should",
    "answer",
    "user",
    "context",
    "when",
    "batch",
    "memory",
    "value",
    "error",
    "throughput",
    "attention",
    "because",
    "however",
    "large",
    "small",
    "first",
    "second",
    "result",
    "using",
    "example",
];
const ACCENTED: &[&str] = &["café", "naïve", "東京", "данные", "—", "“quoted”", "🚀", "größe", "résumé"];
const CODE: &[&str] = &[
    "def encode(self, x, y=\"default\"):\n",
    "    x[\"key\"] = compute(y, z) + 17\n",
    "        # the scheduler waits here until a block is free\n",
    "    return re.sub(r\"\\s+\\d\", \"\\t\", value)\n",
    "    for i in range(len(batch)): total += batch[i].weight * scale\n",
];

struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        usize::try_from((z ^ (z >> 31)) >> 33).unwrap_or(0) % limit
    }

    fn one_of(&mut self, words: &[&'static str]) -> &'static str {
        words[self.below(words.len())]
    }

    fn prose(&mut self, bytes: usize) -> String {
        let mut text = String::new();
        let mut column = 0;
        while text.len() < bytes {
            let word = if self.below(60) == 0 { self.one_of(ACCENTED) } else { self.one_of(WORDS) };
            text.push_str(word);
            column += word.len() + 1;
            if self.below(40) == 0 {
                text.push_str(" \"as noted\"");
            }
            if column > 90 {
                text.push_str(".\n");
                column = 0;
            } else {
                text.push(' ');
            }
        }
        text
    }

    fn code(&mut self, bytes: usize) -> String {
        let mut text = String::from("```python\n");
        while text.len() < bytes {
            text.push_str(self.one_of(CODE));
        }
        text.push_str("```\n");
        text
    }
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn tool(dice: &mut Dice, number: usize) -> String {
    format!(
        r#"{{"type":"function","function":{{"name":"tool_{number}","description":{},"parameters":{{"type":"object","properties":{{"query":{{"type":"string","description":"search text"}},"limit":{{"type":"integer","minimum":1,"maximum":100}},"filters":{{"type":"array","items":{{"type":"string","enum":["a","b","c"]}}}}}},"required":["query"],"additionalProperties":false}}}}}}"#,
        quoted(&dice.prose(160))
    )
}

/// An OpenAI chat body of about `bytes` bytes: a tool for each 4 KiB, a system message, then turns.
pub(crate) fn chat(bytes: usize, seed: u64) -> Vec<u8> {
    let mut dice = Dice(seed);
    let mut body = String::from(
        r#"{"model":"meta-llama/Llama-3.3-70B-Instruct","stream":true,"stream_options":{"include_usage":true},"temperature":0.7,"top_p":0.95,"max_tokens":1024,"user":"user-8f3a2b91","#,
    );
    let tools: Vec<String> = (0..(bytes / 4096).min(24)).map(|number| tool(&mut dice, number)).collect();
    if !tools.is_empty() {
        body.push_str(&format!(r#""tools":[{}],"tool_choice":"auto","#, tools.join(",")));
    }
    let system = dice.prose((bytes / 8).clamp(120, 6000));
    body.push_str(&format!(r#""messages":[{{"role":"system","content":{}}}"#, quoted(&system)));
    let tail = r#"],"nvext":{"priority":3,"session":"abc-123"},"cache_salt":"tenant-42","seed":42}"#;
    let most = if bytes <= 8192 { 300 } else { 1500 };
    let mut turn = 0;
    while body.len() + tail.len() + 100 < bytes {
        let size = most.min((bytes - body.len() - tail.len()).saturating_sub(60)).max(20);
        body.push_str(&match turn % 4 {
            0 => format!(r#",{{"role":"user","content":{}}}"#, quoted(&dice.prose(size))),
            1 => {
                let text = dice.prose(size / 2) + &dice.code(size / 2);
                format!(r#",{{"role":"assistant","content":{}}}"#, quoted(&text))
            }
            2 => format!(r#",{{"role":"user","content":[{{"type":"text","text":{}}}]}}"#, quoted(&dice.prose(size))),
            _ => format!(r#",{{"role":"assistant","content":{}}}"#, quoted(&dice.code(size))),
        });
        turn += 1;
    }
    body.push_str(tail);
    body.into_bytes()
}
