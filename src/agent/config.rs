//! The agent's settings: a file (`conf/agent.yaml` shows every field), flags, or both, of which flags go first. Read by
//! the same code as the gateway's configuration: unknown fields are errors, and all errors are told at once.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use url::Url;

use crate::config::ConfigError;
use crate::config::error::Errors;
use crate::config::flags::{list, put};
use crate::config::read::{Field, Section};
use crate::config::yaml::{self, Mark, Node, Value};
use crate::engine::{CustomNames, Engine};

/// Most gateways.
const GATEWAYS_MAX: usize = 64;
/// Most publishers of KV events: one for each data-parallel rank.
const KV_EVENTS_MAX: usize = 64;
/// Most labels.
const LABELS_MAX: usize = 16;
/// Longest id and label.
const TEXT_BYTES_MAX: usize = 128;

/// All an agent needs to know.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// Whose page it reads.
    pub engine: Engine,
    /// A user's names, for [`Engine::Custom`].
    pub custom: CustomNames,
    /// The page.
    pub metrics: Url,
    /// Where `/v1/models` and `/props` are asked for.
    pub api: Url,
    /// Where gateways reach the replica.
    pub replica_url: Url,
    /// The id it has in gateways' configuration; `None`: `host:port` of `replica_url`.
    pub id: Option<String>,
    /// Where beacons go.
    pub gateways: Vec<GatewayAddress>,
    /// From one look at the page to the next.
    pub period: Duration,
    /// The keys that sign beacons.
    pub key_file: Option<PathBuf>,
    /// The interface multicast leaves by: its name or an address of it.
    pub interface: Option<String>,
    /// Routers that multicast may pass.
    pub ttl: u8,
    /// Publishers of KV events, ZeroMQ endpoints.
    pub kv_events: Vec<String>,
    /// Labels for people.
    pub labels: Vec<(String, String)>,
}

impl AgentConfig {
    /// What the sender's id is made of: the configured id, or `host:port`, as [`crate::wire::beacon::SenderId::of`] asks.
    #[must_use]
    pub fn sender_text(&self) -> String {
        self.id.clone().unwrap_or_else(|| super::http::peer(&self.replica_url).to_ascii_lowercase())
    }
}

/// Where a gateway hears beacons.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GatewayAddress {
    /// An address, or a multicast group.
    Address(SocketAddr),
    /// `host:port`: looked up again now and then; every address of it gets each beacon.
    Name(String),
}

impl std::fmt::Display for GatewayAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// What the command line says; each stands for a field of the file.
#[derive(Clone, Debug, Default)]
pub struct AgentFlags {
    /// `--engine`.
    pub engine: Option<String>,
    /// `--metrics`.
    pub metrics: Option<String>,
    /// `--api`.
    pub api: Option<String>,
    /// `--replica-url`.
    pub replica_url: Option<String>,
    /// `--id`.
    pub id: Option<String>,
    /// `--gateway`, those between commas apart.
    pub gateways: Vec<String>,
    /// `--hz`.
    pub hz: Option<String>,
    /// `--key-file`.
    pub key_file: Option<String>,
    /// `--interface`.
    pub interface: Option<String>,
    /// `--ttl`.
    pub ttl: Option<String>,
    /// `--kv-events`.
    pub kv_events: Vec<String>,
    /// `--label`.
    pub labels: Vec<String>,
}

impl AgentFlags {
    fn apply(&self, root: &mut Node) {
        for (key, label, value) in [
            ("engine", "--engine", &self.engine),
            ("metrics", "--metrics", &self.metrics),
            ("api", "--api", &self.api),
            ("replica_url", "--replica-url", &self.replica_url),
            ("id", "--id", &self.id),
            ("hz", "--hz", &self.hz),
            ("key_file", "--key-file", &self.key_file),
            ("interface", "--interface", &self.interface),
            ("ttl", "--ttl", &self.ttl),
        ] {
            if let Some(value) = value {
                put(root, key, label, Value::Scalar(value.clone()));
            }
        }
        for (key, label, values) in [
            ("gateways", "--gateway", &self.gateways),
            ("kv_events", "--kv-events", &self.kv_events),
            ("labels", "--label", &self.labels),
        ] {
            if !values.is_empty() {
                put(root, key, label, list(values));
            }
        }
    }
}

