//! Changing a running gateway: reload, graceful stop and binary upgrade, all under load and without a failed request.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use nix::sys::signal::Signal;
use parking_lot::Mutex;

use crate::support::backend::{Backend, chunk_event};
use crate::support::gateway::{Gateway, Setup};
use crate::support::http::{self, Client, events};
use crate::support::load::Load;
use crate::support::process::Process;
use crate::support::time::wait_for;
use crate::support::{chat, chat_stream};

/// The URLs that `/replicas` tells.
fn replica_urls(gateway: &Gateway) -> Vec<String> {
    let url = |replica: &serde_json::Value| replica["url"].as_str().unwrap().trim_end_matches('/').to_owned();
    gateway.replicas().iter().map(url).collect()
}

/// A replica that begins each stream at once and ends it when told to.
fn gated() -> (Backend, Sender<()>) {
    let (sender, receiver): (Sender<()>, Receiver<()>) = channel();
    let receiver = Mutex::new(receiver);
    let backend = Backend::start(move |exchange| {
        exchange.start_events()?;
        exchange.event(&chunk_event("begun"))?;
        let _ = receiver.lock().recv_timeout(Duration::from_secs(20));
        exchange.event("[DONE]")?;
        exchange.end_events()
    });
    (backend, sender)
}

/// Opens a stream and reads its first event.
fn open_stream(gateway: &Gateway) -> Client {
    let mut client = Client::connect(gateway.listen).unwrap();
    client.send_request("POST", "/v1/chat/completions", &[], chat_stream("hello").as_bytes()).unwrap();
    assert_eq!(client.read_head().unwrap().status, 200);
    assert!(client.read_chunk().unwrap().is_some());
    client
}

/// Reads the rest of a stream, which must end as it should.
#[track_caller]
fn assert_ends_whole(client: &mut Client) {
    let mut body = Vec::new();
    while let Some(chunk) = client.read_chunk().unwrap() {
        body.extend_from_slice(&chunk);
    }
    assert_eq!(events(&body).last().map(String::as_str), Some("[DONE]"));
}

#[test]
fn replicas_come_and_go_under_load() {
    let backends: Vec<Backend> = (0..3).map(|_| Backend::completing()).collect();
    let urls: Vec<String> = backends.iter().map(Backend::url).collect();
    let gateway = Setup::new(&urls[..2]).policy("round_robin").yaml("log:\n  level: info").start();
    let load = Load::start(gateway.listen, 4);
    load.wait_more(100);
    for turn in 0..4 {
        let kept = if turn % 2 == 0 { &urls[1..] } else { &urls[..2] };
        gateway.reload(&gateway.setup.file_text(kept));
        wait_for("the new file to be in force", Duration::from_secs(5), || replica_urls(&gateway) == kept);
        wait_for("the new replica to be well", Duration::from_secs(5), || gateway.states() == ["healthy"; 2]);
        let (gone, come) = if turn % 2 == 0 { (0, 2) } else { (2, 0) };
        let before = backends[come].posts();
        load.wait_more(50);
        let at_gone = backends[gone].posts();
        load.wait_more(100);
        assert!(backends[come].posts() > before, "the new replica got nothing");
        assert_eq!(backends[gone].posts(), at_gone, "a replica that had left was asked");
    }
    load.stop();
    gateway.wait_idle();
}

#[test]
fn a_stream_outlives_the_replicas_removal() {
    let (backend, go) = gated();
    let other = Backend::completing();
    let gateway = Setup::new(&[backend.url()]).yaml("log:\n  level: info").start();
    let mut client = open_stream(&gateway);
    gateway.reload(&gateway.setup.file_text(&[other.url()]));
    wait_for("the new file to be in force", Duration::from_secs(5), || replica_urls(&gateway).contains(&other.url()));
    gateway.assert_serves();
    go.send(()).unwrap();
    assert_ends_whole(&mut client);
}

