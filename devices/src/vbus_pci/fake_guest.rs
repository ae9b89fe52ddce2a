//! A guest for tests: it drives a connector to a bus with echo devices, on the heap.

use std::sync::Arc;

use parking_lot::Mutex;
use rustix::io::Errno;
use vbus::abi::pci::{
    self, Call, Channel, DeviceCall, EventQueue, NO_SIGNAL, NO_VECTOR, NUM_EVENT_QUEUES, Negotiate,
    Open, REGISTERS_BAR, Registers, STATUS_PENDING, Shm, VERSION, func,
};
use vbus::abi::{RING_SIGNAL_OFFSET, pci::PORTS_BAR};
use vbus::bus::Host;
use vbus::memory::Region;
use vbus::ring::{Geometry, North, Slot};
use vbus::signal::{self, Side, SignalReceiver, SignalSender};
use vbus::test_utils::{ECHO_VERSION, EchoCensus, add_echo, echo_host};
use vbus::verbs::{EventSink, Verbs};
use vm_memory::{Bytes, GuestAddress};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::{OnLoss, Uplink, VbusPci};
use crate::GuestRam;
use crate::pci::PciFunction;
use crate::test_utils::FakeVectors;

/// Bytes of the guest's memory, which starts at [`RAM_START`].
pub const RAM_BYTES: usize = 1 << 20;
/// First address of memory.
pub const RAM_START: u64 = 0x1_0000;
/// Where calls are made, one page for each thread.
pub const CALLS: u64 = RAM_START;
/// Where the event queues are, one page each.
pub const QUEUES: u64 = RAM_START + 0x2_0000;
/// Pages for whatever a test shares.
pub const SHMS: u64 = RAM_START + 0x4_0000;
/// Data of calls.
pub const DATA: u64 = RAM_START + 0x8_0000;

/// The embedded bus.
struct TestUplink {
    host: Arc<Host>,
    ram: GuestRam,
}

impl Uplink for TestUplink {
    fn attach(
        &self,
        events: Arc<dyn EventSink>,
        _on_loss: OnLoss,
    ) -> Result<Arc<dyn Verbs + Send + Sync>, Errno> {
        let member = self.host.join("bus", 1)?;
        let client = member.attach(Arc::new(self.ram.clone()), events)?;
        Ok(Arc::new(client))
    }
}

/// The guest's end of an event queue.
struct Queue {
    north: North,
    to_host: SignalSender<Region>,
    from_host: SignalReceiver<Region>,
}

/// A guest with its connector, and the host with the bus `bus`.
pub struct FakeGuest {
    /// The connector.
    pub function: Arc<VbusPci>,
    /// Its memory.
    pub ram: GuestRam,
    /// The host of the bus.
    pub host: Arc<Host>,
    /// What is alive of the devices.
    pub census: Arc<EchoCensus>,
    queues: Mutex<Vec<Queue>>,
}

impl std::fmt::Debug for FakeGuest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FakeGuest").finish_non_exhaustive()
    }
}

/// Status and arguments after a call.
pub type Answer<T> = Result<(u32, T), Errno>;

#[expect(clippy::unwrap_used, reason = "a test cannot go on")]
impl FakeGuest {
    /// A guest that has done nothing yet, on a bus with echo devices `d0`, `d1`, …
    ///
    /// # Panics
    /// The host is out of memory, descriptors or threads.
    pub fn new(num_devices: usize) -> Self {
        Self::behind(num_devices, |uplink| uplink)
    }

    /// As [`FakeGuest::new`], with what `wrap` makes of the way to the bus.
    ///
    /// # Panics
    /// The host is out of memory, descriptors or threads.
    pub fn behind(
        num_devices: usize,
        wrap: impl FnOnce(Arc<dyn Uplink>) -> Arc<dyn Uplink>,
    ) -> Self {
        let (host, census) = echo_host();
        host.create_bus("bus").unwrap();
        for idx in 0..num_devices {
            add_echo(&host, "bus", &format!("d{idx}"));
        }
        let ram = GuestRam::from_ranges(&[(GuestAddress(RAM_START), RAM_BYTES)]).unwrap();
        let uplink = TestUplink {
            host: Arc::clone(&host),
            ram: ram.clone(),
        };
        let uplink = wrap(Arc::new(uplink));
        let function = VbusPci::new("vbus".into(), uplink, ram.clone(), &FakeVectors).unwrap();
        function.write_config(4, &[7, 0]);
        FakeGuest {
            function: Arc::new(function),
            ram,
            host,
            census,
            queues: Mutex::default(),
        }
    }

