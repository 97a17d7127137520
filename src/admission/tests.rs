//! Who is called, in which order, and who looks.

use super::*;
use futures_now::is_ready;

/// Whether a future is ready now, without waiting.
mod futures_now {
    use std::pin::pin;
    use std::task::{Context, Waker};

    pub(super) fn is_ready(future: impl Future<Output = ()>) -> bool {
        pin!(future).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }
}

const POOL: PoolId = PoolId(3);

/// As many as there is room for, due one after the other.
fn full(room: &Arc<WaitingRoom>, most: usize) -> Vec<Ticket> {
    (1..).map_while(|due| room.join(POOL, Now(due * 10), most)).collect()
}

#[test]
fn the_first_are_called_and_whoever_is_one_of_them_after_one_has_left() {
    let room = Arc::new(WaitingRoom::default());
    let most = LOOKING + 2;
    let mut tickets = full(&room, most);
    assert_eq!((tickets.len(), room.len(POOL)), (most, most));
    assert!(room.join(PoolId(4), Now(1), 3).is_some_and(|other| other.looks()), "another pool's line");
    let joined: Vec<bool> = tickets.iter().map(|ticket| is_ready(ticket.called())).collect();
    assert_eq!(joined.iter().filter(|is| **is).count(), LOOKING, "who is one of the first looks once more");
    assert!(!is_ready(tickets[0].called()));
    room.call(POOL);
    let called: Vec<bool> = tickets.iter().map(|ticket| is_ready(ticket.called())).collect();
    let looking: Vec<bool> = tickets.iter().map(Ticket::looks).collect();
    assert_eq!((&called, called.iter().filter(|is| **is).count()), (&looking, LOOKING));
    drop(tickets.remove(LOOKING));
    assert!(!is_ready(tickets[LOOKING].called()), "those before it are all there");
    drop(tickets.remove(3));
    assert!(tickets[LOOKING - 1].looks() && is_ready(tickets[LOOKING - 1].called()));
    tickets.clear();
    assert!(room.is_empty(POOL) && room.looks(POOL, Now(u64::MAX)));
    room.call(POOL);
}

#[test]
fn who_is_due_first_stands_first_whenever_they_come() {
    let room = Arc::new(WaitingRoom::default());
    let late = full(&room, LOOKING);
    assert!(late.iter().all(Ticket::looks));
    assert!(room.looks(POOL, Now(5)) && !room.looks(POOL, Now(85)));
    let early = room.join(POOL, Now(5), LOOKING + 1).unwrap();
    assert!(early.looks() && early.place() < late[0].place());
    assert!(!late[LOOKING - 1].looks(), "one more is before it");
    drop(early);
    assert!(late[LOOKING - 1].looks() && is_ready(late[LOOKING - 1].called()));
    // Of those that are due at once, who came first.
    let (one, other) = (room.join(POOL, Now(7), 99).unwrap(), room.join(POOL, Now(7), 99).unwrap());
    assert!(one.place() < other.place());
}

#[test]
fn a_call_before_anybody_listens_is_not_lost() {
    let room = Arc::new(WaitingRoom::default());
    let ticket = room.join(POOL, Now(0), 1).unwrap();
    room.call(POOL);
    assert!(is_ready(ticket.called()));
}
