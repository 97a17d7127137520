//! Made-up text and made-up configurations: no panic, and nothing lost between writing and reading.

use std::time::Duration;

use super::*;

#[test]
fn any_text_is_an_answer() {
    bolero::check!().with_type::<Vec<u8>>().for_each(|bytes| {
        let _ = parse(&String::from_utf8_lossy(bytes));
    });
}

#[test]
fn a_file_cut_or_mangled_anywhere_is_an_answer() {
    let text = conf("emberlane.yaml");
    let bytes = text.as_bytes();
    bolero::check!().with_type::<(u16, u16, u8)>().for_each(|&(cut, place, byte)| {
        let mut mangled = bytes[usize::from(cut) % bytes.len()..].to_vec();
        let place = usize::from(place) % mangled.len();
        mangled[place] = byte;
        for error in parse(&String::from_utf8_lossy(&mangled)).err().into_iter().flatten() {
            assert!(!error.message.is_empty());
            assert!(usize::try_from(error.line).unwrap() <= text.lines().count() + 1);
        }
    });
}

const AWKWARD: [char; 24] = [
    'a', 'Z', '0', ' ', ':', '#', '"', '\\', '-', '\'', '{', '[', ',', '&', '*', '!', '%', '@', '~', 'é', '🔥',
    '\u{feff}', '\u{2028}', '|',
];
const AWKWARD_IDS: [&str; 8] = ["null", "1e3", "off", "true", "#x", "a:", "-", "'"];

fn text(r: &mut fastrand::Rng) -> String {
    (0..r.usize(1..12)).map(|_| AWKWARD[r.usize(..AWKWARD.len())]).collect()
}

fn span(r: &mut fastrand::Rng, low_ms: u64, high_ms: u64) -> Duration {
    Duration::from_micros(r.u64(low_ms * 1000..high_ms * 1000))
}

fn replica(r: &mut fastrand::Rng, n: usize) -> ReplicaConfig {
    let url: url::Url = format!("http://host{n}:{}", r.u16(1..)).parse().unwrap();
    let id = if r.bool() { endpoint(&url) } else { AWKWARD_IDS[n].to_owned() };
    ReplicaConfig {
        models: (0..r.usize(0..3)).map(|_| text(r)).collect(),
        slots: r.bool().then(|| r.u32(1..1000)),
        kv_tokens: r.bool().then(|| r.u64(1..1_000_000_000)),
        kv_block_tokens: r.bool().then(|| r.u32(1..1025)),
        host_kv_tokens: r.bool().then(|| r.u64(1..1_000_000_000)),
        restore_tokens_per_s: r.bool().then(|| f64::from(r.u32(1..1_000_000))),
        prefill_tokens_per_s: r.bool().then(|| 1.0 + r.f64() * 1e6),
        metrics: r.bool().then(|| format!("http://host{n}:{}/metrics?x={}", r.u16(1..), r.u8(..)).parse().unwrap()),
        drain: r.bool(),
        ..ReplicaConfig::new(id, url)
    }
}

fn policy(r: &mut fastrand::Rng) -> PolicyConfig {
    PolicyConfig {
        name: PolicyName::ALL[r.usize(..PolicyName::ALL.len())],
        weights: Weights { prefix: r.f64() * 10.0, queue: r.f64(), kv: 1.0, no_hit_lru: r.f64() },
        prefill_tokens_per_s: 1.0 + r.f64() * 1e5,
        reuse_bonus: r.f64(),
        eviction_weight: r.f64() * 9.0,
        answer_weight: r.f64(),
        decode_weight: r.f64(),
        wait: r.bool(),
        patience: r.f64() * 100.0,
        regeneration_max: 0.01 + r.f64(),
        sticky_until_saturated: StickyUntilSaturatedConfig {
            affinity: r.f64(),
            break_after: span(r, 0, 60_000),
            prefill_tokens_per_s: 1.0 + r.f64() * 1e5,
        },
        chwbl: ChwblConfig { load_factor: 1.0 + r.f64(), virtual_nodes: r.u16(1..=1024) },
        cache_aware: CacheAwareConfig {
            cache_threshold: r.f64(),
            balance_abs_threshold: r.u32(0..100),
            balance_rel_threshold: 1.0 + r.f64(),
        },
        spill_gate: SpillGateConfig {
            cache_threshold: r.f64(),
            ratio: 1.0 + r.f64(),
            margin_min: r.u32(0..10),
            margin_max: r.u32(10..100),
            request_tokens: r.f64() * 1e4,
            tokens_per_s: 1.0 + r.f64() * 1e4,
            kv_pressure: span(r, 0, 1000),
            warm_up_every: r.u32(0..10),
        },
        dynamo: DynamoConfig { overlap_score_credit: r.f64(), prefill_load_scale: r.f64() },
        dualmap: DualMapConfig { ttft_slo: span(r, 1, 60_000), virtual_nodes: r.u16(1..=1024) },
        preble: PrebleConfig { window: span(r, 1000, 600_000) },
    }
}

fn beacons(r: &mut fastrand::Rng) -> BeaconConfig {
    BeaconConfig {
        listen: (0..r.u16(1..4)).map(|n| SocketAddr::from(([239, 0, 0, 1], 7000 + n))).collect(),
        interface: r.bool().then(|| ["eth0", "true", "1e3", "a:b"][r.usize(0..4)].to_owned()),
        keys: Some(format!("/run/{}", text(r)).into()),
        clock_skew: span(r, 1, 60_000),
        threads: r.u16(1..=64),
        bypass: Bypass::ALL[r.usize(0..4)],
        busy_poll: r.bool(),
    }
}