/// Reads the text of a file, if there is one, and the flags.
///
/// # Errors
/// Everything that is wrong with either; errors in flags have line 0 and the flag's name as path.
pub fn parse(text: Option<&str>, flags: &AgentFlags) -> Result<AgentConfig, Vec<ConfigError>> {
    let errors = Errors::default();
    let root = match text {
        Some(text) => yaml::read(text, &errors),
        None => Some(Node { mark: Mark::FLAG, value: Value::Map(Vec::new()) }),
    };
    let config = root.and_then(|mut root| {
        flags.apply(&mut root);
        resolve(&root, &errors)
    });
    match (config, errors.into_list()) {
        (Some(config), None) => Ok(config),
        (_, errors) => Err(errors.unwrap_or_default()),
    }
}

fn resolve(root: &Node, errors: &Errors) -> Option<AgentConfig> {
    let mut file = Section::root(root, errors)?;
    let engines = Engine::ALL.map(|engine| (engine.as_str(), engine));
    let engine = file.read("engine", Engine::Auto, |field| field.choice(&engines));
    let custom = file.get("custom").map(|field| custom(&field).unwrap_or_default());
    if engine == Engine::Custom && custom.is_none() {
        file.missing("custom", "map the names of your engine's metrics, such as `custom: { running: my_running, .. }`");
    }
    if engine != Engine::Custom && custom.is_some() {
        file.fail_at("custom", "is for `engine: custom` only");
    }
    let metrics = needed(
        &mut file,
        "metrics",
        "--metrics",
        "the engine's page, such as http://127.0.0.1:8000/metrics",
        |field| url(field, Path::Any),
    );
    let api = file.read("api", None, |field| url(field, Path::None).map(Some));
    let replica_url = needed(
        &mut file,
        "replica_url",
        "--replica-url",
        "where gateways reach it, such as http://10.0.0.1:8000",
        |field| url(field, Path::None),
    );
    let gateways = needed(&mut file, "gateways", "--gateway", "where beacons go, such as 10.0.0.9:7946", gateways);
    let hz = file.read("hz", 20.0, |field| field.number(0.1..=1_000.0));
    let config = AgentConfig {
        engine,
        custom: custom.unwrap_or_default(),
        id: file.read("id", None, |field| text(field, "an id").map(Some)),
        period: Duration::from_secs_f64(1.0 / hz),
        key_file: file.read("key_file", None, |field| text(field, "a path").map(|path| Some(PathBuf::from(path)))),
        interface: file.read("interface", None, |field| text(field, "an interface such as eth0").map(Some)),
        ttl: file.read("ttl", 1, |field| field.count(0..=255_u32).and_then(|ttl| u8::try_from(ttl).ok())),
        kv_events: file.read("kv_events", Vec::new(), endpoints),
        labels: file.read("labels", Vec::new(), labels),
        gateways: gateways.unwrap_or_default(),
        // Never used when missing: a file with errors gives no configuration.
        api: api.or_else(|| metrics.clone()).or_else(|| Url::parse("http://127.0.0.1").ok())?,
        metrics: metrics.or_else(|| Url::parse("http://127.0.0.1").ok())?,
        replica_url: replica_url.or_else(|| Url::parse("http://127.0.0.1").ok())?,
    };
    file.finish();
    Some(config)
}

/// A field that must be there.
fn needed<'a, T>(
    file: &mut Section<'a>,
    name: &'static str,
    flag: &str,
    what: &str,
    read: impl FnOnce(&Field<'a>) -> Option<T>,
) -> Option<T> {
    match file.get(name) {
        Some(field) => read(&field),
        None => {
            file.missing(name, &format!("give it in the file or as {flag}: {what}"));
            None
        }
    }
}

fn text(field: &Field<'_>, what: &str) -> Option<String> {
    let text = field.text(what)?;
    if text.is_empty() || text.len() > 4096 || text.contains(char::is_control) {
        return field.fail(format!("expected {what} of 1 to 4096 characters"));
    }
    Some(text.to_owned())
}

