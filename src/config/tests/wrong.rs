//! Files that are wrong: every error at once, each at its place, whatever the size of the mess.

use super::*;

#[test]
fn all_errors_are_reported_at_once() {
    let text = "\
listen: [0.0.0.0:8080, localhost:81]
admin: 0.0.0.0:8080
replicas:
  - http://10.0.0.1:8000
  - https://10.0.0.2:8000
  - { url: \"http://10.0.0.1:8000/\", slots: 0 }
polcy: price
policy: { name: prise, weights: { prefix: 0, queue: 0, kv: 0 } }
timeouts:
  connect: 5
  body: 2 minutes
  gap: 120s
  gap: 60s
limits: 64MiB
log: { level: inof }
";
    insta::assert_snapshot!(shown(&errors(text)), @r#"
    1:24 listen[1]: expected an IP address and a port, such as 127.0.0.1:8080 or [::]:8080, found "localhost:81"; names are not looked up, write 127.0.0.1:81
    2:8 admin: 0.0.0.0:8080 is already taken by `listen[0]` at line 1
    5:5 replicas[1]: TLS to replicas is not supported yet; use http on a network you trust (found "https://10.0.0.2:8000")
    6:5 replicas[2]: the address 10.0.0.1:8000 is already that of `replicas[0]` at line 4
    6:44 replicas[2].slots: "0" is out of range: from 1 to 1000000
    7:1 polcy: unknown field; did you mean `policy`?
    8:17 policy.name: expected one of price, weighted, sticky_until_saturated, least_request, round_robin, power_of_two, sticky, chwbl, cache_aware, spill_gate, dynamo, lmetric, dualmap, preble, random, found "prise"; did you mean `price`?
    8:33 policy.weights: all weights are 0, so every replica would be the same; give one of them more
    10:12 timeouts.connect: expected a duration such as 250ms, 1s or 2m, found "5": the unit is missing; one of: us, ms, s, m, h
    11:9 timeouts.body: expected a duration such as 250ms, 1s or 2m, found "2 minutes": unknown unit; one of: us, ms, s, m, h
    13:3 timeouts.gap: given twice; the first is at line 12. Remove one
    14:9 limits: expected fields such as `body`, found "64MiB"
    15:15 log.level: expected a level (off, error, warn, info, debug, trace) or target=level, separated by commas, found "inof"; did you mean `info`?
    "#);
}

/// Whole files, and what one of their errors says.
const FILES: &[(&str, &str)] = &[
    ("", "1:1 replicas: missing; list the engines' URLs"),
    ("just text", "1:1 : expected fields such as `replicas:`, found \"just text\""),
    ("replicas: [\n", ": not valid YAML: "),
    ("replicas:\n\t- a", "not valid YAML: "),
    ("replicas: []\n---\nreplicas: []", "2:1 : a second YAML document"),
    (
        "replicas: [10.0.0.1:8000]",
        "1:12 replicas[0]: expected a URL such as http://10.0.0.1:8000, found \"10.0.0.1:8000\"; begin it",
    ),
    ("replicas:\n- http://u:p@h:1", "2:3 replicas[0]: user names and passwords"),
    ("replicas:\n- http://h:1/v1", "2:3 replicas[0]: a replica's URL ends after the port"),
    ("replicas:\n- http://h:0", "2:3 replicas[0]: port 0"),
    ("replicas:\n- http://h:1?x", "2:3 replicas[0]: a replica's URL has no query"),
    ("replicas:\n- http://:80", "2:3 replicas[0]: expected a URL"),
    ("replicas:\n- ftp://h:80", "2:3 replicas[0]: only http"),
    (
        "replicas:\n- http://h\n- http://h:80",
        "3:3 replicas[1]: the address h:80 is already that of `replicas[0]` at line 2",
    ),
    (
        "replicas:\n- {id: a, url: http://h:1}\n- {id: a, url: http://h:2}",
        "3:3 replicas[1]: the id \"a\" is already that of `replicas[0]` at line 2",
    ),
    ("replicas:\n- {id: 'a b', url: http://h:1}", "2:8 replicas[0].id: expected 1 to 128 visible ASCII"),
    ("replicas:\n- {id: a}", "2:3 replicas[0].url: missing; "),
    (
        "replicas:\n- {url: http://h:1, metrics: /m}",
        "replicas[0].metrics: expected a URL such as http://10.0.0.1:8001/m",
    ),
    ("replicas:\n- {url: http://h:1, drain: soon}", "replicas[0].drain: expected true or false, found \"soon\""),
    (
        "replicas:\n- {url: http://h:1, slots: -1}",
        "2:28 replicas[0].slots: expected a whole number, found \"-1\": must not be negative",
    ),
    ("replicas: &a [*a]", "1:15 replicas[0]: the alias stands inside what it refers to"),
    ("replicas: [*a]", "1:12 replicas[0]: the alias \"a\" has no anchor"),
    ("replicas: []\nreplicas: []", "2:1 replicas: given twice; the first is at line 1"),
    ("replicas: !x []", "replicas: YAML tags"),
    ("replicas: []\n<<: {}", "2:1 <<: merge keys"),
    ("replicas: []\n? [a]\n: b", "2:3 : a field's name is plain text"),
];

/// Lines after a good first one, and what their only error says.
const FIELDS: &[(&str, &str)] = &[
    ("listen: []", "2:9 listen: at least one address"),
    (
        "listen: :8080",
        "2:9 listen: expected an IP address and a port, such as 127.0.0.1:8080 or [::]:8080, found \":8080\"; for every interface write 0.0.0.0:8080",
    ),
    ("listen: 8080", "write 0.0.0.0:8080"),
    ("listen: 127.0.0.1:9090", "2:9 listen: 127.0.0.1:9090 is where `admin` listens by default"),
    ("listen: 1.1.1.1:1\nadmin: 0.0.0.0:1", "3:8 admin: 0.0.0.0:1 is already taken by `listen` at line 2"),
    ("admin: 127.0.0.1:8080", "2:8 admin: 127.0.0.1:8080 is already taken by `listen`, by default"),
    ("shards: 0", "2:9 shards: \"0\" is out of range: from 1 to 1024"),
    ("process: {pid_file: ''}", "2:21 process.pid_file: an empty path"),
    ("models: [{name: a}]", "2:10 models[0].served_as: missing"),
    (
        "models: [{name: a, served_as: b}, {name: a, served_as: c}]",
        "models[1]: the name \"a\" is already that of `models[0]` at line 2",
    ),
    ("policy: [price]", "2:9 policy: expected a policy's name, or fields such as `name`, found a list"),
    ("policy: least-request", "did you mean `least_request`?"),
    ("policy: {weights: {prefix: 0, queue: 0, kv: 0}}", "2:19 policy.weights: all weights are 0"),
    ("policy: {eviction_weight: 500}", "2:27 policy.eviction_weight: \"500\" is out of range: from 0 to 100"),
    ("policy: {reuse_bonus: .nan}", "2:23 policy.reuse_bonus: expected a number"),
    ("index: {memory: 64}", "2:17 index.memory: expected a size such as 64MiB, found \"64\": the unit is missing"),
    ("index: {memory: 1.5MiB}", "2:17 index.memory: must be a whole number of MiB"),
    ("index: {memory_mib: 64}", "2:9 index.memory_mib: unknown field; did you mean `memory`?"),
    ("limits: {bodies_in_flight: 1MiB}", "2:28 limits.bodies_in_flight: 1MiB is less than one `body` of 64MiB"),
    ("limits: {json_depth: 2000}", "2:22 limits.json_depth: \"2000\" is out of range: from 1 to 1024"),
    ("timeouts: {connect: 0s}", "2:21 timeouts.connect: \"0s\" is out of range: from 1ms to 24h"),
    ("retry: {attempts: 11}", "2:19 retry.attempts: \"11\" is out of range: from 1 to 10"),
    ("retry: {budget: 120%}", "2:17 retry.budget: \"120%\" is out of range: from 0 to 1 (0% to 100%)"),
    ("ejection: {base: 2m}", "2:11 ejection.max: 1m, the longest time out, is shorter than the first: `base` is 2m"),
    ("ejection: {max_percent: 0.5}", "2:25 ejection.max_percent: expected whole percent such as 50, found \"0.5\""),
    ("log: {level: inof}", "found \"inof\"; did you mean `info`?"),
    ("log: {level: 'emberlane=loud'}", "2:14 log.level: expected a level"),
    ("log: {format: xml}", "2:15 log.format: expected one of text, json, found \"xml\""),
    ("beacons: {listen: 7400}", "2:19 beacons.listen: expected an IP address and a port"),
    ("beacons: {listen: ['10.0.0.1:1', '10.0.0.1:1']}", "beacons.listen[1]: 10.0.0.1:1 is given twice"),
    ("beacons: {listen: '[ff02::1]:1'}", "an IPv6 multicast group is joined on one interface: name it in `interface`"),
    ("beacons: {interface: 'eth 0'}", "beacons.interface: expected the name of a network interface"),
    (
        "beacons: {bypass: nativ}",
        "beacons.bypass: expected one of auto, native, skb, off, found \"nativ\"; did you mean",
    ),
    ("beacons: {threads: 0}", "beacons.threads: \"0\" is out of range: from 1 to 64"),
    ("scrape: {path: metrics}", "2:16 scrape.path: expected a path such as /metrics"),
    ("scrape: {interval: 1ms}", "scrape.interval: \"1ms\" is out of range: from 10ms to 1m"),
    ("scrape: maybe", "2:9 scrape: expected `off`, `true`, or fields such as `interval`, found \"maybe\""),
    ("discovery: {beacons: true}", "2:22 discovery.beacons: replicas that register themselves need `beacons.listen`,"),
    (
        "beacons: {listen: '127.0.0.1:1'}\ndiscovery: {beacons: true}",
        "3:22 discovery.beacons: replicas that register themselves need `beacons.keys`, since only holders of a key",
    ),
    ("discovery: {dns: ['10.0.0.1:80']}", "discovery.dns[0]: \"10.0.0.1\" is an address, not a name; list it in"),
    ("discovery: {dns: [a..b]}", "discovery.dns[0]: expected a name such as engines.internal, found \"a..b\""),
    ("discovery: {dns: ['a:1', {name: a, port: 1}]}", "discovery.dns[1]: a:1 is already that of `discovery.dns[0]`"),
    ("discovery: {dns: [{port: 1}]}", "2:19 discovery.dns[0].name: missing; what to look up"),
    ("discovery: {expire: 1ms}", "discovery.expire: \"1ms\" is out of range: from 1s to 24h"),
    ("health: {interval: 1s, timeout: 2s}", "2:33 health.timeout: 2s is longer than the time between two checks"),
    ("health: {path: ''}", "health.path: expected a path such as /metrics"),
    ("warm_up: {share: 0}", "2:18 warm_up.share: a newcomer with no share would stay cold"),
    ("passthrough: maybe", "2:14 passthrough: expected true or false, found \"maybe\""),
];

#[test]
fn errors_point_at_their_line() {
    const OK: &str = "replicas: ['http://a:1']\n";
    for (text, expected) in FILES {
        let found = shown(&errors(text));
        assert!(found.contains(expected), "{text:?}\nexpected {expected}\nfound {found}");
    }
    for (text, expected) in FIELDS {
        let errors = errors(&format!("{OK}{text}"));
        assert_eq!(errors.len(), 1, "{text}: {}", shown(&errors));
        assert!(shown(&errors).contains(expected), "{text:?}\nexpected {expected}\nfound {}", shown(&errors));
    }
}

#[test]
fn a_name_that_no_replica_lists_cannot_be_served() {
    let listed = "replicas: [{url: 'http://h:1', models: [llama]}]\nmodels: [{name: gpt-4o, served_as: lama}]";
    assert_eq!(shown(&errors(listed)), "2:10 models[0]: no replica lists \"lama\" among its models\n");
    assert!(parse(&listed.replace("models: [llama]", "models: []")).is_ok(), "it may turn out to serve that");
}

#[test]
fn a_small_file_cannot_unfold_into_a_large_one() {
    let mut text = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
    for level in 1..10 {
        let aliases = vec![format!("*a{}", level - 1); 10].join(",");
        text.push_str(&format!("a{level}: &a{level} [{aliases}]\n"));
    }
    assert!(shown(&errors(&text)).contains("too much: aliases unfolded"));
    let wide = format!("a: &a {}\nb: [{}]", "x".repeat(500_000), vec!["*a"; 1000].join(","));
    assert!(shown(&errors(&wide)).contains("too much: aliases unfolded"));
    assert!(shown(&errors(&"[".repeat(100_000))).contains("not valid YAML"));
    assert!(shown(&errors(&"- ".repeat(100_000))).contains("not valid YAML"));
    assert!(shown(&errors(&" ".repeat(TEXT_BYTES_MAX + 1))).contains("at most 2097152 are read"));
    let mut chain = String::from("a0: &a0 [x]\n");
    (1..40).for_each(|level| chain.push_str(&format!("a{level}: &a{level} [*a{}]\n", level - 1)));
    assert!(shown(&errors(&chain)).contains("nested more than 24 levels deep"));
}

#[test]
fn a_file_full_of_errors_is_answered_in_bounds() {
    let text: String = (0..50_000).map(|n| format!("k{n}: 1\n")).collect();
    let errors = errors(&text);
    assert_eq!(errors.len(), 101);
    assert_eq!(errors[100].message, "and 49901 more errors");
}
