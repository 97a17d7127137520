//! A name server on loopback whose zone the test changes: UDP, answers encoded by hand (RFC 1035, RFC 2782).

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use parking_lot::Mutex;

const A: u16 = 1;
const AAAA: u16 = 28;
const SRV: u16 = 33;
const OK: u16 = 0;
const SERVER_FAILURE: u16 = 2;
const NO_SUCH_NAME: u16 = 3;

/// One record's data.
#[derive(Clone, Debug)]
pub(crate) enum Data {
    /// A or AAAA.
    Address(IpAddr),
    /// Priority, port, target.
    Service(u16, u16, &'static str),
}

/// The server.
#[derive(Debug)]
pub(crate) struct NameServer {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// By name: the TTL in seconds, and what there is.
type Zone = BTreeMap<String, (u32, Vec<Data>)>;

#[derive(Debug, Default)]
struct Shared {
    zone: Mutex<Zone>,
    fails: AtomicBool,
    asked: AtomicUsize,
    stopping: AtomicBool,
}

impl NameServer {
    /// Starts one that knows no names.
    pub(crate) fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let thread = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || serve(&socket, &shared)
        });
        Self { address, shared, thread: Some(thread) }
    }

    /// Gives `name` these records and no others.
    pub(crate) fn set(&self, name: &str, ttl: u32, records: &[Data]) {
        self.shared.zone.lock().insert(name.to_owned(), (ttl, records.to_vec()));
    }

    /// Gives `name` these addresses and nothing else.
    pub(crate) fn set_addresses(&self, name: &str, ttl: u32, addresses: &[IpAddr]) {
        let records: Vec<Data> = addresses.iter().copied().map(Data::Address).collect();
        self.set(name, ttl, &records);
    }

    /// From now on every question is answered with a failure, or none.
    pub(crate) fn set_failing(&self, fails: bool) {
        self.shared.fails.store(fails, Ordering::SeqCst);
    }

    /// Questions so far.
    pub(crate) fn asked(&self) -> usize {
        self.shared.asked.load(Ordering::SeqCst)
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        let wake = UdpSocket::bind("127.0.0.1:0").unwrap();
        let _ = wake.send_to(&[0], self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(socket: &UdpSocket, shared: &Shared) {
    let mut question = [0; 1500];
    while let Ok((length, from)) = socket.recv_from(&mut question) {
        if shared.stopping.load(Ordering::SeqCst) {
            return;
        }
        if let Some(answer) = answer(&question[..length], shared) {
            let _ = socket.send_to(&answer, from);
        }
    }
}

fn answer(question: &[u8], shared: &Shared) -> Option<Vec<u8>> {
    let (name, end) = read_name(question, 12)?;
    let kind = u16::from_be_bytes([*question.get(end)?, *question.get(end + 1)?]);
    shared.asked.fetch_add(1, Ordering::SeqCst);
    let zone = shared.zone.lock();
    let known = zone.get(&name);
    let code = match known {
        _ if shared.fails.load(Ordering::SeqCst) => SERVER_FAILURE,
        Some(_) => OK,
        None => NO_SUCH_NAME,
    };
    let records: Vec<Vec<u8>> = match known {
        Some((ttl, records)) if code == OK => records.iter().filter_map(|data| record(kind, *ttl, data)).collect(),
        _ => Vec::new(),
    };
    let mut out = question.get(..2)?.to_vec();
    for word in [0x8180 | code, 1, u16::try_from(records.len()).unwrap(), 0, 0] {
        out.extend(word.to_be_bytes());
    }
    out.extend(question.get(12..end + 4)?);
    records.iter().for_each(|record| out.extend(record));
    Some(out)
}

fn record(kind: u16, ttl: u32, data: &Data) -> Option<Vec<u8>> {
    let data = match (kind, data) {
        (A, Data::Address(IpAddr::V4(address))) => address.octets().to_vec(),
        (AAAA, Data::Address(IpAddr::V6(address))) => address.octets().to_vec(),
        (SRV, Data::Service(priority, port, target)) => {
            let mut data: Vec<u8> = [*priority, 0, *port].iter().flat_map(|word| word.to_be_bytes()).collect();
            for label in target.split('.') {
                data.push(u8::try_from(label.len()).unwrap());
                data.extend(label.as_bytes());
            }
            data.push(0);
            data
        }
        _ => return None,
    };
    let mut out = vec![0xc0, 12]; // the name of the question
    for word in [kind, 1] {
        out.extend(word.to_be_bytes());
    }
    out.extend(ttl.to_be_bytes());
    out.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
    out.extend(data);
    Some(out)
}

/// The name that begins at `at`, in lower case, and where it ends.
fn read_name(question: &[u8], mut at: usize) -> Option<(String, usize)> {
    let mut labels = Vec::new();
    loop {
        let length = usize::from(*question.get(at)?);
        at += 1;
        if length == 0 {
            return Some((labels.join("."), at));
        }
        labels.push(String::from_utf8_lossy(question.get(at..at + length)?).to_ascii_lowercase());
        at += length;
    }
}
