//! The configuration as a whole: files that are right, files that are wrong, and files made up.

mod random;
mod wrong;

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::*;

fn conf(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("conf").join(name)).unwrap()
}

fn errors(text: &str) -> Vec<ConfigError> {
    parse(text).expect_err("the file should be refused")
}

/// Each error as `line:column path: message`.
fn shown(errors: &[ConfigError]) -> String {
    let line = |e: &ConfigError| format!("{}:{} {}: {}\n", e.line, e.column, e.path, e.message);
    errors.iter().map(line).collect()
}

fn flags(replicas: &[&str]) -> Flags {
    Flags { replicas: replicas.iter().map(ToString::to_string).collect(), ..Flags::default() }
}

#[test]
fn every_file_in_conf_resolves() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf");
    let mut seen = 0;
    for file in std::fs::read_dir(directory).unwrap() {
        let path = file.unwrap().path();
        // The agent's file has fields of its own, which its own tests read.
        let is_agents = path.file_name().is_some_and(|name| name == "agent.yaml");
        if !is_agents && path.extension().is_some_and(|extension| extension == "yaml") {
            let text = std::fs::read_to_string(&path).unwrap();
            let config = parse(&text).unwrap_or_else(|errors| panic!("{}:\n{}", path.display(), shown(&errors)));
            assert_eq!(parse(&to_yaml(&config)), Ok(config), "{}", path.display());
            assert!(text.starts_with("# yaml-language-server: $schema="), "{}", path.display());
            seen += 1;
        }
    }
    assert!(seen >= 2);
}

#[test]
fn a_few_lines_are_enough() {
    let text = conf("minimal.yaml");
    assert!(text.lines().count() <= 6);
    let config = parse(&text).unwrap();
    assert_eq!(config.replicas[0].id, "127.0.0.1:8000");
    assert_eq!(Config { replicas: Vec::new(), ..config }, Config::default());
}

#[test]
fn the_full_example_shows_the_defaults() {
    let config = parse(&conf("emberlane.yaml")).unwrap();
    let plain = parse("replicas: [{id: r2, url: 'http://10.0.0.2:8000'}]").unwrap();
    assert_eq!(config.replicas[1], plain.replicas[0]);
    assert_eq!(config.scrape, Some(ScrapeConfig::default()));
    let discovery = DiscoveryConfig { dns: Vec::new(), ..config.discovery };
    let config = Config { replicas: Vec::new(), models: Vec::new(), scrape: None, discovery, ..config };
    assert_eq!(config, Config::default());
}

/// Field names of every object in the schema: (path, names).
fn schema_fields(schema: &Value) -> Vec<(String, Vec<String>)> {
    fn visit(path: &str, node: &Value, root: &Value, found: &mut Vec<(String, Vec<String>)>) {
        if let Some(target) = node.get("$ref").and_then(Value::as_str) {
            visit(path, root.pointer(target.trim_start_matches('#')).unwrap(), root, found);
        }
        for choice in ["anyOf", "allOf"].iter().filter_map(|key| node.get(key)?.as_array()).flatten() {
            visit(path, choice, root, found);
        }
        if let Some(items) = node.get("items") {
            visit(&format!("{path}[]"), items, root, found);
        }
        if let Some(properties) = node.get("properties").and_then(Value::as_object) {
            found.push((path.to_owned(), properties.keys().cloned().collect()));
            for (name, property) in properties {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                visit(&path, property, root, found);
            }
        }
    }
    let mut found = Vec::new();
    visit("", schema, schema, &mut found);
    found
}

#[test]
fn the_full_example_shows_every_field() {
    fn visit(path: &str, node: &yaml::Node, found: &mut Vec<String>) {
        match &node.value {
            yaml::Value::Map(entries) => entries.iter().for_each(|entry| {
                let path = if path.is_empty() { entry.key.clone() } else { format!("{path}.{}", entry.key) };
                visit(&path, &entry.value, found);
                found.push(path);
            }),
            yaml::Value::List(items) => items.iter().for_each(|item| visit(&format!("{path}[]"), item, found)),
            yaml::Value::Null | yaml::Value::Scalar(_) => {}
        }
    }
    let gathered = error::Errors::default();
    let mut found = Vec::new();
    visit("", &yaml::read(&conf("emberlane.yaml"), &gathered).unwrap(), &mut found);
    for (section, names) in schema_fields(&schema()) {
        for name in names {
            let path = if section.is_empty() { name } else { format!("{section}.{name}") };
            assert!(found.contains(&path), "{path} is not in conf/emberlane.yaml");
        }
    }
}

