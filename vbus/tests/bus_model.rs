//! The object model against a simple model of it: random administrators and clients, and at the end
//! nothing is left, whatever is dropped first.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use proptest::prelude::*;
use vbus::Errno;
use vbus::bus::{Client, Host, Limits, Member};
use vbus::memory::GuestRam;
use vbus::test_utils::{
    ECHO_KIND, ECHO_VERSION, EchoCensus, EchoClass, EventLog, func, ram, shm_request, wait_until,
};
use vbus::verbs::{Event, Handle, InterfaceId, Verbs};

const NUM_INTERFACES: u32 = 2;
const MAX_CONNECTIONS: usize = 3;
const MAX_SHMS: usize = 4;

/// What happens next; numbers are reduced to what there is.
#[derive(Debug, Clone)]
enum Op {
    CreateDevice(u8),
    SetType(u8),
    RemoveDevice(u8),
    CreateBus(u8),
    RemoveBus(u8),
    Link(u8, u8, u8),
    Unlink(u8, u8),
    Join(u8, u8),
    Leave(usize),
    Attach(usize),
    Detach(usize),
    Open(usize, u32),
    Call(usize, usize),
    Shm(usize, usize, u32),
    DropShm(usize, usize, u8),
    Close(usize, usize),
    Fault(usize, usize),
}

fn op() -> impl Strategy<Value = Op> {
    let device = 0..3u8;
    let bus = 0..2u8;
    let any = any::<usize>;
    prop_oneof![
        3 => device.clone().prop_map(Op::CreateDevice),
        4 => device.clone().prop_map(Op::SetType),
        1 => device.clone().prop_map(Op::RemoveDevice),
        3 => bus.clone().prop_map(Op::CreateBus),
        1 => bus.clone().prop_map(Op::RemoveBus),
        6 => (bus.clone(), 0..2u8, device).prop_map(|(b, l, d)| Op::Link(b, l, d)),
        2 => (bus.clone(), 0..2u8).prop_map(|(b, l)| Op::Unlink(b, l)),
        3 => (0..3u8, bus).prop_map(|(p, b)| Op::Join(p, b)),
        2 => any().prop_map(Op::Leave),
        5 => any().prop_map(Op::Attach),
        2 => any().prop_map(Op::Detach),
        9 => (any(), 0..6u32).prop_map(|(c, i)| Op::Open(c, i)),
        4 => (any(), any()).prop_map(|(c, h)| Op::Call(c, h)),
        9 => (any(), any(), 0..3u32).prop_map(|(c, h, s)| Op::Shm(c, h, s)),
        2 => (any(), any(), 0..3u8).prop_map(|(c, h, s)| Op::DropShm(c, h, s)),
        3 => (any(), any()).prop_map(|(c, h)| Op::Close(c, h)),
        2 => (any(), any()).prop_map(|(c, h)| Op::Fault(c, h)),
    ]
}

#[derive(Default)]
struct BusModel {
    next_id: u32,
    links: BTreeMap<String, String>,
    /// Device of each interface.
    interfaces: BTreeMap<u32, String>,
}

#[derive(Clone, Copy, PartialEq)]
enum Phase {
    Open,
    Dropped,
    Closed,
}

struct HandleModel {
    handle: Handle,
    id: u32,
    phase: Phase,
    /// Cookies of what the device has.
    shms: BTreeMap<u32, u64>,
}

struct ClientModel {
    real: Client,
    log: Arc<EventLog>,
    pid: u32,
    bus: String,
    handles: Vec<HandleModel>,
    cut_off: BTreeSet<u32>,
    /// What it is told by the current step.
    device_events: Vec<Event>,
    closed: BTreeSet<u64>,
}

impl ClientModel {
    /// The interface is gone for this client; connections that are closed by that.
    fn drop_interface(&mut self, id: u32) -> usize {
        self.device_events.push(Event::DeviceDropped {
            id: InterfaceId(id),
        });
        let mut num_closed = 0;
        for handle in &mut self.handles {
            if handle.id == id && handle.phase == Phase::Open {
                handle.phase = Phase::Dropped;
                self.closed
                    .extend(std::mem::take(&mut handle.shms).values());
                num_closed += 1;
            }
        }
        num_closed
    }
}

