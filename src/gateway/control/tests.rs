//! The control thread: what it takes up, and whom it does not wait for.

use super::sources::Origin;
use super::*;
use crate::clock::Now;
use crate::discovery::{Found, Registration};
use crate::wire::beacon::SenderId;
use std::net::TcpListener;
use tokio::sync::Notify;

fn control(yaml: &str, reload: Option<Reload>) -> Arc<Control> {
    with_inbox(yaml, reload).0
}

fn with_inbox(yaml: &str, reload: Option<Reload>) -> (Arc<Control>, Inbox) {
    let (core, registry) = crate::gateway::build(config::parse(yaml).unwrap(), 1).unwrap();
    let (control, inbox) = Control::new(core, registry, reload);
    (Arc::new(control), inbox)
}

fn said(model: &str) -> Discovered {
    Discovered { models: vec![model.to_owned()], ..Discovered::default() }
}

const ONE: &str = "{index: {memory: 16MiB}, replicas: [{id: a, url: 'http://127.0.0.1:1'}]}";

#[test]
fn what_a_replica_said_is_taken_up_whatever_became_of_the_round() {
    let control = control(ONE, None);
    let replica = Arc::clone(&control.core.snapshot.load().fleet.replicas[0]);
    assert_eq!(replica.address(), "127.0.0.1:1".parse().ok(), "known before the first request");
    control.note(&replica, said("m"));
    // The round ends here, and so may another before anybody looks.
    control.note(&replica, said("m"));
    control.take_up();
    let snapshot = control.core.snapshot.load_full();
    assert_eq!(snapshot.fleet.pools[0].model, "m");
    control.take_up();
    assert!(Arc::ptr_eq(&snapshot, &control.core.snapshot.load()), "no news, no rebuild");
}

#[test]
fn a_replica_that_moved_is_not_believed_what_it_said_elsewhere() {
    let control = control(ONE, None);
    let before = Arc::clone(&control.core.snapshot.load().fleet.replicas[0]);
    control.note(&before, said("m"));
    control.take_up();
    control.apply(config::parse(&ONE.replace(":1'", ":2'")).unwrap()).unwrap();
    assert!(control.sayings.lock().is_empty());
    // An answer to a question asked before the reload.
    control.note(&before, said("m"));
    control.take_up();
    assert_eq!(control.core.snapshot.load().fleet.replicas[0].models, None);
}

#[test]
fn reload_and_stop_are_served_while_replicas_do_not_answer() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let yaml = ONE.replace("127.0.0.1:1", &silent.local_addr().unwrap().to_string());
    let reloaded = Arc::new(Notify::new());
    let (told, again) = (Arc::clone(&reloaded), config::parse(&yaml).unwrap());
    let (control, inbox) = with_inbox(
        &yaml,
        Some(Box::new(move || {
            told.notify_one();
            Ok(again.clone())
        })),
    );
    let soon = ASK_FIRST / 2;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (stop, stopped) = oneshot::channel();
        let running = tokio::spawn(Arc::clone(&control).run(inbox, stopped));
        let asked = tokio::task::spawn_blocking(move || silent.accept().map(|asked| (asked, silent)));
        let _open = asked.await.unwrap().unwrap();
        nix::sys::signal::raise(nix::sys::signal::Signal::SIGHUP).unwrap();
        tokio::time::timeout(soon, reloaded.notified()).await.expect("the reload waits for nobody");
        stop.send(()).unwrap();
        tokio::time::timeout(soon, running).await.expect("nor does the stop").unwrap();
    });
    runtime.shutdown_background();
}

const BY_BEACON: &str = "{index: {memory: 16MiB}, beacons: {listen: '127.0.0.1:0', keys: keys.txt},\
    discovery: {beacons: true}, replicas: [{id: a, url: 'http://127.0.0.1:1'}]}";

fn registration(url: &str, sender: &str) -> News {
    let (url, sender) = (url.to_owned(), SenderId::of(sender));
    News::Registration(Registration { url, said: said("m"), labels: Vec::new(), heard: Now(1), sender })
}

