//! Generators: what holds of all of them, and what each is for.

use std::collections::HashMap;

use super::super::{Source, Workload, by_name};
use super::*;

fn made(spec: &str) -> Workload {
    by_name(spec, 1).unwrap()
}

/// What every workload promises.
#[track_caller]
fn assert_sound(workload: &Workload) {
    assert!(!workload.scripts.is_empty() && !workload.classes.is_empty());
    let mut known: HashMap<u64, (u64, u32)> = HashMap::new();
    let mut learn = |id: u64, parent: u64, tokens: u32| {
        assert!(id != 0 && tokens > 0);
        assert_eq!(*known.entry(id).or_insert((parent, tokens)), (parent, tokens), "segment {id}");
    };
    let times = workload.scripts.iter().map(|script| script.at_s);
    assert!(times.clone().zip(times.skip(1)).all(|(a, b)| 0.0 <= a && a <= b));
    for script in &workload.scripts {
        assert!(!script.calls.is_empty());
        for (place, call) in script.calls.iter().enumerate() {
            assert!(!call.prompt.is_empty() && call.output_tokens > 0 && call.think_s >= 0.0);
            assert!(usize::from(call.class) < workload.classes.len());
            assert!(call.after.iter().all(|before| usize::try_from(*before).unwrap() < place));
            let mut parent = 0;
            for segment in &call.prompt {
                learn(segment.id, parent, segment.tokens);
                parent = segment.id;
            }
            if call.output != 0 {
                learn(call.output, parent, call.output_tokens);
            }
        }
    }
}

#[test]
fn all_are_sound_and_the_same_for_the_same_seed() {
    for name in NAMES {
        let source = Source::open(&format!("generate:{name},duration=60")).unwrap();
        let workload = source.workload(5);
        assert_sound(&workload);
        assert_eq!(workload, source.workload(5), "{name}");
        assert_ne!(workload, source.workload(6), "{name}");
        assert_eq!(workload.name, name);
        let last_s = workload.scripts.last().unwrap().at_s;
        assert!((40.0..60.0).contains(&last_s), "{name}: {last_s}");
    }
}

#[test]
fn groups_share_prefixes_and_nothing_else() {
    let workload = made("generate:groups,groups=150,prefix=6000,question=300,output=200,rate=8,duration=2000");
    let facts = workload.facts();
    assert!((facts.calls as f64 / 16_000.0 - 1.0).abs() < 0.05, "{facts:?}");
    assert!((facts.prompt_tokens_mean / 6300.0 - 1.0).abs() < 0.02, "{facts:?}");
    assert!((facts.output_tokens_mean / 200.0 - 1.0).abs() < 0.05, "{facts:?}");
    assert!((facts.ideal_hit_rate - 6000.0 / 6300.0).abs() < 0.02, "{facts:?}");
}

#[test]
fn chat_has_long_and_short_conversations_that_go_on_from_outputs() {
    let workload = made("generate:chat,duration=600");
    let facts = workload.facts();
    let calls: Vec<&Call> = workload.scripts.iter().flat_map(|script| &script.calls).collect();
    let long = calls.iter().filter(|call| call.class == 1).count();
    assert!((long as f64 / calls.len() as f64 - 0.1).abs() < 0.02, "{long} of {}", calls.len());
    assert!((facts.calls as f64 / facts.scripts as f64 - 3.0).abs() < 0.1, "{facts:?}");
    assert!((2200.0..2800.0).contains(&facts.prompt_tokens_mean), "{facts:?}");
    assert!(calls.iter().filter(|call| call.class == 1).all(|call| call.prompt_tokens() >= 8000));
    let script = workload.scripts.iter().find(|script| script.calls.len() > 1).unwrap();
    let [first, second] = [&script.calls[0], &script.calls[1]];
    assert_eq!(second.prompt[..first.prompt.len()], first.prompt[..]);
    assert_eq!(second.prompt[first.prompt.len()], Segment { id: first.output, tokens: first.output_tokens });
    assert_eq!(second.after[..], [0]);
    assert!(second.think_s > 0.0);
}