#[test]
fn the_reader_and_the_schema_know_the_same_fields() {
    let sections = schema_fields(&schema());
    assert_eq!(sections.len(), 25);
    for (section, mut names) in sections {
        let wrong = "'@@': 1";
        let text = match section.as_str() {
            "" => wrong.to_owned(),
            policy if policy.starts_with("policy.") => {
                format!("policy: {{ {}: {{ {wrong} }} }}", policy.trim_start_matches("policy."))
            }
            "discovery.dns[]" => format!("discovery: {{ dns: [{{ {wrong} }}] }}"),
            list if list.ends_with("[]") => format!("{}: [{{ {wrong} }}]", list.trim_end_matches("[]")),
            map => format!("{map}: {{ {wrong} }}"),
        };
        let errors = errors(&text);
        let message = errors.iter().find_map(|error| error.message.strip_prefix("unknown field; known here: "));
        let mut known: Vec<&str> = message.unwrap_or_else(|| panic!("{}", shown(&errors))).split(", ").collect();
        known.sort_unstable();
        names.sort_unstable();
        assert_eq!(known, names, "{section}");
    }
}

#[test]
fn the_committed_schema_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/emberlane.schema.json");
    let current = format!("{:#}\n", schema());
    if std::env::var_os("EMBERLANE_WRITE_SCHEMA").is_some() {
        std::fs::write(&path, &current).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == current,
        "run EMBERLANE_WRITE_SCHEMA=1 cargo test --lib committed_schema, and commit the file"
    );
}

#[test]
fn names_in_the_schema_have_descriptions_and_defaults() {
    let schema = schema();
    assert_eq!(schema.pointer("/properties/listen/default/0"), Some(&Value::from("0.0.0.0:8080")));
    let policy = schema.pointer("/definitions/policy/properties").unwrap();
    assert_eq!(policy.pointer("/name/default"), Some(&Value::from("price")));
    assert!(policy.pointer("/eviction_weight/description").is_some());
    assert_eq!(schema.pointer("/additionalProperties"), Some(&Value::from(false)));
}

#[test]
fn values_may_be_written_in_several_ways() {
    let config = parse(
        "listen: ['[::1]:80', 10.0.0.1:80]\nadmin: off\nshards: 2\nprocess: {pid_file: /run/e.pid}\npolicy: sticky\n\
         defaults: \nreplicas: []\n"
            .replace("defaults: \n", "limits:\n")
            .as_str(),
    )
    .unwrap();
    assert_eq!((config.listen.len(), config.admin, config.shards), (2, None, Some(2)));
    assert_eq!(config.policy, PolicyConfig { name: PolicyName::Sticky, ..PolicyConfig::default() });
    assert_eq!(config.limits, LimitsConfig::default());
    let shared = parse("replicas:\n- &a {url: http://h:1, slots: 8, kv_tokens: 421k}\n- {url: http://h:2, models: &m [x, 7]}\n- {url: http://h:3, models: *m}\n").unwrap();
    assert_eq!(shared.replicas[0].kv_tokens, Some(421_000));
    assert_eq!(shared.replicas[2].models, ["x", "7"]);
}

