//! Replicas that come and go by themselves: from a watched file and from DNS, always under load and without a failed
//! request.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::channel;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::Value;

use crate::support::backend::{Backend, chunk_event};
use crate::support::dns::{Data, NameServer};
use crate::support::gateway::{Gateway, Setup};
use crate::support::http::{self, Client, events};
use crate::support::load::Load;
use crate::support::process::Process;
use crate::support::time::wait_for;
use crate::support::{chat_stream, free_address, skip};

const SOON: Duration = Duration::from_secs(10);

/// A file that lists replicas.
struct List {
    directory: tempfile::TempDir,
}

impl List {
    fn of(urls: &[String]) -> Self {
        let list = Self { directory: tempfile::tempdir().unwrap() };
        list.replace(urls);
        list
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("replicas.yaml")
    }

    /// Renames a new file over the old one.
    fn replace(&self, urls: &[String]) {
        let next = self.directory.path().join("next");
        std::fs::write(&next, text(urls)).unwrap();
        std::fs::rename(next, self.path()).unwrap();
    }

    /// Writes into the file.
    fn edit(&self, text: &str) {
        std::fs::write(self.path(), text).unwrap();
    }
}

fn text(urls: &[String]) -> String {
    serde_json::to_string(urls).unwrap()
}

fn by_file(path: &Path) -> String {
    format!("log:\n  level: info\ndiscovery:\n  file: \"{}\"", path.display())
}

fn backends(count: usize) -> (Vec<Backend>, Vec<String>) {
    let backends: Vec<Backend> = (0..count).map(|_| Backend::completing()).collect();
    let urls = backends.iter().map(Backend::url).collect();
    (backends, urls)
}

/// URLs of the fleet, sorted.
fn fleet(gateway: &Gateway) -> Vec<String> {
    let url = |replica: &Value| replica["url"].as_str().unwrap().trim_end_matches('/').to_owned();
    let mut urls: Vec<String> = gateway.replicas().iter().map(url).collect();
    urls.sort();
    urls
}

#[track_caller]
fn wait_fleet(gateway: &Gateway, wanted: &[String]) {
    let mut wanted = wanted.to_vec();
    wanted.sort();
    wait_for(&format!("the fleet {wanted:?}"), SOON, || fleet(gateway) == wanted);
    wait_for("newcomers to take requests", SOON, || gateway.states().iter().all(|state| state == "healthy"));
}

/// Waits until all replicas have shown that they are well: until then the new ones get nothing.
#[track_caller]
fn wait_well(gateway: &Gateway) {
    wait_for("all to be well", SOON, || gateway.states().iter().all(|state| state == "healthy"));
}

/// What `/config` tells of the only source of that kind.
fn source(gateway: &Gateway, kind: &str) -> Value {
    let config = gateway.admin_get("/config").json();
    let rows = config["discovery"]["sources"].as_array().unwrap().clone();
    rows.into_iter().find(|row| row["source"] == kind).unwrap_or_else(|| panic!("no source {kind}: {config}"))
}

/// Those in the fleet get requests, those that are not get none.
#[track_caller]
fn assert_shares(load: &Load, backends: &[Backend], urls: &[String]) {
    load.wait_more(20); // those that were decided before the change
    let before: Vec<usize> = backends.iter().map(Backend::posts).collect();
    load.wait_more(100);
    for (backend, before) in backends.iter().zip(before) {
        let has_got = backend.posts() > before;
        assert_eq!(has_got, urls.contains(&backend.url()), "{} among {urls:?}", backend.url());
    }
}