    /// A guest that is started, with event queues of `num_slots` slots, all of them published, and
    /// interrupts wanted. Queue `n` has vector `n`.
    ///
    /// # Panics
    /// It cannot be started.
    pub fn started(num_devices: usize, num_slots: u32) -> Self {
        let guest = Self::new(num_devices);
        guest.start(num_slots);
        guest
    }

    /// As [`FakeGuest::started`], after a reset.
    ///
    /// # Panics
    /// It cannot be started.
    pub fn start(&self, num_slots: u32) {
        self.negotiate().unwrap();
        for queue in 0..NUM_EVENT_QUEUES {
            self.add_queue(queue, num_slots).unwrap();
            self.publish(queue, num_slots);
        }
        self.call(func::START, &[0u8; 8]).unwrap();
    }

    /// Makes the call at `addr`; what became of it, `None` if it was not answered.
    ///
    /// # Panics
    /// `addr` is not in memory.
    pub fn call_at<T>(&self, addr: u64, func: u32, args: &T) -> Option<Answer<T>>
    where
        T: IntoBytes + FromBytes + Immutable + KnownLayout,
    {
        self.write_call(addr, func, args);
        self.function
            .write_bar(REGISTERS_BAR, register_of_call(), &addr.to_le_bytes());
        self.answer_at(addr)
    }

    /// Makes channel `channel` find its calls at `addr`.
    ///
    /// # Errors
    /// The status.
    pub fn add_channel(&self, channel: u32, addr: u64) -> Result<(), Errno> {
        let mut args = Channel::new_zeroed();
        args.channel = channel.into();
        args.addr = addr.into();
        self.call(func::CHANNEL, &args).map(drop)
    }

    /// Makes the call of a channel.
    pub fn fast_call(&self, channel: u32) {
        let offset = pci::port::FAST_CALL.into();
        self.function
            .write_bar(PORTS_BAR, offset, &channel.to_le_bytes());
    }

    /// Writes a call to memory.
    ///
    /// # Panics
    /// `addr` is not in memory.
    pub fn write_call<T: IntoBytes + Immutable>(&self, addr: u64, func: u32, args: &T) {
        let mut call = Call::new_zeroed();
        call.func = func.into();
        call.status = STATUS_PENDING.into();
        let bytes = args.as_bytes();
        call.args
            .get_mut(..bytes.len())
            .unwrap()
            .copy_from_slice(bytes);
        self.ram
            .write_slice(call.as_bytes(), GuestAddress(addr))
            .unwrap();
    }

    /// What became of the call at `addr`.
    ///
    /// # Panics
    /// `addr` is not in memory.
    pub fn answer_at<T: FromBytes>(&self, addr: u64) -> Option<Answer<T>> {
        let mut call = Call::new_zeroed();
        self.ram
            .read_slice(call.as_mut_bytes(), GuestAddress(addr))
            .unwrap();
        let status = call.status.get().cast_signed();
        if call.status.get() == STATUS_PENDING {
            return None;
        }
        if status < 0 {
            return Some(Err(Errno::from_raw_os_error(-status)));
        }
        let (args, _) = T::read_from_prefix(&call.args).ok()?;
        Some(Ok((status.cast_unsigned(), args)))
    }

    /// Makes a call that is answered.
    ///
    /// # Errors
    /// Its status.
    ///
    /// # Panics
    /// It is not answered.
    pub fn call<T>(&self, func: u32, args: &T) -> Answer<T>
    where
        T: IntoBytes + FromBytes + Immutable + KnownLayout,
    {
        self.call_at(CALLS, func, args).expect("an answer")
    }

    /// # Errors
    /// Its status.
    pub fn negotiate(&self) -> Answer<Negotiate> {
        let mut args = Negotiate::new_zeroed();
        args.version = VERSION.into();
        args.capabilities = u64::MAX.into();
        self.call(func::NEGOTIATE, &args)
    }

    /// Makes a ring and gives it to the host.
    ///
    /// # Errors
    /// The status.
    ///
    /// # Panics
    /// The ring does not fit its page.
    pub fn add_queue(&self, queue: u32, num_slots: u32) -> Answer<EventQueue> {
        let geometry = Geometry::new(num_slots).unwrap();
        let addr = QUEUES + u64::from(queue) * 4096;
        let region = Region::from_ram(&self.ram, GuestAddress(addr), 4096).unwrap();
        let north = North::create(region.clone(), geometry).unwrap();
        let (to_host, from_host) =
            signal::attach(region.clone(), RING_SIGNAL_OFFSET, Side::North).unwrap();
        assert!(from_host.enable());
        let mut queues = self.queues.lock();
        queues.truncate(usize::try_from(queue).unwrap());
        queues.push(Queue {
            north,
            to_host,
            from_host,
        });
        drop(queues);
        let mut args = EventQueue::new_zeroed();
        args.queue = queue.into();
        args.vector = queue.into();
        args.addr = addr.into();
        args.len = u32::try_from(geometry.len_bytes()).unwrap().into();
        self.call(func::EVENT_QUEUE, &args)
    }

