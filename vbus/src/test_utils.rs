//! For tests: a device class that echoes, a client's side that remembers, and counters of what a thread
//! costs.

pub mod allocations;
pub mod ring_echo;
pub mod syscalls;
pub mod threads;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::io::Errno;
use vm_memory::GuestAddress;

use crate::attribute::Attribute;
use crate::bus::Host;
use crate::device::{
    Connection, Device, DeviceClass, FaultReporter, Interface, InterfaceOffer, Peer, Shm,
};
use crate::memory::{GuestRam, Region};
use crate::verbs::{Event, EventSink, ShmRequest};

/// Kind of the interfaces of [`EchoClass`].
pub const ECHO_KIND: &str = "test-echo";
/// Version of their ABI.
pub const ECHO_VERSION: u32 = 1;
/// Shms with this id or a higher one are refused with `EINVAL`.
pub const ECHO_NUM_SHMS: u32 = 64;

/// Functions of an echo device.
pub mod func {
    /// Reverses the data; the result is their length.
    pub const REVERSE: u32 = 0;
    /// Reports a fault of the client.
    pub const FAULT: u32 = 1;
    /// Writes the first byte of the data into the first byte of the shm with id 0, and notifies.
    pub const POKE: u32 = 2;
    /// Drops the shm with the id in the first byte of the data.
    pub const DROP_SHM: u32 = 3;
}

/// What is alive of an [`EchoClass`], and how often things happened.
#[derive(Debug, Default)]
pub struct EchoCensus {
    /// Devices that were not dropped.
    pub devices: AtomicUsize,
    /// Connections that were not dropped.
    pub connections: AtomicUsize,
    /// Connections that were made.
    pub connected: AtomicUsize,
    /// Calls of `close`.
    pub closed: AtomicUsize,
    /// Calls of any function after or while `close`: always 0.
    pub calls_after_close: AtomicUsize,
}

/// A class of devices that reverse what they are given.
///
/// Each device has an attribute `greeting`, which can be any text but `bad`, and one that is read
/// only, `calls`. One client at a time; any number of buses unless told otherwise.
#[derive(Debug, Clone)]
pub struct EchoClass {
    name: &'static str,
    max_buses: usize,
    num_interfaces: usize,
    census: Arc<EchoCensus>,
}

impl EchoClass {
    /// The class `name`, whose devices go on up to `max_buses` buses with `num_interfaces`
    /// interfaces each: `default`, `other1`, `other2`...
    pub fn new(name: &'static str, max_buses: usize, num_interfaces: usize) -> Self {
        EchoClass {
            name,
            max_buses,
            num_interfaces,
            census: Arc::default(),
        }
    }

    /// What is alive.
    pub fn census(&self) -> Arc<EchoCensus> {
        Arc::clone(&self.census)
    }
}

impl Default for EchoClass {
    fn default() -> Self {
        EchoClass::new("echo", usize::MAX, 1)
    }
}

impl DeviceClass for EchoClass {
    fn name(&self) -> &'static str {
        self.name
    }

    /// `EIO` for a device called `broken`.
    fn create(&self, name: &str) -> Result<Arc<dyn Device>, Errno> {
        if name == "broken" {
            return Err(Errno::IO);
        }
        self.census.devices.fetch_add(1, SeqCst);
        Ok(Arc::new(EchoDevice {
            class: self.clone(),
            greeting: Arc::new(Greeting(Mutex::new("hello".into()))),
            calls: Arc::default(),
            buses: Mutex::default(),
        }))
    }
}

struct EchoDevice {
    class: EchoClass,
    greeting: Arc<Greeting>,
    calls: Arc<Calls>,
    buses: Mutex<Vec<String>>,
}

struct Greeting(Mutex<String>);

impl Attribute for Greeting {
    fn read(&self) -> Result<String, Errno> {
        Ok(self.0.lock().clone())
    }