/// Whether a URL may have a path.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Path {
    Any,
    None,
}

fn url(field: &Field<'_>, path: Path) -> Option<Url> {
    let text = field.text("a URL such as http://127.0.0.1:8000")?;
    let url = match Url::parse(text) {
        Ok(url) => url,
        Err(reason) if !text.contains("://") => return field.fail(format!("begin it with http:// ({reason})")),
        Err(reason) => return field.fail(format!("not a URL: {reason}")),
    };
    let wrong = match url.scheme() {
        "http" if !url.username().is_empty() || url.password().is_some() => "user names and passwords are not sent",
        "http" if url.fragment().is_some() => "there is no use for a fragment",
        "http" if path == Path::None && (url.path() != "/" || url.query().is_some()) => "it ends after the port",
        "http" if url.port() == Some(0) => "port 0 cannot be connected to",
        "http" if url.host_str().is_none_or(|host| host.len() > 100) => "a host of 1 to 100 characters is needed",
        "http" => return Some(url),
        "https" => "only plain http:// is spoken here: the agent runs beside its engine and reads it on loopback",
        _ => "begin it with http://",
    };
    field.fail(wrong)
}

fn gateways(field: &Field<'_>) -> Option<Vec<GatewayAddress>> {
    let items = field.one_or_more(GATEWAYS_MAX, "an address such as 10.0.0.9:7946, or a list of them")?;
    if items.is_empty() {
        return field.fail("at least one gateway is needed");
    }
    items.iter().map(gateway).collect()
}

fn gateway(field: &Field<'_>) -> Option<GatewayAddress> {
    const WHAT: &str = "expected an address or a name with a port, such as 10.0.0.9:7946 or gateways.internal:7946";
    let text = field.text("an address such as 10.0.0.9:7946")?;
    if let Ok(address) = text.parse::<SocketAddr>() {
        let is_whole = address.port() != 0 && !address.ip().is_unspecified();
        return if is_whole { Some(GatewayAddress::Address(address)) } else { field.fail(WHAT) };
    }
    let is_name = |name: &str| {
        let allowed = |char: char| char.is_ascii_alphanumeric() || matches!(char, '-' | '.' | '_');
        (1..=253).contains(&name.len()) && name.chars().all(allowed) && name.parse::<IpAddr>().is_err()
    };
    match text.rsplit_once(':') {
        Some((name, port)) if is_name(name) && port.parse::<u16>().is_ok_and(|port| port > 0) => {
            Some(GatewayAddress::Name(text.to_owned()))
        }
        _ => field.fail(WHAT),
    }
}

fn endpoints(field: &Field<'_>) -> Option<Vec<String>> {
    let items = field.one_or_more(KV_EVENTS_MAX, "an endpoint such as tcp://127.0.0.1:5557, or a list of them")?;
    items.iter().map(endpoint).collect()
}

fn endpoint(field: &Field<'_>) -> Option<String> {
    let text = field.text("an endpoint such as tcp://127.0.0.1:5557")?;
    let is_endpoint = text.strip_prefix("tcp://").and_then(|rest| rest.rsplit_once(':')).is_some_and(|(host, port)| {
        !host.is_empty() && host.len() <= 253 && port.parse::<u16>().is_ok_and(|port| port > 0)
    });
    match is_endpoint {
        true => Some(text.to_owned()),
        false => field.fail(
            "expected a ZeroMQ endpoint such as tcp://127.0.0.1:5557, or tcp://*:5557 for an engine that connects to it",
        ),
    }
}

fn labels(field: &Field<'_>) -> Option<Vec<(String, String)>> {
    let items = field.items(LABELS_MAX, "a list of labels such as [zone=a, rack=7]")?;
    items
        .iter()
        .map(|item| {
            let text = item.text("a label such as zone=a")?;
            match text.split_once('=') {
                Some((key, value))
                    if !key.is_empty() && text.len() <= TEXT_BYTES_MAX && !text.contains(char::is_control) =>
                {
                    Some((key.to_owned(), value.to_owned()))
                }
                _ => item.fail(format!("expected a label such as zone=a, of at most {TEXT_BYTES_MAX} bytes")),
            }
        })
        .collect()
}