    /// Publishes empty slots, and rings if the host wants that; true if it did.
    ///
    /// # Panics
    /// There is no such queue.
    pub fn publish(&self, queue: u32, num_slots: u32) -> bool {
        let mut queues = self.queues.lock();
        let own = queues.get_mut(usize::try_from(queue).unwrap()).unwrap();
        let slots = vec![Slot::default(); usize::try_from(num_slots).unwrap()];
        own.north.publish(&slots);
        let must_ring = own.to_host.inject();
        if must_ring {
            self.ring(queue);
        }
        must_ring
    }

    /// Rings signal `number`, past all eventfds.
    pub fn ring(&self, number: u32) {
        let offset = pci::port::DOORBELL.into();
        self.function
            .write_bar(PORTS_BAR, offset, &number.to_le_bytes());
    }

    /// Kind and address of the events in `queue`, whose slots are not published again. Wants an
    /// interrupt for the next one.
    ///
    /// # Panics
    /// The host broke the rules.
    pub fn events(&self, queue: u32) -> Vec<(u64, u64)> {
        let mut queues = self.queues.lock();
        let own = queues.get_mut(usize::try_from(queue).unwrap()).unwrap();
        let mut events = Vec::new();
        let mut slots = [Slot::default(); 16];
        loop {
            own.from_host.disable();
            let count = own.north.reap(&mut slots).unwrap();
            let slots = slots.get(..count).unwrap();
            events.extend(slots.iter().map(|slot| (slot.meta[0], slot.addr)));
            if count == 0 && own.from_host.enable() {
                return events;
            }
        }
    }

    /// Opens an interface.
    ///
    /// # Errors
    /// The status.
    pub fn open(&self, id: u32) -> Result<u64, Errno> {
        let mut args = Open::new_zeroed();
        args.id = id.into();
        args.version = ECHO_VERSION.into();
        let (_, open) = self.call(func::OPEN, &args)?;
        Ok(open.handle.get())
    }

    /// Calls a device with data at [`DATA`]; the result, and the data afterwards.
    ///
    /// # Errors
    /// The status.
    ///
    /// # Panics
    /// There is too much data.
    pub fn device_call(
        &self,
        handle: u64,
        func: u32,
        data: &[u8],
    ) -> Result<(u32, Vec<u8>), Errno> {
        self.ram.write_slice(data, GuestAddress(DATA)).unwrap();
        let mut args = DeviceCall::new_zeroed();
        args.handle = handle.into();
        args.func = func.into();
        args.len = u32::try_from(data.len()).unwrap().into();
        args.addr = DATA.into();
        let (result, _) = self.call(func::DEVICE_CALL, &args)?;
        let mut after = vec![0; data.len()];
        self.ram.read_slice(&mut after, GuestAddress(DATA)).unwrap();
        Ok((result, after))
    }

    /// What [`FakeGuest::share`] shares unless it is told otherwise: page `id` without a signal.
    pub fn shm(handle: u64, id: u32, cookie: u64) -> Shm {
        let mut args = Shm::new_zeroed();
        args.handle = handle.into();
        args.id = id.into();
        args.cookie = cookie.into();
        args.addr = (SHMS + u64::from(id) * 4096).into();
        args.len = 4096.into();
        args.signal_offset = NO_SIGNAL.into();
        args.vector = NO_VECTOR.into();
        args
    }

    /// Shares memory; the number of its signal.
    ///
    /// # Errors
    /// The status.
    pub fn share(&self, shm: &Shm) -> Result<u32, Errno> {
        let (_, shm) = self.call(func::SHM, shm)?;
        Ok(shm.signal.get())
    }

    /// Closes a connection.
    ///
    /// # Errors
    /// The status.
    pub fn close(&self, handle: u64) -> Result<(), Errno> {
        self.call(func::CLOSE, &handle).map(drop)
    }

    /// Resets the connector.
    pub fn reset(&self) {
        let offset = std::mem::offset_of!(Registers, reset) as u64;
        self.function
            .write_bar(REGISTERS_BAR, offset, &[1, 0, 0, 0]);
    }
}

/// Offset of the register that takes the address of a call.
pub fn register_of_call() -> u64 {
    std::mem::offset_of!(Registers, call) as u64
}