struct World {
    host: Arc<Host>,
    census: Arc<EchoCensus>,
    memory: Arc<GuestRam>,
    logs: Vec<Arc<EventLog>>,
    devices: BTreeMap<String, bool>,
    buses: BTreeMap<String, BusModel>,
    members: Vec<(Member, u32, String)>,
    clients: Vec<ClientModel>,
    num_closed: usize,
    next_cookie: u64,
}

fn added(id: u32, link: &str) -> Event {
    let interface = ["default", "other1"][id as usize % NUM_INTERFACES as usize];
    Event::DeviceAdded {
        id: InterfaceId(id),
        kind: ECHO_KIND.into(),
        place: format!("{link}/{interface}"),
    }
}

impl World {
    fn new() -> Self {
        let class = EchoClass::new("echo", usize::MAX, NUM_INTERFACES as usize);
        let census = class.census();
        let host = Host::new();
        host.register_class(Arc::new(class)).unwrap();
        host.set_limits(Limits {
            connections: MAX_CONNECTIONS as u64,
            shms: MAX_SHMS as u64,
            ..Limits::default()
        });
        World {
            host,
            census,
            memory: ram(),
            logs: Vec::new(),
            devices: BTreeMap::new(),
            buses: BTreeMap::new(),
            members: Vec::new(),
            clients: Vec::new(),
            num_closed: 0,
            next_cookie: 1,
        }
    }

    fn bus_of(&self, pid: u32) -> Option<&String> {
        let members = self.members.iter().map(|(_, pid, bus)| (*pid, bus));
        let clients = self.clients.iter().map(|client| (client.pid, &client.bus));
        let mut all = members.chain(clients);
        all.find(|(own, _)| *own == pid).map(|(_, bus)| bus)
    }

    fn is_linked(&self, device: &str) -> bool {
        let mut buses = self.buses.values();
        buses.any(|bus| bus.links.values().any(|linked| linked == device))
    }

    fn administrate(&mut self, op: &Op) {
        match op {
            Op::CreateDevice(device) => {
                let name = format!("d{device}");
                let is_new = !self.devices.contains_key(&name);
                let expected = if is_new { Ok(()) } else { Err(Errno::EXIST) };
                assert_eq!(self.host.create_device(&name), expected);
                self.devices.entry(name).or_insert(false);
            }
            Op::SetType(device) => {
                let name = format!("d{device}");
                let expected = match self.devices.get(&name) {
                    None => Err(Errno::NOENT),
                    Some(true) => Err(Errno::BUSY),
                    Some(false) => Ok(()),
                };
                assert_eq!(self.host.set_type(&name, "echo"), expected);
                self.devices.entry(name).and_modify(|typed| *typed = true);
            }
            Op::RemoveDevice(device) => {
                let name = format!("d{device}");
                let expected = match self.devices.get(&name) {
                    None => Err(Errno::NOENT),
                    Some(_) if self.is_linked(&name) => Err(Errno::BUSY),
                    Some(_) => Ok(()),
                };
                assert_eq!(self.host.remove_device(&name), expected);
                if expected.is_ok() {
                    self.devices.remove(&name);
                }
            }
            Op::CreateBus(bus) => {
                let name = format!("b{bus}");
                let is_new = !self.buses.contains_key(&name);
                let expected = if is_new { Ok(()) } else { Err(Errno::EXIST) };
                assert_eq!(self.host.create_bus(&name), expected);
                self.buses.entry(name).or_default();
            }
            Op::RemoveBus(bus) => {
                let name = format!("b{bus}");
                let has_members = (0..3).any(|pid| self.bus_of(pid) == Some(&name));
                let expected = match self.buses.get(&name) {
                    None => Err(Errno::NOENT),
                    Some(model) if has_members || !model.links.is_empty() => Err(Errno::BUSY),
                    Some(_) => Ok(()),
                };
                assert_eq!(self.host.remove_bus(&name), expected);
                if expected.is_ok() {
                    self.buses.remove(&name);
                }
            }
            Op::Link(bus, link, device) => self.link(*bus, *link, *device),
            Op::Unlink(bus, link) => self.unlink(*bus, *link),
            _ => unreachable!("not an administrator's"),
        }
    }