/// Id, models, and who named it.
type Shown = (String, Option<Vec<String>>, &'static str);

/// What `/replicas` would show.
fn shown(control: &Control) -> Vec<Shown> {
    let (snapshot, discovery) = (control.core.snapshot.load(), control.core.discovery.load());
    let row = |replica: &Arc<Replica>| {
        let id = &replica.config.id;
        (id.clone(), replica.models.clone(), discovery.source_of[id].as_str())
    };
    snapshot.fleet.replicas.iter().map(row).collect()
}

#[test]
fn a_replica_registers_and_says_what_it_is() {
    let (control, mut inbox) = with_inbox(BY_BEACON, None);
    assert!(control.hear(registration("http://10.0.0.1:80", "agent-7"), &mut inbox.news) && control.refresh());
    let [a, new] = ["a", "10.0.0.1:80"].map(str::to_owned);
    let m = Some(vec!["m".to_owned()]);
    assert_eq!(shown(&control), [(a, None, "static"), (new, m, "beacon")]);
    assert!(!control.hear(registration("http://10.0.0.1:80", "agent-7"), &mut inbox.news), "no news");
    assert!(!control.hear(registration("http://127.0.0.1:1/v1", "x"), &mut inbox.news), "refused");
    assert_eq!(control.core.metrics.discovery_failures.with_label_values(&["beacon"]).get(), 1);

    let slot = control.core.snapshot.load().fleet.replicas[1].slot;
    let facts = |sender, model| News::Facts { slot, sender: SenderId::of(sender), said: said(model) };
    assert!(!control.hear(facts("a", "n"), &mut inbox.news), "that is somebody else's place");
    for (sender, model) in [("agent-7", "n"), ("10.0.0.1:80", "o")] {
        control.news().try_send(facts(sender, model)).unwrap();
    }
    assert!(control.hear(facts("agent-7", "n"), &mut inbox.news));
    assert!(!control.refresh(), "nobody is new");
    assert_eq!(shown(&control)[1].1, Some(vec!["o".to_owned()]), "all that waited was taken up");
    assert!(!control.tidy());
}

#[test]
fn what_a_configured_replica_tells_is_taken_up() {
    let (control, mut inbox) = with_inbox(BY_BEACON, None);
    let slot = control.core.snapshot.load().fleet.replicas[0].slot;
    let facts = |sender| News::Facts { slot, sender: SenderId::of(sender), said: said("m") };
    assert!(control.hear(facts("a"), &mut inbox.news));
    control.refresh();
    assert_eq!(control.core.snapshot.load().fleet.replicas[0].models.as_deref(), Some(&["m".to_owned()][..]));
    assert!(!control.hear(facts("127.0.0.1:1"), &mut inbox.news), "the same by its other name");
}

#[test]
fn nobody_registers_unless_the_configuration_says_so() {
    let (control, mut inbox) = with_inbox(ONE, None);
    assert!(!control.hear(registration("http://10.0.0.1:80", "x"), &mut inbox.news));
    assert!(control.sources.lock().registered.is_empty());
}

#[test]
fn what_is_named_on_keeps_its_list_and_what_is_not_is_not_listened_to() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _within = runtime.enter();
    let control = control(ONE, None);
    let config = |file: &str| {
        config::parse(&ONE.replace("replicas:", &format!("discovery: {{file: {file}}}, replicas:"))).unwrap()
    };
    let origin = |path: &str| Origin::File(path.into());
    let list = || {
        let url = "http://127.0.0.1:2".parse().unwrap();
        Some(vec![Found::from(config::ReplicaConfig::new("b".to_owned(), url))])
    };
    control.sources.lock().follow_also(&config("/x").discovery);
    assert!(control.take(Change { origin: origin("/x"), found: list(), error: None }));
    assert!(control.rebuild(config("/x")).unwrap());
    assert!(!control.take(Change { origin: origin("/x"), found: list(), error: None }), "no news");
    assert!(!control.take(Change { origin: origin("/x"), found: None, error: Some("gone".to_owned()) }));
    assert!(!control.take(Change { origin: origin("/x"), found: None, error: Some("gone".to_owned()) }));
    assert_eq!(control.core.metrics.discovery_failures.with_label_values(&["file"]).get(), 1, "told once");
    assert_eq!(control.core.discovery.load().sources[1].error.as_deref(), Some("gone"));
    control.sources.lock().follow(&config("/x").discovery);
    assert!(!control.refresh());
    assert_eq!(control.core.snapshot.load().fleet.replicas.len(), 2);
    control.sources.lock().follow(&config("/y").discovery);
    assert!(!control.take(Change { origin: origin("/x"), found: list(), error: None }));
    control.rebuild(config("/y")).unwrap();
    assert_eq!(control.core.snapshot.load().fleet.replicas.len(), 1);
}