#[test]
fn replicas_of_a_file_come_and_go_under_load() {
    let (backends, urls) = backends(3);
    let list = List::of(&urls[..2]);
    let gateway = Setup::new(&[]).policy("round_robin").yaml(&by_file(&list.path())).start();
    let load = Load::start(gateway.listen, 4);
    assert_shares(&load, &backends, &urls[..2]);
    for turn in 0..3 {
        let listed = if turn % 2 == 0 { &urls[1..] } else { &urls[..1] };
        if turn == 1 {
            list.edit(&text(listed));
        } else {
            list.replace(listed);
        }
        wait_fleet(&gateway, listed);
        wait_well(&gateway);
        assert_shares(&load, &backends, listed);
    }
    load.stop();
    gateway.wait_idle();
    let row = source(&gateway, "file");
    assert_eq!((row["replicas"].as_u64(), row["error"].is_null()), (Some(2), true));
    assert!(gateway.replicas().iter().all(|replica| replica["source"] == "file"));
}

#[test]
fn a_file_that_is_wrong_or_gone_changes_nothing_and_is_told_once() {
    let (_backends, urls) = backends(2);
    let list = List::of(&urls);
    let gateway = Setup::new(&[]).yaml(&by_file(&list.path())).start();
    let load = Load::start(gateway.listen, 2);
    for (text, told) in [("- gopher://h:1", "only http is spoken"), ("[", "not valid YAML"), ("", "an empty file")] {
        list.edit(text);
        wait_for("the error to be told", SOON, || {
            source(&gateway, "file")["error"].as_str().is_some_and(|error| error.contains(told))
        });
        load.wait_more(20);
        wait_fleet(&gateway, &urls);
    }
    std::fs::remove_file(list.path()).unwrap();
    wait_for("the loss to be told", SOON, || {
        source(&gateway, "file")["error"].as_str().is_some_and(|error| error.contains("cannot read"))
    });
    load.wait_more(20);
    let metrics = gateway.admin_get("/metrics").text();
    assert!(metrics.contains("emberlane_discovery_failures_total{source=\"file\"} 4"), "{metrics}");
    list.replace(&urls[..1]);
    wait_fleet(&gateway, &urls[..1]);
    load.stop();
    let output = gateway.process.output();
    assert_eq!(output.matches("not valid YAML").count(), 1, "{output}");
}

#[test]
fn a_stream_outlives_its_replica_in_the_file() {
    let (go, gate) = channel::<()>();
    let gate = Mutex::new(gate);
    let slow = Backend::start(move |exchange| {
        exchange.start_events()?;
        exchange.event(&chunk_event("begun"))?;
        let _ = gate.lock().recv_timeout(Duration::from_secs(20));
        exchange.event("[DONE]")?;
        exchange.end_events()
    });
    let other = Backend::completing();
    let list = List::of(&[slow.url()]);
    let gateway = Setup::new(&[]).yaml(&by_file(&list.path())).start();
    let mut client = Client::connect(gateway.listen).unwrap();
    client.send_request("POST", "/v1/chat/completions", &[], chat_stream("hello").as_bytes()).unwrap();
    assert_eq!(client.read_head().unwrap().status, 200);
    assert!(client.read_chunk().unwrap().is_some());
    list.replace(&[other.url()]);
    wait_fleet(&gateway, &[other.url()]);
    gateway.assert_serves();
    go.send(()).unwrap();
    let mut body = Vec::new();
    while let Some(chunk) = client.read_chunk().unwrap() {
        body.extend_from_slice(&chunk);
    }
    assert_eq!(events(&body).last().map(String::as_str), Some("[DONE]"));
}

#[test]
fn an_endpoint_that_two_sources_name_is_one_replica() {
    let (_backends, urls) = backends(2);
    let list = List::of(&urls);
    let gateway = Setup::new(&urls[..1]).yaml(&by_file(&list.path())).start();
    wait_fleet(&gateway, &urls);
    let sources: Vec<Value> = gateway.replicas().iter().map(|replica| replica["source"].clone()).collect();
    assert_eq!(sources, ["static", "file"]);
}