fn discovery(r: &mut fastrand::Rng, beacons: &BeaconConfig) -> DiscoveryConfig {
    let dns = |r: &mut fastrand::Rng, n: usize| DnsConfig {
        name: ["e", "_http._tcp.x.internal.", "null", "1e3"][n].to_owned(),
        port: r.bool().then(|| r.u16(1..)),
        models: (0..r.usize(0..3)).map(|_| text(r)).collect(),
    };
    DiscoveryConfig {
        file: r.bool().then(|| format!("/etc/{}", text(r)).into()),
        dns: (0..r.usize(0..5)).map(|n| dns(r, n)).collect(),
        nameservers: (0..r.u8(0..3)).map(|n| SocketAddr::from(([127, 0, 0, n], 53))).collect(),
        beacons: beacons.keys.is_some() && !beacons.listen.is_empty() && r.bool(),
        expire: span(r, 1000, 60_000),
    }
}

fn health(r: &mut fastrand::Rng) -> HealthConfig {
    let interval = span(r, 10, 1000);
    let path = ["/health", "/", "/a?b=c,d:{}"][r.usize(0..3)].to_owned();
    HealthConfig { path, interval, timeout: span(r, 1, 10).min(interval), failures: r.u32(1..=1000) }
}

/// Any valid configuration, from a seed.
fn arbitrary(seed: u64) -> Config {
    let r = &mut fastrand::Rng::with_seed(seed);
    let replicas: Vec<ReplicaConfig> = (0..r.usize(0..5)).map(|n| replica(r, n)).collect();
    let served: Option<String> = replicas.iter().find_map(|replica| replica.models.first().cloned());
    let base = span(r, 1, 1000);
    let beacons = if r.bool() { beacons(r) } else { BeaconConfig::default() };
    Config {
        listen: (0..r.u16(1..4)).map(|n| SocketAddr::from(([10, 0, 0, 1], 1000 + n))).collect(),
        admin: r.bool().then(|| "[::1]:9090".parse().unwrap()),
        shards: r.bool().then(|| r.u16(1..=1024)),
        process: ProcessConfig {
            pid_file: r.bool().then(|| format!("/run/{}", text(r)).into()),
            upgrade_socket: r.bool().then(|| text(r).into()),
            drain: span(r, 0, 60_000),
        },
        replicas,
        models: served.map(|served_as| ModelConfig { name: text(r), served_as }).into_iter().collect(),
        policy: policy(r),
        index: IndexConfig {
            memory_mib: r.u32(1..=1 << 20),
            kv_tokens_default: r.u64(1..1_000_000_000),
            outputs: r.bool(),
        },
        limits: LimitsConfig {
            body_bytes: r.u64(1024..1 << 30),
            json_depth: r.u16(1..=1024),
            json_values: r.u32(1..=100_000_000),
            body_bytes_in_flight: r.u64(1 << 30..1 << 40),
            waiting: r.u32(0..100_000),
        },
        timeouts: TimeoutConfig {
            connect: span(r, 1, 1000),
            body: span(r, 1, 1000),
            wait: span(r, 1, 1_000_000),
            first_byte: span(r, 1, 1_000_000),
            gap: span(r, 1, 1000),
            upstream_idle: span(r, 1, 1000),
            client_idle: Duration::from_secs(r.u64(1..86_400)),
        },
        retry: RetryConfig { attempts: r.u8(1..=10), budget: r.f64(), budget_floor_per_s: r.f64() * 100.0 },
        ejection: EjectionConfig {
            consecutive_failures: r.u32(1..100),
            base,
            max: base + span(r, 0, 1000),
            max_percent: r.u8(0..=100),
        },
        log: LogConfig {
            format: LogFormat::ALL[r.usize(0..2)],
            level: ["info", "emberlane=debug", "warn,emberlane=trace"][r.usize(0..3)].to_owned(),
            access_sample: r.f64(),
        },
        passthrough: r.bool(),
        discovery: discovery(r, &beacons),
        beacons,
        scrape: r.bool().then(|| ScrapeConfig { interval: span(r, 10, 1000), path: "/metrics".to_owned() }),
        health: r.bool().then(|| health(r)),
        warm_up: r.bool().then(|| WarmUpConfig { share: (r.f64() + 0.001).min(1.0), time: span(r, 1, 1000) }),
    }
}

#[test]
fn what_check_prints_reads_back_the_same() {
    bolero::check!().with_type::<u64>().for_each(|&seed| {
        let config = arbitrary(seed);
        let printed = to_yaml(&config);
        match parse(&printed) {
            Ok(read) => assert_eq!(read, config),
            Err(errors) => panic!("{printed}\n{}", shown(&errors)),
        }
    });
}

#[test]
fn a_diff_is_empty_exactly_when_nothing_differs() {
    bolero::check!().with_type::<(u64, u64)>().for_each(|&(a, b)| {
        let (a, b) = (arbitrary(a), arbitrary(b));
        assert_eq!(diff(&a, &a), Vec::new());
        assert_eq!(diff(&a, &b).is_empty(), a == b);
    });
}