    fn link(&mut self, bus: u8, link: u8, device: u8) {
        let (bus, link, device) = (format!("b{bus}"), format!("l{link}"), format!("d{device}"));
        let expected = match (self.buses.get(&bus), self.devices.get(&device)) {
            (None, _) | (_, None) => Err(Errno::NOENT),
            (Some(model), _) if model.links.contains_key(&link) => Err(Errno::EXIST),
            (_, Some(false)) => Err(Errno::INVAL),
            (Some(model), _) if model.links.values().any(|other| *other == device) => {
                Err(Errno::BUSY)
            }
            _ => Ok(()),
        };
        assert_eq!(self.host.link(&bus, &link, &device), expected);
        if expected.is_err() {
            return;
        }
        let model = self.buses.get_mut(&bus).unwrap();
        for id in model.next_id..model.next_id + NUM_INTERFACES {
            model.interfaces.insert(id, device.clone());
            let listeners = self.clients.iter_mut().filter(|client| client.bus == bus);
            listeners.for_each(|client| client.device_events.push(added(id, &link)));
        }
        model.next_id += NUM_INTERFACES;
        model.links.insert(link, device);
    }

    fn unlink(&mut self, bus: u8, link: u8) {
        let (bus, link) = (format!("b{bus}"), format!("l{link}"));
        let model = self.buses.get_mut(&bus);
        let removed = model.and_then(|model| Some((model.links.remove(&link)?, model)));
        let expected = removed.as_ref().map(|_| ()).ok_or(Errno::NOENT);
        assert_eq!(self.host.unlink(&bus, &link), expected);
        let Some((device, model)) = removed else {
            return;
        };
        let leaving = model.interfaces.iter().filter(|(_, own)| **own == device);
        let gone: Vec<u32> = leaving.map(|(id, _)| *id).collect();
        model.interfaces.retain(|_, own| *own != device);
        for client in self.clients.iter_mut().filter(|client| client.bus == bus) {
            for id in &gone {
                if !client.cut_off.remove(id) {
                    self.num_closed += client.drop_interface(*id);
                }
            }
        }
    }

    fn join(&mut self, pid: u32, bus: u8) {
        let bus = format!("b{bus}");
        let other = self.bus_of(pid).is_some_and(|other| *other != bus);
        let result = self.host.join(&bus, pid);
        if !self.buses.contains_key(&bus) {
            assert_eq!(result.unwrap_err(), Errno::NOENT);
        } else if other {
            assert_eq!(result.unwrap_err(), Errno::BUSY);
        } else {
            self.members.push((result.unwrap(), pid, bus));
        }
    }

    fn attach(&mut self, nth: usize) {
        let Some(idx) = nth.checked_rem(self.members.len()) else {
            return;
        };
        let (member, pid, bus) = &self.members[idx];
        let log = EventLog::new();
        let real = member.attach(self.memory.clone(), log.clone()).unwrap();
        self.logs.push(log.clone());
        let model = &self.buses[bus];
        let link_of = |device| {
            let mut links = model.links.iter();
            links.find(|(_, own)| *own == device).unwrap().0
        };
        let interfaces = model.interfaces.iter();
        self.clients.push(ClientModel {
            real,
            log,
            pid: *pid,
            bus: bus.clone(),
            handles: Vec::new(),
            cut_off: BTreeSet::new(),
            device_events: interfaces
                .map(|(id, device)| added(*id, link_of(device)))
                .collect(),
            closed: BTreeSet::new(),
        });
    }

    fn detach(&mut self, nth: usize) {
        let Some(idx) = nth.checked_rem(self.clients.len()) else {
            return;
        };
        let client = self.clients.remove(idx);
        let open = client.handles.iter();
        let open = open.filter(|handle| handle.phase == Phase::Open);
        let cookies: BTreeSet<u64> = open
            .inspect(|_| self.num_closed += 1)
            .flat_map(|handle| handle.shms.values().copied())
            .collect();
        drop(client.real);
        let events = client.log.take();
        let expected = cookies
            .into_iter()
            .map(|cookie| Event::ShmClosed { cookie });
        assert_eq!(sorted(events), expected.collect::<Vec<_>>());
    }

