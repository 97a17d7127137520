//! Readers: the shipped traces give the figures that are published of them, and no input is too strange.

use std::io::Write;

use super::super::{Facts, Pace, from_file};
use super::*;

fn shipped(name: &str) -> Workload {
    from_file(&Path::new(env!("CARGO_MANIFEST_DIR")).join("perf/traces").join(name)).unwrap()
}

fn text(text: &str) -> Result<Workload, TraceFault> {
    read(Path::new("dir/test.trace"), text.as_bytes(), Options::default())
}

fn told(input: &str) -> String {
    text(input).unwrap_err().to_string()
}

fn lengths(call: &Call) -> Vec<(u64, u32)> {
    call.prompt.iter().map(|segment| (segment.id, segment.tokens)).collect()
}

#[track_caller]
fn assert_near(found: f64, expected: f64, within: f64) {
    assert!((found - expected).abs() <= within, "{found}, not {expected}");
}

#[test]
fn mooncakes_conversations_are_as_published() {
    let workload = shipped("mooncake_conversation.jsonl.gz");
    let facts = workload.facts();
    assert_eq!((workload.pace, facts.calls, facts.scripts), (Pace::Timed, 12_031, 12_031));
    assert_near(facts.ideal_hit_rate, 0.374, 0.0005);
    assert_near(facts.span_s, 3537.0, 0.1);
    assert_near(facts.prompt_tokens_mean, 12_035.0, 1.0);
}

#[test]
fn agent_sessions_are_as_published() {
    let workload = shipped("agent_sessions.jsonl.gz");
    let facts = workload.facts();
    assert_eq!((workload.pace, facts.scripts, facts.calls), (Pace::Closed, 247, 12_449));
    assert_near(facts.prompt_tokens_mean, 77_990.5, 1.0);
    // The share of reused tokens that the file itself states: nothing is lost and nothing is won by cutting.
    assert_near(facts.ideal_hit_rate, 0.964_418_3, 1e-6);
    let segments: usize = workload.scripts.iter().flat_map(|script| &script.calls).map(|call| call.prompt.len()).sum();
    assert!(segments < 60 * facts.calls, "{segments} segments");
}

#[test]
fn azures_conversations_are_as_published() {
    let workload = shipped("azure_2023_conv.csv.gz");
    let Facts { calls, prompt_tokens_mean, output_tokens_mean, ideal_hit_rate, span_s, .. } = workload.facts();
    assert_eq!((workload.pace, calls), (Pace::Timed, 19_366));
    assert_near(prompt_tokens_mean, 1154.7, 0.1);
    assert_near(output_tokens_mean, 211.1, 0.1);
    assert_near(ideal_hit_rate, 0.0, 0.0);
    assert_near(span_s, 3501.72, 0.01);
}

#[test]
fn mooncakes_last_block_may_be_shorter() {
    let one = r#"{"timestamp": 1500, "input_length": 600, "output_length": 0, "hash_ids": [0, 9]}"#;
    let two = r#"{"timestamp": 500, "input_length": 1024, "output_length": 7, "hash_ids": [0, 9]}"#;
    let workload = text(&format!("{one}\n{two}\n")).unwrap();
    let [first, second] = [&workload.scripts[0], &workload.scripts[1]];
    assert_near(first.at_s, 0.5, 1e-9);
    assert_eq!(lengths(&first.calls[0]), [(1, 512), (3, 512)]);
    assert_eq!(lengths(&second.calls[0]), [(1, 512), (2, 88)]);
    assert_eq!(second.calls[0].output_tokens, 1);
    assert_eq!(workload.name, "test.trace");
}

