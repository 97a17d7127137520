//! The control thread: what it takes up, and whom it does not wait for.

use super::*;
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