#[test]
fn the_hot_prefix_is_asked_for_twenty_times_as_often_in_its_window() {
    let workload = made("generate:hot,duration=1800");
    let hot = |from_s: f64, until_s: f64| {
        let within = workload.scripts.iter().filter(|script| (from_s..until_s).contains(&script.at_s));
        within.filter(|script| script.calls[0].class == 1).count() as f64 / (until_s - from_s)
    };
    let (before, within, after) = (hot(0.0, 600.0), hot(600.0, 1200.0), hot(1200.0, 1800.0));
    assert!((before - 1.0).abs() < 0.15 && (after - 1.0).abs() < 0.15, "{before} {after}");
    assert!((within / 20.0 - 1.0).abs() < 0.1, "{within}");
    let mut prefixes: Vec<u64> =
        workload.scripts.iter().filter(|s| s.calls[0].class == 1).map(|s| s.calls[0].prompt[0].id).collect();
    prefixes.dedup();
    assert_eq!(prefixes.len(), 1);
}

#[test]
fn tenants_are_unequal_and_each_has_its_prompt() {
    let workload = made("generate:tenants,duration=600");
    let mut requests = HashMap::<u16, u32>::new();
    let mut systems = HashMap::<u16, u64>::new();
    for call in workload.scripts.iter().map(|script| &script.calls[0]) {
        *requests.entry(call.tenant).or_default() += 1;
        assert_eq!(*systems.entry(call.tenant).or_insert(call.prompt[0].id), call.prompt[0].id);
    }
    let share = f64::from(requests[&0]) / workload.scripts.len() as f64;
    assert!((0.17..0.27).contains(&share), "{share}");
    assert!(requests.len() > 150);
}

#[test]
fn workflows_fan_out_and_join() {
    let workload = made("generate:workflows,duration=600,rounds=2,fan=4");
    for script in &workload.scripts {
        let classes: Vec<u8> = script.calls.iter().map(|call| call.class).collect();
        assert_eq!(classes.iter().filter(|class| **class == 0).count(), 2);
        assert_eq!(classes.iter().filter(|class| **class == 2).count(), 2);
        for (place, call) in script.calls.iter().enumerate().filter(|(_, call)| call.class == 2) {
            let steps = call.after.len();
            assert!((2..=6).contains(&steps), "{steps}");
            let plan = &script.calls[place - steps - 1];
            assert_eq!(plan.class, 0);
            for step in &script.calls[place - steps..place] {
                assert_eq!(step.prompt[..plan.prompt.len()], plan.prompt[..]);
                assert_eq!(step.prompt[plan.prompt.len()].id, plan.output);
            }
            assert_eq!(call.prompt[plan.prompt.len()].id, plan.output);
        }
        let second = script.calls.iter().rposition(|call| call.class == 0).unwrap();
        assert_eq!(usize::try_from(script.calls[second].after[0]).unwrap(), second - 1);
    }
    let facts = made("generate:workflows,duration=600").facts();
    assert!((17.0..19.0).contains(&(facts.calls as f64 / facts.scripts as f64)), "{facts:?}");
    assert!(facts.ideal_hit_rate > 0.85, "{facts:?}");
}

#[test]
fn what_cannot_be_made_is_refused() {
    let told = |spec: &str| Source::open(spec).unwrap_err().to_string();
    assert!(told("generate:chat,long_from=9000,long_to=8000").contains("long_from must be less than long_to"));
    assert!(told("generate:hot,from=5,until=5").contains("from must be less than until"));
    assert!(told("generate:groups,rate=100000,duration=604800").contains("calls; at most"));
    assert!(told("generate:groups,rate=0").contains("rate=\"0\": expected a number from 0.001 to 100000"));
    assert!(told("generate:tenants,tenants=70000").contains("from 1 to 65535"));
}

#[test]
fn any_arguments_are_read_or_refused() {
    bolero::check!().for_each(|bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes);
        for name in NAMES {
            drop(Source::open(&format!("generate:{name},{text}")));
        }
        drop(Source::open(&format!("generate:{text}")));
    });
}