#[test]
fn mooncakes_lines_that_contradict_themselves_or_others_are_refused() {
    let good = r#"{"timestamp": 0, "input_length": 600, "output_length": 1, "hash_ids": [1, 2]}"#;
    let place = "dir/test.trace:2: ";
    let second = |line: &str| told(&format!("{good}\n{line}"));
    let blocks = r#"{"timestamp": 0, "input_length": 512, "output_length": 1, "hash_ids": [1, 2]}"#;
    assert!(second(blocks).starts_with(&format!("{place}`input_length` 512 makes 1 blocks of 512, but")));
    let unchained = r#"{"timestamp": 0, "input_length": 600, "output_length": 1, "hash_ids": [3, 2]}"#;
    assert!(second(unchained).starts_with(&format!("{place}the block 2 follows another block here")));
    let late = r#"{"timestamp": -1, "input_length": 600, "output_length": 1, "hash_ids": [1, 2]}"#;
    assert!(second(late).starts_with(&format!("{place}the time -1 is not a number from 0 on")));
    assert!(second(r#"{"timestamp": 0}"#).starts_with(&format!("{place}column 16: missing field `input_length`; ")));
}

#[test]
fn sessions_are_cut_where_prompts_part() {
    // The second turn takes 80 of the first's 100 tokens, the third all of the second's 90, the fourth 60.
    let workload = text(r#"{"session_id": "a", "turns": [[100,5,0,0],[90,6,80,2],[95,7,90,3],[61,8,60,4]]}"#).unwrap();
    let calls = &workload.scripts[0].calls;
    assert_eq!(lengths(&calls[0]), [(1, 60), (2, 20), (3, 20)]);
    assert_eq!(lengths(&calls[1]), [(1, 60), (2, 20), (4, 10)]);
    assert_eq!(lengths(&calls[2]), [(1, 60), (2, 20), (4, 10), (5, 5)]);
    assert_eq!(lengths(&calls[3]), [(1, 60), (6, 1)]);
    assert_eq!((calls[0].after.len(), &calls[3].after[..]), (0, &[2][..]));
    assert_near(f64::from(calls[3].think_s), 4.0, 1e-6);
    assert!(calls.iter().all(|call| call.output == 0));
}

#[test]
fn a_session_may_go_on_from_an_output_or_from_an_older_turn() {
    // The second turn goes on from the first's answer; the fourth from the second, past a shorter third.
    let workload =
        text(r#"{"session_id": "a", "turns": [[100,20,0,0],[150,9,120,0],[10,9,0,0],[160,9,140,0],[112,9,110,0]]}"#);
    let workload = workload.unwrap();
    let calls = &workload.scripts[0].calls;
    assert_eq!(calls[0].output, 2);
    assert_eq!(lengths(&calls[1]), [(1, 100), (2, 20), (3, 20), (4, 10)]);
    assert_eq!(lengths(&calls[3]), [(1, 100), (2, 20), (3, 20), (6, 20)]);
    // An output is never cut: what ends within it takes only what is before it.
    assert_eq!(lengths(&calls[4]), [(1, 100), (7, 12)]);
}

#[test]
fn sessions_that_reuse_what_never_was_are_refused() {
    let turns = |turns: &str| told(&format!(r#"{{"session_id": "a", "turns": [{turns}]}}"#));
    let place = "dir/test.trace:1: ";
    assert_eq!(
        turns("[9,1,0,0],[20,1,11,0]"),
        format!("{place}turn 2 reuses 11 tokens, but no turn before it had as many")
    );
    assert_eq!(turns("[9,1,0,0],[8,1,9,0]"), format!("{place}turn 2 reuses 9 of 8 tokens; at most all of them can be"));
    assert!(turns("[0,1,0,0]").contains("a prompt of 0 tokens"));
    assert!(turns("[99999999,1,0,0]").contains("99999999 tokens; at most"));
    assert!(turns("[9,1,0,-1]").contains("the time -1"));
    assert!(turns("[9,1,0]").contains("expected {\"session_id\""));
}

#[test]
fn azures_columns_are_found_by_name_and_zones_are_read() {
    let input = "GeneratedTokens,TIMESTAMP,x,contexttokens\n5,2024-05-10T00:00:01.5Z,?,300\n\
                 6,2024-05-10 00:00:00.25+00:00,?,100\n";
    let options = Options { system_tokens: Some(100), ..Options::default() };
    let workload = read(Path::new("a.csv"), input.as_bytes(), options).unwrap();
    assert_eq!(lengths(&workload.scripts[0].calls[0]), [(2, 100)]);
    assert_eq!(lengths(&workload.scripts[1].calls[0]), [(1, 100), (3, 200)]);
    assert_eq!(workload.scripts[1].calls[0].output_tokens, 5);
    assert_near(workload.scripts[1].at_s, 1.25, 1e-9);
    assert!(told("TIMESTAMP,ContextTokens,GeneratedTokens\nx,1,1").contains(":2: expected `2023-11-16 "));
}

#[test]
fn what_is_no_trace_is_told_what_would_be() {
    assert_eq!(told(""), "dir/test.trace: no requests in it; expected a trace of at least one line");
    assert_eq!(told("\n \n"), told(""));
    assert_eq!(told("TIMESTAMP,ContextTokens,GeneratedTokens\n"), told(""));
    assert!(told("hello").starts_with("dir/test.trace:1: \"hello\" is the beginning of no known trace; known are "));
    let options = Options { block_tokens: Some(16), ..Options::default() };
    let fault = read(Path::new("a"), &br#"{"turns": []}"#[..], options).unwrap_err().to_string();
    assert_eq!(fault, "a: `block` means nothing for agent sessions; remove it");
}

#[test]
fn a_gzipped_file_that_was_cut_off_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let whole = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("perf/traces/agent_sessions.jsonl.gz"));
    let whole = whole.unwrap();
    for length in [3, 20, 5000, whole.len() - 4] {
        let path = directory.path().join("cut.gz");
        std::fs::File::create(&path).unwrap().write_all(&whole[..length]).unwrap();
        let fault = from_file(&path).unwrap_err().to_string();
        assert!(fault.contains("cut.gz:") && fault.contains("is the file complete?"), "{length}: {fault}");
    }
}

/// Each line of each format, cut off and changed at every place.
#[test]
fn nothing_that_is_cut_off_or_changed_is_too_strange() {
    let samples = [
        r#"{"timestamp": 0, "input_length": 600, "output_length": 1, "hash_ids": [1, 2]}"#,
        r#"{"session_id": "a", "turns": [[100,5,0,0],[90,6,80,2.5],[200,7,96,3]]}"#,
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44",
    ];
    for sample in samples {
        assert!(text(sample).is_ok(), "{sample}");
        for at in 0..sample.len() {
            drop(text(sample.get(..at).unwrap()));
            for byte in [b'9', b'-', b'"', b'}', 0xff] {
                let mut changed = sample.as_bytes().to_vec();
                changed[at] = byte;
                drop(read(Path::new("x"), &changed[..], Options::default()));
            }
        }
    }
}

#[test]
fn any_bytes_are_read_or_refused() {
    bolero::check!().for_each(|bytes: &[u8]| drop(read(Path::new("x"), bytes, Options::default())));
}

#[test]
fn any_session_keeps_what_it_says_of_lengths_and_reuse() {
    bolero::check!().with_type::<Vec<(u8, u8, u8)>>().for_each(|turns| {
        let mut longest = 0;
        let turns = turns.iter().map(|(input, output, reused)| {
            let input = u64::from(*input) + 1;
            let reused = u64::from(*reused).min(input).min(longest);
            longest = longest.max(input);
            format!("[{input},{output},{reused},0]")
        });
        let turns = turns.collect::<Vec<_>>().join(",");
        let Ok(workload) = text(&format!(r#"{{"session_id": "a", "turns": [{turns}]}}"#)) else {
            assert!(turns.is_empty());
            return;
        };
        let raw: Vec<[u32; 4]> = serde_json::from_str(&format!("[{turns}]")).unwrap();
        let mut seen = std::collections::HashMap::new();
        for (call, raw) in workload.scripts[0].calls.iter().zip(raw) {
            assert_eq!(call.prompt_tokens(), raw[0]);
            let mut parent = 0;
            for segment in &call.prompt {
                let known = *seen.entry(segment.id).or_insert((parent, segment.tokens));
                assert_eq!(known, (parent, segment.tokens));
                parent = segment.id;
            }
        }
        assert_eq!(workload.scripts[0].calls.len(), workload.facts().calls);
    });
}
