//! What each baseline does in a few situations, as one table: it changes only when a rule does.

use super::{build, sample};
use crate::config::PolicyConfig;

/// Of four replicas `a` to `d`: requests, tokens held of 1,000, tokens to prefill, tokens in use, share of the cache in use.
type Situation = (&'static str, [[f32; 5]; 4]);

const IDLE: [f32; 5] = [0.0; 5];
const SITUATIONS: [Situation; 8] = [
    ("1 idle and cold", [IDLE; 4]),
    ("2 b is warm", [IDLE, [0.0, 900.0, 0.0, 0.0, 0.1], IDLE, IDLE]),
    ("3 b is warm and has two requests", [IDLE, [2.0, 900.0, 0.0, 2000.0, 0.2], IDLE, IDLE]),
    (
        "4 b is warm and has three times as many requests as the others",
        [
            [4.0, 0.0, 0.0, 4000.0, 0.2],
            [12.0, 900.0, 3000.0, 12_000.0, 0.6],
            [3.0, 0.0, 500.0, 3000.0, 0.2],
            [4.0, 0.0, 0.0, 4000.0, 0.2],
        ],
    ),
    (
        "5 b is warm, a has 80 requests",
        [[80.0, 0.0, 0.0, 80_000.0, 0.9], [5.0, 900.0, 0.0, 5000.0, 0.3], IDLE, [1.0, 0.0, 0.0, 1000.0, 0.1]],
    ),
    (
        "6 b is warm and 20 s behind",
        [IDLE, [9.0, 900.0, 320_000.0, 330_000.0, 0.9], [1.0, 0.0, 0.0, 1000.0, 0.1], IDLE],
    ),
    (
        "7 b is warm, c less so and less busy",
        [IDLE, [4.0, 900.0, 0.0, 4000.0, 0.4], [1.0, 600.0, 0.0, 1000.0, 0.2], IDLE],
    ),
    (
        "8 cold, d has most requests and the emptiest cache",
        [
            [1.0, 0.0, 100.0, 1000.0, 0.5],
            [2.0, 0.0, 0.0, 2000.0, 0.5],
            [1.0, 0.0, 0.0, 3000.0, 0.4],
            [3.0, 0.0, 900.0, 3000.0, 0.1],
        ],
    ),
];

/// The replicas that are picked; in capitals those that are for more than two requests in five.
fn picks(spec: &str, rows: &[[f32; 5]; 4]) -> String {
    let column = |of: usize| rows.iter().map(|row| row[of]).collect::<Vec<f32>>();
    let mut view = sample::view(&column(0), &column(1));
    (view.prefill_tokens, view.context_tokens, view.kv_usage) = (column(2), column(3), column(4));
    view.resident_blocks = column(4).iter().map(|usage| usage * 6000.0).collect();
    let policy = build(&PolicyConfig::from_spec(spec).unwrap());
    let letter = |(letter, times): (char, u32)| match times {
        0 => None,
        1..=160 => Some(letter),
        _ => Some(letter.to_ascii_uppercase()),
    };
    ('a'..).zip(sample::picked(policy.as_ref(), &view)).filter_map(letter).collect()
}

#[test]
fn each_baseline_in_each_situation() {
    let specs = [
        "weighted",
        "weighted(prefix=3,queue=5)",
        "weighted(no_hit_lru=2)",
        "sticky_until_saturated",
        "least_request",
        "round_robin",
        "power_of_two",
        "sticky",
        "chwbl",
        "cache_aware",
        "spill_gate",
        "dynamo",
        "lmetric",
        "dualmap",
        "preble",
        "random",
    ];
    let mut table: String = SITUATIONS.iter().map(|(situation, _)| format!("{situation}\n")).collect();
    table.push_str(&format!("{:<27}", ""));
    (1..=SITUATIONS.len()).for_each(|number| table.push_str(&format!("{number:<5}")));
    for spec in specs {
        table.push_str(&format!("\n{spec:<27}"));
        SITUATIONS.iter().for_each(|(_, rows)| table.push_str(&format!("{:<5}", picks(spec, rows))));
    }
    let table: Vec<&str> = table.lines().map(str::trim_end).collect();
    insta::assert_snapshot!(table.join("\n"), @"
    1 idle and cold
    2 b is warm
    3 b is warm and has two requests
    4 b is warm and has three times as many requests as the others
    5 b is warm, a has 80 requests
    6 b is warm and 20 s behind
    7 b is warm, c less so and less busy
    8 cold, d has most requests and the emptiest cache
                               1    2    3    4    5    6    7    8
    weighted                   abcd B    B    C    B    AD   C    C
    weighted(prefix=3,queue=5) abcd B    acd  C    B    AD   C    C
    weighted(no_hit_lru=2)     A    B    B    C    B    AD   C    A
    sticky_until_saturated     abcd B    B    B    B    acd  B    BC
    least_request              abcd abcd acd  C    C    AD   AD   AC
    round_robin                abcd abcd abcd abcd abcd abcd abcd abcd
    power_of_two               abcd abcd acd  aCd  bCd  AcD  AcD  Abc
    sticky                     C    C    C    C    C    C    C    C
    chwbl                      B    B    B    A    B    A    A    A
    cache_aware                abcd B    B    B    C    B    B    D
    spill_gate                 abcd B    B    C    B    AD   B    C
    dynamo                     abcd B    acd  C    C    AD   AD   A
    lmetric                    abcd B    B    AD   B    AD   B    C
    dualmap                    B    B    B    B    B    A    B    B
    preble                     abcd B    B    B    B    B    B    abcd
    random                     abcd abcd abcd abcd abcd abcd abcd abcd
    ");
}