    fn write(&self, value: &str) -> Result<(), Errno> {
        if value == "bad" {
            return Err(Errno::INVAL);
        }
        value.clone_into(&mut self.0.lock());
        Ok(())
    }

    fn is_writable(&self) -> bool {
        true
    }
}

#[derive(Default)]
struct Calls(AtomicUsize);

impl Attribute for Calls {
    fn read(&self) -> Result<String, Errno> {
        Ok(self.0.load(SeqCst).to_string())
    }
}

impl Device for EchoDevice {
    fn attributes(&self) -> Vec<(&'static str, Arc<dyn Attribute>)> {
        vec![
            ("greeting", Arc::clone(&self.greeting) as Arc<dyn Attribute>),
            ("calls", Arc::clone(&self.calls) as Arc<dyn Attribute>),
        ]
    }

    fn connect_bus(&self, bus: &str) -> Result<Vec<InterfaceOffer>, Errno> {
        let mut buses = self.buses.lock();
        if buses.len() >= self.class.max_buses {
            return Err(Errno::BUSY);
        }
        assert!(!buses.iter().any(|other| other == bus), "on {bus} twice");
        buses.push(bus.to_owned());
        let offer = |idx| InterfaceOffer {
            name: match idx {
                0 => "default".to_owned(),
                _ => format!("other{idx}"),
            },
            kind: ECHO_KIND,
            interface: Arc::new(EchoInterface {
                census: self.class.census(),
                calls: Arc::clone(&self.calls),
                is_taken: Arc::default(),
            }),
        };
        Ok((0..self.class.num_interfaces).map(offer).collect())
    }

    fn disconnect_bus(&self, bus: &str) {
        let mut buses = self.buses.lock();
        let idx = buses.iter().position(|other| other == bus);
        buses.swap_remove(idx.expect("disconnected from a bus that it is not on"));
    }
}

impl Drop for EchoDevice {
    fn drop(&mut self) {
        self.class.census.devices.fetch_sub(1, SeqCst);
    }
}

struct EchoInterface {
    census: Arc<EchoCensus>,
    calls: Arc<Calls>,
    is_taken: Arc<Mutex<bool>>,
}

impl Interface for EchoInterface {
    fn connect(&self, peer: Peer) -> Result<Arc<dyn Connection>, Errno> {
        if peer.version != ECHO_VERSION {
            return Err(Errno::INVAL);
        }
        if std::mem::replace(&mut *self.is_taken.lock(), true) {
            return Err(Errno::BUSY);
        }
        self.census.connections.fetch_add(1, SeqCst);
        self.census.connected.fetch_add(1, SeqCst);
        Ok(Arc::new(EchoConnection {
            census: Arc::clone(&self.census),
            calls: Arc::clone(&self.calls),
            is_taken: Arc::clone(&self.is_taken),
            faults: peer.faults,
            shms: Mutex::new(Some(BTreeMap::new())),
        }))
    }
}

struct EchoConnection {
    census: Arc<EchoCensus>,
    calls: Arc<Calls>,
    is_taken: Arc<Mutex<bool>>,
    faults: Arc<dyn FaultReporter>,
    /// `None` once it is closed.
    shms: Mutex<Option<BTreeMap<u32, Shm>>>,
}

impl EchoConnection {
    fn check_open(&self) {
        if self.shms.lock().is_none() {
            self.census.calls_after_close.fetch_add(1, SeqCst);
        }
    }

    fn poke(&self, data: &[u8]) -> Result<u32, Errno> {
        let byte = data.first().ok_or(Errno::INVAL)?;
        let shms = self.shms.lock();
        let shm = shms.as_ref().and_then(|shms| shms.get(&0));
        let shm = shm.ok_or(Errno::INVAL)?;
        shm.region.write(0, &[*byte]).map_err(|_| Errno::FAULT)?;
        let signal = shm.signal.as_ref();
        Ok(u32::from(signal.is_some_and(|signal| signal.notify())))
    }