    /// Handles and shms that a process has, in this order.
    fn used(&self, pid: u32) -> (usize, usize) {
        let clients = self.clients.iter().filter(|client| client.pid == pid);
        let handles = clients.flat_map(|client| &client.handles);
        let kept = handles.filter(|handle| handle.phase != Phase::Closed);
        kept.fold((0, 0), |(handles, shms), handle| {
            (handles + 1, shms + handle.shms.len())
        })
    }

    fn open(&mut self, nth: usize, id: u32) {
        let Some(idx) = nth.checked_rem(self.clients.len()) else {
            return;
        };
        let client = &self.clients[idx];
        let peers = self.clients.iter().filter(|peer| peer.bus == client.bus);
        let mut handles = peers.flat_map(|peer| &peer.handles);
        let is_taken = handles.any(|own| own.id == id && own.phase == Phase::Open);
        let expected = if !self.buses[&client.bus].interfaces.contains_key(&id) {
            Err(Errno::NOENT)
        } else if client.cut_off.contains(&id) {
            Err(Errno::NODEV)
        } else if self.used(client.pid).0 == MAX_CONNECTIONS {
            Err(Errno::DQUOT)
        } else if is_taken {
            Err(Errno::BUSY)
        } else {
            Ok(())
        };
        let client = &mut self.clients[idx];
        let result = client.real.open(InterfaceId(id), ECHO_VERSION);
        assert_eq!(result.map(|_| ()), expected);
        let Ok(handle) = result else {
            return;
        };
        assert!(handle.0 != 0 && client.handles.iter().all(|other| other.handle != handle));
        client.handles.push(HandleModel {
            handle,
            id,
            phase: Phase::Open,
            shms: BTreeMap::new(),
        });
    }

    /// Uses a handle, also one that is closed.
    fn verb(&mut self, op: &Op, client: usize, handle: usize) {
        let Some(idx) = client.checked_rem(self.clients.len()) else {
            return;
        };
        let num_shms = self.used(self.clients[idx].pid).1;
        let client = &mut self.clients[idx];
        let Some(idx) = handle.checked_rem(client.handles.len()) else {
            return;
        };
        let model = &mut client.handles[idx];
        let (real, handle) = (&client.real, model.handle);
        let usable = match model.phase {
            Phase::Open => Ok(()),
            Phase::Dropped => Err(Errno::NODEV),
            Phase::Closed => Err(Errno::NOENT),
        };
        match op {
            Op::Call(..) => {
                let mut data = [1, 2, 3];
                let result = real.call(handle, func::REVERSE, &mut data);
                assert_eq!(result, usable.map(|()| 3));
                assert_eq!(data == [3, 2, 1], usable.is_ok());
            }
            Op::Shm(_, _, id) => {
                let expected = usable.and_then(|()| match model.shms.contains_key(id) {
                    _ if num_shms == MAX_SHMS => Err(Errno::DQUOT),
                    true => Err(Errno::EXIST),
                    false => Ok(()),
                });
                let cookie = self.next_cookie;
                self.next_cookie += 1;
                let result = real.shm(handle, shm_request(*id, cookie));
                assert_eq!(result, expected);
                if expected.is_ok() {
                    model.shms.insert(*id, cookie);
                }
            }
            Op::DropShm(_, _, id) => {
                let dropped = match usable {
                    Ok(()) => model.shms.remove(&u32::from(*id)).ok_or(Errno::INVAL),
                    Err(errno) => Err(errno),
                };
                let result = real.call(handle, func::DROP_SHM, &mut [*id]);
                assert_eq!(result, dropped.map(|_| 0));
                client.closed.extend(dropped.ok());
            }
            Op::Close(..) => {
                let is_known = model.phase != Phase::Closed;
                let expected = if is_known { Ok(()) } else { Err(Errno::NOENT) };
                assert_eq!(real.close(handle), expected);
                if model.phase == Phase::Open {
                    self.num_closed += 1;
                    client.closed.extend(model.shms.values());
                    model.shms.clear();
                }
                model.phase = Phase::Closed;
            }
            Op::Fault(..) => {
                let result = real.call(handle, func::FAULT, &mut []);
                assert_eq!(result, usable.map(|()| 0));
                if usable.is_ok() {
                    let id = model.id;
                    self.num_closed += client.drop_interface(id);
                    client.cut_off.insert(id);
                }
            }
            _ => unreachable!("not a verb"),
        }
    }