#[test]
fn a_body_that_arrives_while_the_fleet_is_replaced_goes_to_the_new_one() {
    let backends: Vec<Backend> = (0..4).map(|_| Backend::completing()).collect();
    let urls: Vec<String> = backends.iter().map(Backend::url).collect();
    let (old, new) = urls.split_at(2);
    let gateway = Setup::new(old).yaml("log:\n  level: info").start();
    let body = chat(&crate::support::text(1, 100_000));
    let (first, rest) = body.as_bytes().split_at(60_000);
    let begin = |_| {
        let mut client = Client::connect(gateway.listen).unwrap();
        let head = format!("POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\ncontent-length: {}\r\n\r\n", body.len());
        client.send(head.as_bytes()).unwrap();
        client.send(first).unwrap();
        client
    };
    let clients: Vec<Client> = (0..8).map(begin).collect(); // some at each shard
    wait_for("the requests to have begun", Duration::from_secs(5), || {
        gateway.admin_get("/metrics").text().lines().any(|line| line == "emberlane_requests_in_flight 8")
    });
    gateway.reload(&gateway.setup.file_text(new));
    wait_for("the new file to be in force", Duration::from_secs(5), || replica_urls(&gateway) == new);
    for mut client in clients {
        client.send(rest).unwrap();
        let answer = client.read_answer().unwrap();
        assert_eq!(answer.status(), 200, "{}", answer.text());
    }
    let posts: Vec<usize> = backends.iter().map(Backend::posts).collect();
    assert_eq!((posts[0] + posts[1], posts[2] + posts[3]), (0, 8), "{posts:?}");
}

#[test]
fn a_bad_file_is_refused_and_the_old_one_stays() {
    let backend = Backend::completing();
    let gateway = Setup::new(&[backend.url()]).yaml("log:\n  level: info").start();
    let good = gateway.setup.file_text(&[backend.url()]);
    let bad_files = [
        (good.replace("http://", "gopher://"), "replicas[0].url"),
        (format!("{good}no_such_field: 1\n"), "no_such_field"),
        (format!("{good}limits:\n  body_bytes: [\n"), "limits.body_bytes"),
    ];
    for (bad, told) in bad_files {
        gateway.reload(&bad);
        gateway.process.wait_printed(told, Duration::from_secs(5));
        assert_eq!(replica_urls(&gateway), [backend.url()]);
        gateway.assert_serves();
    }
    gateway.reload(&good);
    gateway.assert_serves();
}

#[test]
fn a_graceful_stop_finishes_what_has_begun() {
    let (backend, go) = gated();
    let mut gateway = Setup::new(&[backend.url()]).start();
    let mut idle = Client::connect(gateway.listen).unwrap(); // an idle connection holds nothing up
    idle.send(b"").unwrap();
    let mut stream = open_stream(&gateway);
    gateway.process.signal(Signal::SIGTERM);
    wait_for("newcomers to be turned away", Duration::from_secs(5), || {
        http::post(gateway.listen, "/v1/chat/completions", "{}").map_or(true, |answer| answer.status() == 503)
    });
    assert!(gateway.process.ended().is_none(), "it ended with a stream open");
    go.send(()).unwrap();
    assert_ends_whole(&mut stream);
    let status = gateway.process.wait(Duration::from_secs(5));
    assert!(status.success(), "{status}");
}

#[test]
fn an_idle_gateway_stops_at_once() {
    let backend = Backend::completing();
    let mut gateway = Setup::new(&[backend.url()]).start();
    gateway.assert_serves();
    gateway.process.signal(Signal::SIGTERM);
    let status = gateway.process.wait(Duration::from_secs(5));
    assert!(status.success(), "{status}");
}

#[test]
fn the_binary_is_upgraded_under_load() {
    let backends: Vec<Backend> = (0..2).map(|_| Backend::completing()).collect();
    let (slow, go) = gated();
    let urls: Vec<String> = backends.iter().map(Backend::url).collect();
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("upgrade.sock");
    let yaml = format!("process:\n  upgrade_socket: \"{}\"\n  drain: 15s", socket.display());
    let mut gateway = Setup::new(&[slow.url()]).yaml(&yaml).start();
    let mut stream = open_stream(&gateway); // must end well in the old process
    gateway.reload(&gateway.setup.file_text(&urls));
    wait_for("the new file to be in force", Duration::from_secs(5), || replica_urls(&gateway) == urls);

    let load = Load::start(gateway.listen, 4);
    load.wait_more(100);
    let file = gateway.setup.file();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_emberlane"));
    command.arg("serve").arg("-c").arg(&file).arg("--upgrade");
    let mut new = Process::start("emberlane (new)", &mut command);
    gateway.process.signal(Signal::SIGQUIT);
    let before: usize = backends.iter().map(Backend::posts).sum();
    load.wait_more(200);
    go.send(()).unwrap();
    assert_ends_whole(&mut stream);
    let status = gateway.process.wait(Duration::from_secs(40));
    assert!(status.success(), "the old process: {status}");
    load.wait_more(200); // by the new process alone
    assert!(backends.iter().map(Backend::posts).sum::<usize>() >= before + 400);
    load.stop();
    assert!(new.ended().is_none(), "the new process has ended");
    assert_eq!(http::get(gateway.admin, "/readyz").unwrap().status(), 200);
    new.signal(Signal::SIGTERM);
    assert!(new.wait(Duration::from_secs(5)).success());
}