#[test]
fn a_fleet_moves_from_the_configuration_to_a_file_under_load() {
    let (backends, urls) = backends(2);
    let gateway = Setup::new(&urls).policy("round_robin").yaml("log:\n  level: info").start();
    let list = List::of(&urls);
    let load = Load::start(gateway.listen, 4);
    load.wait_more(50);
    gateway.reload(&gateway.setup.file_text(&[]).replace("log:\n  level: info", &by_file(&list.path())));
    wait_for("the file to count", SOON, || {
        gateway.replicas().iter().map(|replica| replica["source"].clone()).collect::<Vec<_>>() == ["file", "file"]
    });
    assert_shares(&load, &backends, &urls);
    load.stop();
}

#[test]
fn a_file_may_be_all_that_the_command_line_names() {
    let (_backends, urls) = backends(1);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("replicas.yaml");
    let (listen, admin) = (free_address(), free_address());
    let mut command = Command::new(env!("CARGO_BIN_EXE_emberlane"));
    command.args(["serve", "--listen", &listen.to_string(), "--admin", &admin.to_string()]);
    command.arg("--discovery-file").arg(&path);
    let _process = Process::start("emberlane", &mut command);
    let answers = |page: &str, status| http::get(admin, page).is_ok_and(|answer| answer.status() == status);
    wait_for("it to live without replicas", SOON, || answers("/healthz", 200) && answers("/readyz", 503));
    std::fs::write(&path, text(&urls)).unwrap();
    wait_for("the replica to be found", SOON, || answers("/readyz", 200));
    assert_eq!(http::post(listen, "/v1/chat/completions", &crate::support::chat("hello")).unwrap().status(), 200);
}

/// Engines at several loopback addresses and one port.
fn backends_at(addresses: &[&str]) -> (Vec<Backend>, Vec<String>, u16) {
    let port = free_address().port();
    let at =
        |ip: &&str| Backend::start_at(SocketAddr::new(ip.parse().unwrap(), port), |exchange| exchange.completion());
    let backends: Vec<Backend> = addresses.iter().map(at).collect();
    let urls = backends.iter().map(Backend::url).collect();
    (backends, urls, port)
}

fn by_dns(server: &NameServer, name: &str) -> String {
    format!("log:\n  level: info\ndiscovery:\n  nameservers: \"{}\"\n  dns: [\"{name}\"]", server.address)
}

#[test]
fn replicas_of_a_name_come_and_go_under_load() {
    let has_v6 = TcpListener::bind("[::1]:0").is_ok();
    if !has_v6 {
        skip("no IPv6 on loopback: A records only");
    }
    let ips: &[&str] = if has_v6 { &["127.0.0.2", "127.0.0.3", "::1"] } else { &["127.0.0.2", "127.0.0.3"] };
    let (backends, urls, port) = backends_at(ips);
    let addresses: Vec<IpAddr> = ips.iter().map(|ip| ip.parse().unwrap()).collect();
    let server = NameServer::start();
    server.set_addresses("engines.test", 1, &addresses[..1]);
    let gateway = Setup::new(&[]).policy("round_robin").yaml(&by_dns(&server, &format!("engines.test:{port}"))).start();
    let load = Load::start(gateway.listen, 4);
    for listed in [0..1, 0..addresses.len(), 1..addresses.len()] {
        server.set_addresses("engines.test", 1, &addresses[listed.clone()]);
        wait_fleet(&gateway, &urls[listed.clone()]);
        wait_well(&gateway);
        assert_shares(&load, &backends, &urls[listed]);
    }
    let last = &urls[1..];

    server.set_failing(true);
    wait_for("the failure to be told", SOON, || source(&gateway, "dns")["error"].is_string());
    let asked = server.asked();
    wait_for("it to ask again", SOON, || server.asked() > asked + 1);
    wait_fleet(&gateway, last);
    server.set_failing(false);
    wait_for("the failure to be over", SOON, || source(&gateway, "dns")["error"].is_null());

    server.set_addresses("engines.test", 1, &[]);
    wait_for("the emptiness to be told", SOON, || source(&gateway, "dns")["error"].is_string());
    assert_shares(&load, &backends, last);
    load.stop();
}