    fn drop_shm(&self, data: &[u8]) -> Result<u32, Errno> {
        let id = u32::from(*data.first().ok_or(Errno::INVAL)?);
        let shm = self.shms.lock().as_mut().and_then(|shms| shms.remove(&id));
        shm.map(|_| 0).ok_or(Errno::INVAL)
    }
}

impl Connection for EchoConnection {
    fn call(&self, func: u32, data: &mut [u8]) -> Result<u32, Errno> {
        self.check_open();
        self.calls.0.fetch_add(1, SeqCst);
        let result = match func {
            func::REVERSE => {
                data.reverse();
                u32::try_from(data.len()).map_err(|_| Errno::INVAL)
            }
            func::FAULT => {
                self.faults.report(&"it asked for it");
                Ok(0)
            }
            func::POKE => self.poke(data),
            func::DROP_SHM => self.drop_shm(data),
            _ => Err(Errno::INVAL),
        };
        self.check_open();
        result
    }

    fn shm(&self, shm: Shm) -> Result<(), Errno> {
        self.check_open();
        if shm.id >= ECHO_NUM_SHMS {
            return Err(Errno::INVAL);
        }
        let mut shms = self.shms.lock();
        let shms = shms.as_mut().ok_or(Errno::NODEV)?;
        if shms.contains_key(&shm.id) {
            return Err(Errno::EXIST);
        }
        shms.insert(shm.id, shm);
        Ok(())
    }

    fn close(&self) {
        self.check_open();
        self.census.closed.fetch_add(1, SeqCst);
        let shms = self.shms.lock().take();
        drop(shms);
        *self.is_taken.lock() = false;
    }
}

impl Drop for EchoConnection {
    fn drop(&mut self) {
        self.census.connections.fetch_sub(1, SeqCst);
    }
}

/// An [`EventSink`] that remembers all events.
#[derive(Debug, Default)]
pub struct EventLog(Mutex<Vec<Event>>);

impl EventLog {
    /// An empty one.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// All events since the last time, oldest first.
    pub fn take(&self) -> Vec<Event> {
        std::mem::take(&mut self.0.lock())
    }
}

impl EventSink for EventLog {
    fn event(&self, event: Event) {
        self.0.lock().push(event);
    }
}

/// 64 KiB of memory at address 0.
///
/// # Panics
/// The host is out of memory.
pub fn ram() -> Arc<GuestRam> {
    let ranges = [(GuestAddress(0), 64 << 10)];
    Arc::new(GuestRam::from_ranges(&ranges).expect("no memory for a test"))
}

/// A request to share a page of private memory, without a signal.
///
/// # Panics
/// The host is out of memory.
pub fn shm_request(id: u32, cookie: u64) -> ShmRequest {
    ShmRequest {
        id,
        priority: 0,
        cookie,
        region: Region::new_private(4096).expect("no memory for a test"),
        signal: None,
    }
}

/// A host with the class `echo`.
///
/// # Panics
/// Never, unless hosts are broken.
pub fn echo_host() -> (Arc<Host>, Arc<EchoCensus>) {
    let host = Host::new();
    let class = EchoClass::default();
    let census = class.census();
    host.register_class(Arc::new(class))
        .expect("an empty host takes a class");
    (host, census)
}

/// Makes the device `name` of the class `echo` and links it to `bus` under its own name.
///
/// # Panics
/// If that fails.
pub fn add_echo(host: &Host, bus: &str, name: &str) {
    let result = host
        .create_device(name)
        .and_then(|()| host.set_type(name, "echo"))
        .and_then(|()| host.link(bus, name, name));
    result.expect("no new device");
}

/// Waits until `condition` holds.
///
/// # Panics
/// It does not for 20 seconds.
pub fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

impl fmt::Debug for EchoDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EchoDevice").finish_non_exhaustive()
    }
}