#[test]
fn flags_stand_for_a_file_or_go_before_it() {
    let config = from_flags(&Flags {
        listen: vec!["127.0.0.1:7000".to_owned()],
        admin: Some("off".to_owned()),
        policy: Some(PolicyName::Random),
        ..flags(&["http://a:1", "http://b:1"])
    })
    .unwrap();
    assert_eq!((config.listen.len(), config.admin, config.replicas.len()), (1, None, 2));
    assert_eq!(config.policy.name, PolicyName::Random);

    let file = "admin: off\npolicy: { name: price, reuse_bonus: 2 }\n";
    let config = parse_with(file, &Flags { policy: Some(PolicyName::Weighted), ..flags(&["http://a:1"]) }).unwrap();
    assert_eq!((config.policy.name, config.admin), (PolicyName::Weighted, None));
    assert!((config.policy.reuse_bonus - 2.0).abs() < f64::EPSILON);
    assert_eq!(config.replicas[0].id, "a:1");

    let wrong = Flags { listen: vec!["nowhere".to_owned()], ..flags(&["http://a:1", "a:1", "http://a:1"]) };
    insta::assert_snapshot!(shown(&from_flags(&wrong).unwrap_err()), @r#"
    0:0 --listen[0]: expected an IP address and a port, such as 127.0.0.1:8080 or [::]:8080, found "nowhere"
    0:0 --replica[1]: expected a URL such as http://10.0.0.1:8000, found "a:1"; begin it with http://
    0:0 --replica[2]: the address a:1 is already that of `--replica[0]` on the command line
    "#);
    assert_eq!(shown(&from_flags(&Flags::default()).unwrap_err()).lines().count(), 1);
}

#[test]
fn the_load_plane_is_read_in_its_short_forms() {
    let config = parse(
        "beacons: {listen: '127.0.0.1:7400', keys: keys.txt, bypass: off}\nscrape: true\nhealth: {interval: 500ms}\n\
         warm_up: off\n\
         discovery: {dns: [engines:8000, _http._tcp.Engines., {name: e, models: [m]}], nameservers: '127.0.0.1:53', \
         beacons: true}\n",
    )
    .unwrap();
    assert_eq!((config.beacons.listen.len(), config.beacons.bypass), (1, Bypass::Off));
    assert_eq!((config.scrape, config.warm_up, config.replicas.len()), (Some(ScrapeConfig::default()), None, 0));
    assert_eq!(config.health.map(|health| health.timeout), Some(Duration::from_millis(500)), "never above `interval`");
    let names: Vec<String> = config.discovery.dns.iter().map(ToString::to_string).collect();
    assert_eq!(names, ["engines:8000", "_http._tcp.engines.", "e"]);
    assert_eq!((config.discovery.nameservers.len(), config.discovery.is_on()), (1, true));

    let flags = Flags {
        beacons: vec!["[::1]:7400".to_owned()],
        beacon_keys: Some("k".to_owned()),
        discovery_file: Some("replicas.yaml".to_owned()),
        dns: vec!["engines:8000".to_owned(), "engines:x".to_owned()],
        ..Flags::default()
    };
    assert_eq!(
        shown(&from_flags(&flags).unwrap_err()),
        "0:0 --dns[1]: \"x\" is no port (found \"engines:x\")\n",
        "no replica need be named beside"
    );
    let config = parse_with("beacons: {threads: 2}\n", &Flags { dns: vec!["e:1".to_owned()], ..flags }).unwrap();
    assert_eq!((config.beacons.threads, config.beacons.keys), (2, Some("k".into())));
    assert_eq!(config.discovery.file, Some("replicas.yaml".into()));
}

#[test]
fn a_file_of_replicas_has_the_form_of_the_configuration() {
    let list = parse_replicas("- http://h:1\n- {url: 'http://h:2', drain: true}\n").unwrap();
    assert_eq!((list.len(), list[1].drain), (2, true));
    assert_eq!(parse_replicas(r#"[{"url": "http://h:1", "models": ["m"]}]"#).unwrap()[0].models, ["m"]);
    assert_eq!(parse_replicas("[]"), Ok(Vec::new()));
    for (text, expected) in [
        ("", "1:1 : an empty file; write [] for no replicas"),
        ("replicas: []", "1:1 : expected a list of URLs"),
        ("- http://h:1\n- h:2", "2:3 [1]: expected a URL"),
        ("- {url: 'http://h:1', dran: true}", "1:23 [0].dran: unknown field; did you mean `drain`?"),
    ] {
        let found = shown(&parse_replicas(text).unwrap_err());
        assert!(found.contains(expected), "{text:?}\nexpected {expected}\nfound {found}");
    }
}

#[test]
fn the_largest_fleet_fits_and_one_more_does_not() {
    let file = |count: usize| {
        let replica = |n| {
            format!(
                "- {{ id: replica-{n}, url: \"http://10.1.{}.{}:8000\", models: [llama-3.1-70b-instruct], slots: 256, kv_tokens: 421k, prefill_tokens_per_s: 12000 }}\n",
                n / 256,
                n % 256
            )
        };
        format!("replicas:\n{}", (0..count).map(replica).collect::<String>())
    };
    let config = parse(&file(4096)).unwrap();
    assert_eq!(config.replicas.len(), 4096);
    assert_eq!(parse(&to_yaml(&config)), Ok(config), "the resolved form fits the bounds too");
    assert!(shown(&errors(&file(4097))).contains("4097 items; at most 4096 are allowed"));
}

#[test]
fn a_reload_tells_what_changed_in_words() {
    let old = parse("replicas: [{id: r1, url: 'http://a:1', slots: 8}, 'http://b:1', 'http://c:1']").unwrap();
    let new = parse(
        "listen: 0.0.0.0:81\nreplicas: [{id: r1, url: 'http://a:1', slots: 9}, 'http://c:1', {id: r3, url: 'http://d:1'}]\n\
         policy: weighted\nindex: {memory: 1GiB, kv_tokens_default: 1M}\nprocess: {drain: 1s}\n",
    )
    .unwrap();
    let changes: Vec<String> = diff(&old, &new).iter().map(ToString::to_string).collect();
    insta::assert_snapshot!(changes.join("\n"), @r"
    listen: [0.0.0.0:8080] → [0.0.0.0:81] (after a restart)
    process.drain: 30s → 1s (after a restart)
    replicas: removed b:1 (http://b:1)
    replicas.r1.slots: 8 → 9
    replicas: added r3 (http://d:1)
    policy.name: price → weighted
    index.memory: 64MiB → 1GiB (after a restart)
    index.kv_tokens_default: 400000 → 1000000
    ");
    let mut turned = old.clone();
    turned.replicas.reverse();
    assert_eq!(diff(&old, &turned)[0].to_string(), "replicas: one order → another order");
}

#[test]
fn policies_are_read_by_the_names_they_show() {
    for policy in PolicyName::ALL {
        assert_eq!(policy.as_str().parse(), Ok(policy));
        assert_eq!(parse(&format!("replicas: []\npolicy: {}", policy.as_str())).unwrap().policy.name, policy);
    }
}