#[test]
fn an_answer_is_believed_for_as_long_as_it_says() {
    let (_backends, urls, port) = backends_at(&["127.0.0.2", "127.0.0.3"]);
    let server = NameServer::start();
    server.set_addresses("engines.test", 3600, &["127.0.0.2".parse().unwrap()]);
    server.set_addresses("other.test", 1, &["127.0.0.3".parse().unwrap()]);
    let yaml = by_dns(&server, &format!("engines.test:{port}")).replace("\"]", &format!("\", other.test:{port}]"));
    let gateway = Setup::new(&[]).yaml(&yaml).start();
    wait_fleet(&gateway, &urls);
    let asked = server.asked();
    server.set_addresses("engines.test", 1, &[]);
    wait_for("the other name to be asked for three times more", SOON, || server.asked() >= asked + 6);
    wait_fleet(&gateway, &urls);
    assert_eq!(source(&gateway, "dns")["error"], Value::Null, "nobody asked for the first");
}

#[test]
fn services_of_a_name_are_replicas() {
    let (one, two) = (Backend::completing(), Backend::completing());
    let port = |backend: &Backend| backend.url().rsplit_once(':').unwrap().1.parse::<u16>().unwrap();
    let loopback = ["127.0.0.1".parse().unwrap()];
    let server = NameServer::start();
    server.set_addresses("e-0.test", 1, &loopback);
    server.set_addresses("e-1.test", 1, &loopback);
    let (first, second) = (Data::Service(1, port(&one), "e-0.test"), Data::Service(2, port(&two), "e-1.test"));
    server.set("_http._tcp.test", 1, &[second.clone(), first]);
    let gateway = Setup::new(&[]).yaml(&by_dns(&server, "_http._tcp.test")).start();
    wait_fleet(&gateway, &[one.url()]);
    assert_eq!(gateway.replicas()[0]["id"], format!("e-0.test:{}", port(&one)), "the better priority alone");
    let load = Load::start(gateway.listen, 2);
    load.wait_more(20);
    server.set("_http._tcp.test", 1, &[second]);
    wait_fleet(&gateway, &[two.url()]);
    load.wait_more(20);
    load.stop();
    assert!(two.posts() > 0);
}

/// Whether the replica at `url` drains because a list says so.
fn drains(gateway: &Gateway, url: &str) -> bool {
    let is_it = |row: &&Value| row["url"].as_str().unwrap().trim_end_matches('/') == url;
    gateway.replicas().iter().find(is_it).is_some_and(|row| row["draining"] == serde_json::json!(["file"]))
}

#[test]
fn a_replica_drains_by_the_file_and_by_the_configuration_under_load() {
    let (backends, urls) = backends(2);
    let list = List::of(&urls);
    let drained = |place: usize| format!("- {}\n- {{ url: \"{}\", drain: true }}\n", urls[1 - place], urls[place]);
    let gateway = Setup::new(&[]).policy("round_robin").yaml(&by_file(&list.path())).start();
    let load = Load::start(gateway.listen, 4);
    list.edit(&drained(0));
    wait_for("the first to drain", SOON, || drains(&gateway, &urls[0]));
    assert_shares(&load, &backends, &urls[1..]);
    list.edit(&text(&urls));
    wait_for("the drain to end", SOON, || !drains(&gateway, &urls[0]));
    assert_shares(&load, &backends, &urls);

    let fixed = gateway.setup.file_text(&[]).replace("replicas:\n", &format!("replicas:\n{}", drained(1)));
    gateway.reload(&fixed);
    wait_for("the second to drain", SOON, || drains(&gateway, &urls[1]));
    assert_shares(&load, &backends, &urls[..1]);
    gateway.reload(&gateway.setup.file_text(&[]));
    wait_for("the file to count again", SOON, || !drains(&gateway, &urls[1]));
    assert_shares(&load, &backends, &urls);
    load.stop();
}