    fn step(&mut self, op: &Op) {
        match *op {
            Op::Join(pid, bus) => self.join(pid.into(), bus),
            Op::Leave(nth) => {
                if let Some(idx) = nth.checked_rem(self.members.len()) {
                    self.members.remove(idx);
                }
            }
            Op::Attach(nth) => self.attach(nth),
            Op::Detach(nth) => self.detach(nth),
            Op::Open(nth, id) => self.open(nth, id),
            Op::Call(client, handle)
            | Op::Shm(client, handle, _)
            | Op::DropShm(client, handle, _)
            | Op::Close(client, handle)
            | Op::Fault(client, handle) => self.verb(op, client, handle),
            _ => self.administrate(op),
        }
        self.check();
    }

    /// Every client was told what it should, and no more; the devices are closed where they should.
    fn check(&mut self) {
        let (census, num_closed) = (&self.census, self.num_closed);
        // What the housekeeping thread still has to do: closed, then dropped.
        wait_until("all is closed", || {
            let connected = census.connected.load(SeqCst);
            census.closed.load(SeqCst) == num_closed
                && census.connections.load(SeqCst) == connected - num_closed
        });
        for client in &mut self.clients {
            let (closed, others): (Vec<_>, Vec<_>) = client
                .log
                .take()
                .into_iter()
                .partition(|event| matches!(event, Event::ShmClosed { .. }));
            assert_eq!(others, std::mem::take(&mut client.device_events));
            let expected = std::mem::take(&mut client.closed).into_iter();
            let expected = expected.map(|cookie| Event::ShmClosed { cookie });
            assert_eq!(sorted(closed), expected.collect::<Vec<_>>());
        }
        // Devices that were removed are gone: nothing pins them now.
        let typed = self.devices.values().filter(|typed| **typed).count();
        wait_until("removed devices are gone", || {
            census.devices.load(SeqCst) == typed
        });
    }

    /// Drops all in the order that `order` says; nothing is left.
    fn end(self, order: &[u8]) {
        let mut rest: Vec<Box<dyn std::any::Any>> = Vec::new();
        let host = Arc::downgrade(&self.host);
        let (memory, logs, census) = (self.memory, self.logs, self.census);
        rest.push(Box::new(self.host));
        rest.extend(self.members.into_iter().map(|own| Box::new(own) as _));
        rest.extend(self.clients.into_iter().map(|own| Box::new(own.real) as _));
        for key in order {
            if let Some(idx) = usize::from(*key).checked_rem(rest.len()) {
                drop(rest.swap_remove(idx));
            }
        }
        drop(rest);
        // The last one of them has joined the housekeeping thread.
        assert_eq!(host.strong_count(), 0);
        assert_eq!(census.devices.load(SeqCst), 0);
        assert_eq!(census.connections.load(SeqCst), 0);
        let connected = census.connected.load(SeqCst);
        assert_eq!(census.closed.load(SeqCst), connected);
        assert_eq!(census.calls_after_close.load(SeqCst), 0);
        assert_eq!(Arc::strong_count(&memory), 1);
        for log in logs {
            assert_eq!(Arc::strong_count(&log), 1);
        }
    }
}

fn sorted(mut events: Vec<Event>) -> Vec<Event> {
    events.sort_by_key(|event| match event {
        Event::ShmClosed { cookie } => *cookie,
        other => panic!("{other:?} after the end"),
    });
    events
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 200,
        max_shrink_time: 60_000, // A failing wait takes its whole deadline each time.
        ..ProptestConfig::default()
    })]

    #[test]
    fn bus_behaves_as_its_model_and_leaves_nothing(
        ops in proptest::collection::vec(op(), 0..200),
        order in proptest::collection::vec(any::<u8>(), 0..16),
    ) {
        let mut world = World::new();
        for op in &ops {
            world.step(op);
        }
        world.end(&order);
    }
}