fn custom(field: &Field<'_>) -> Option<CustomNames> {
    let mut section = field.section("names of metrics, such as `running: my_running`")?;
    let mut names = CustomNames::default();
    for name in CustomNames::fields() {
        let Some(field) = section.get(name) else { continue };
        for item in field.one_or_more(8, "the name of a metric, or a list of names")? {
            let metric = item.text("the name of a metric")?;
            if let Err(fault) = names.map(name, metric) {
                item.fail::<()>(fault.to_string());
            }
        }
    }
    for name in ["running", "waiting"].into_iter().filter(|name| !names.has(name)) {
        section.missing(name, "an engine's load is not known without");
    }
    section.finish();
    Some(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(text: &str) -> Vec<String> {
        parse(Some(text), &AgentFlags::default()).unwrap_err().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_example_is_whole_and_right() {
        let text = include_str!("../../conf/agent.yaml");
        let config = parse(Some(text), &AgentFlags::default()).unwrap();
        assert_eq!((config.engine, config.period), (Engine::Auto, Duration::from_millis(50)));
        assert_eq!(config.sender_text(), "10.0.0.1:8000");
        for field in CustomNames::fields().chain(["kv_events", "interface", "ttl", "labels", "key_file", "id", "api"]) {
            assert!(text.contains(&format!("{field}:")), "conf/agent.yaml does not show {field}");
        }
    }

    #[test]
    fn flags_are_enough_and_go_before_the_file() {
        let flags = AgentFlags {
            metrics: Some("http://127.0.0.1:8000/metrics".to_owned()),
            replica_url: Some("http://Replica-1:8000".to_owned()),
            gateways: vec!["10.0.0.9:7946".to_owned(), "gateways.internal:7946".to_owned()],
            hz: Some("50".to_owned()),
            ..AgentFlags::default()
        };
        let config = parse(None, &flags).unwrap();
        assert_eq!(config.period, Duration::from_millis(20));
        assert_eq!(config.sender_text(), "replica-1:8000");
        assert_eq!(config.gateways[1], GatewayAddress::Name("gateways.internal:7946".to_owned()));
        let config = parse(Some("hz: 5\nid: r7\nengine: sglang\n"), &flags).unwrap();
        assert_eq!((config.period, config.engine), (Duration::from_millis(20), Engine::Sglang));
        assert_eq!(config.sender_text(), "r7");
    }

    #[test]
    fn all_that_is_wrong_is_told_at_once() {
        let text = "engine: vlm\nmetrics: https://127.0.0.1/metrics\nreplica_url: 10.0.0.1:8000\ngateways: [nowhere]\n\
                    hz: 0\nkv_events: 5557\nlabels: [zone]\nhertz: 5\n";
        let wrong = wrong(text);
        assert_eq!(wrong.len(), 8, "{wrong:#?}");
        assert!(wrong[0].starts_with("line 1: engine: ") && wrong[0].contains("did you mean `vllm`"), "{wrong:#?}");
        assert!(wrong[1].contains("only plain http://"), "{wrong:#?}");
        assert!(wrong[7].contains("unknown field"), "{wrong:#?}");
        let missing = parse(None, &AgentFlags::default()).unwrap_err();
        assert_eq!(missing.len(), 3, "{missing:#?}");
    }

    #[test]
    fn custom_names_need_both_counts() {
        let rest = "metrics: http://a/b\nreplica_url: http://a\ngateways: a:1\n";
        let config = format!("engine: custom\ncustom: {{ running: r, waiting: ['q{{s=x}}', q], kv_usage: u }}\n{rest}");
        assert!(parse(Some(&config), &AgentFlags::default()).unwrap().custom.has("kv_usage"));
        assert_eq!(wrong(&format!("engine: custom\n{rest}")).len(), 1);
        assert_eq!(wrong(&format!("custom: {{ running: r, waiting: q }}\n{rest}")).len(), 1);
        assert_eq!(wrong(&format!("engine: custom\ncustom: {{ runing: r, waiting: 'q q' }}\n{rest}")).len(), 4);
    }
}
