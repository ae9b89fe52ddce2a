//! The north's end of a ring as the guest's kernel modules have it, for tests of both languages
//! against each other.
//!
//! `guest-kernel/include/alacrity/vbus_ring.h` and `guest-kernel/vbus/ring.c` are compiled for this
//! machine by `build.rs`, and called here. Nothing but tests uses this crate.
#![expect(unsafe_code, reason = "calls C")]

use std::cell::RefCell;
use std::ffi::c_void;
use std::fmt;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use vbus::memory::Region;
use vbus::ring::Slot;

/// `struct vbus_ring`.
#[repr(C)]
struct CRing {
    _opaque: [u8; 0],
}

/// `struct north_slot`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CSlot {
    addr: u64,
    meta: [u64; 2],
    len: u32,
}

type Notify = extern "C" fn(*mut CRing, *mut c_void);
type Doorbell = extern "C" fn(*mut c_void);

unsafe extern "C" {
    fn north_new(
        num_slots: u32,
        position: u32,
        notify: Notify,
        doorbell: Doorbell,
        context: *mut c_void,
    ) -> *mut CRing;
    fn north_publish(ring: *mut CRing, slots: *const CSlot, num_slots: u32) -> u32;
    fn north_room(ring: *const CRing) -> u32;
    fn north_free_index(ring: *const CRing) -> u32;
    fn north_signal(ring: *mut CRing) -> bool;
    fn north_returned(ring: *mut CRing) -> i32;
    fn north_read(ring: *const CRing, nth: u32, copy: *mut CSlot) -> u32;
    fn north_release(ring: *mut CRing, num_slots: u32);
    fn north_disable_notify(ring: *mut CRing);
    fn north_enable_notify(ring: *mut CRing) -> bool;
    fn vbus_ring_notify_now(ring: *mut CRing);
    fn vbus_ring_free(ring: *mut CRing);
}

thread_local! {
    /// Memory of the ring that is being made.
    static PAGES: RefCell<Option<Region>> = const { RefCell::new(None) };
}

/// The kernel's `alloc_pages_exact()`.
#[unsafe(no_mangle)]
extern "C" fn north_alloc_pages(bytes: usize) -> *mut c_void {
    let Ok(region) = Region::new_private(bytes) else {
        return ptr::null_mut();
    };
    let start = region
        .slice(0, bytes)
        .map(|slice| slice.ptr_guard_mut().as_ptr());
    PAGES.set(Some(region));
    start.map_or(ptr::null_mut(), <*mut u8>::cast)
}

/// The kernel's `free_pages_exact()`: the region goes with the ring.
#[unsafe(no_mangle)]
extern "C" fn north_free_pages(_memory: *mut c_void) {}

/// How each side wakes the other. Called by the thread that wakes.
pub trait Wires: Send + Sync + 'static {
    /// The north wakes the south.
    fn doorbell(&self);
    /// The south wakes the north.
    fn interrupt(&self);
}

extern "C" fn doorbell<W: Wires>(context: *mut c_void) {
    // SAFETY: `context` is the `wires` of a `Ring`, which lives as long as the C side.
    let wires = unsafe { &*context.cast::<W>() };
    wires.doorbell();
}

extern "C" fn notify<W: Wires>(_ring: *mut CRing, context: *mut c_void) {
    // SAFETY: `context` is the `wires` of a `Ring`, which lives as long as the C side.
    let wires = unsafe { &*context.cast::<W>() };
    wires.interrupt();
}

struct Ring {
    ring: NonNull<CRing>,
    region: Region,
    /// What the C side points to.
    _wires: Arc<dyn Wires>,
}

// SAFETY: the C side is made for several processors: one publishes, one reaps, any signal. `Publisher`
// and `Reaper` exist once for each ring and want `&mut` for what one at a time may do.
unsafe impl Send for Ring {}
// SAFETY: as above.
unsafe impl Sync for Ring {}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: nobody else has the ring any more, and it was not shared through a connection.
        unsafe { vbus_ring_free(self.ring.as_ptr()) };
    }
}

impl Ring {
    fn signal(&self) -> bool {
        // SAFETY: the ring is alive, and any number of threads may signal.
        unsafe { north_signal(self.ring.as_ptr()) }
    }
}

/// Publishes slots.
pub struct Publisher(Arc<Ring>);

/// Reaps slots that are back.
pub struct Reaper {
    ring: Arc<Ring>,
    /// What [`Reaper::returned`] said, less what was released since.
    num_back: u32,
}

/// The interrupt of the ring.
pub struct Interrupt(Arc<Ring>);

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Publisher").field(&self.0.ring).finish()
    }
}

impl fmt::Debug for Reaper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Reaper").field(&self.ring.ring).finish()
    }
}

impl fmt::Debug for Interrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Interrupt").field(&self.0.ring).finish()
    }
}

/// Makes a ring whose next slot is at `position`, which is the start of a lap, and whose turns look
/// as new there: a multiple of 32,768 × `num_slots`.
///
/// `None` if `num_slots` is no power of two up to [`vbus::abi::RING_MAX_SLOTS`].
pub fn north<W: Wires>(
    num_slots: u32,
    position: u32,
    wires: Arc<W>,
) -> Option<(Publisher, Reaper, Interrupt)> {
    let context = Arc::as_ptr(&wires).cast_mut().cast();
    // SAFETY: the functions take `context` for what it is, and `Ring` keeps it alive.
    let ring = unsafe { north_new(num_slots, position, notify::<W>, doorbell::<W>, context) };
    let ring = Arc::new(Ring {
        ring: NonNull::new(ring)?,
        region: PAGES.take()?,
        _wires: wires,
    });
    Some((
        Publisher(Arc::clone(&ring)),
        Reaper {
            ring: Arc::clone(&ring),
            num_back: 0,
        },
        Interrupt(ring),
    ))
}

impl Publisher {
    /// The shared memory.
    pub fn region(&self) -> Region {
        self.0.region.clone()
    }

    /// Slots that can be published now.
    pub fn room(&mut self) -> u32 {
        // SAFETY: the ring is alive; `&mut`: nobody publishes meanwhile.
        unsafe { north_room(self.0.ring.as_ptr()) }
    }

    /// Index of the slot that is published next.
    pub fn next_slot_idx(&mut self) -> u32 {
        // SAFETY: the ring is alive; `&mut`: nobody publishes meanwhile.
        unsafe { north_free_index(self.0.ring.as_ptr()) }
    }

    /// Publishes the first of `slots`, as many as there is room for; how many.
    pub fn publish(&mut self, slots: &[Slot]) -> usize {
        let slots: Vec<CSlot> = slots
            .iter()
            .map(|slot| CSlot {
                addr: slot.addr,
                meta: slot.meta,
                len: slot.len,
            })
            .collect();
        let num_slots = u32::try_from(slots.len()).unwrap_or(u32::MAX);
        // SAFETY: there are `num_slots` slots; the ring is alive; `&mut`: nobody publishes meanwhile.
        let count = unsafe { north_publish(self.0.ring.as_ptr(), slots.as_ptr(), num_slots) };
        usize::try_from(count).unwrap_or(usize::MAX)
    }

    /// Tells the south; true if it had to be woken.
    pub fn signal(&self) -> bool {
        self.0.signal()
    }
}

impl Reaper {
    /// Slots that are back and not released.
    ///
    /// # Errors
    /// The errno: the south broke the rules.
    pub fn returned(&mut self) -> Result<u32, i32> {
        // SAFETY: the ring is alive; `&mut`: nobody reaps meanwhile.
        let result = unsafe { north_returned(self.ring.ring.as_ptr()) };
        self.num_back = u32::try_from(result).map_err(|_| -result)?;
        Ok(self.num_back)
    }

    /// The `nth` of those, with its index.
    ///
    /// # Panics
    /// There are not so many.
    pub fn slot(&mut self, nth: u32) -> (u32, Slot) {
        assert!(nth < self.num_back, "slot {nth} is not back");
        let mut copy = CSlot::default();
        // SAFETY: the ring is alive and `copy` has room; `&mut`: nobody reaps meanwhile.
        let idx = unsafe { north_read(self.ring.ring.as_ptr(), nth, &raw mut copy) };
        let CSlot { addr, meta, len } = copy;
        (idx, Slot { addr, len, meta })
    }

    /// Makes the first `num_slots` of those room for publishing.
    ///
    /// # Panics
    /// There are not so many.
    pub fn release(&mut self, num_slots: u32) {
        assert!(num_slots <= self.num_back, "{num_slots} slots are not back");
        self.num_back -= num_slots;
        // SAFETY: the ring is alive; `&mut`: nobody reaps meanwhile.
        unsafe { north_release(self.ring.ring.as_ptr(), num_slots) }
    }

    /// Stays awake.
    pub fn disable_notify(&mut self) {
        // SAFETY: the ring is alive; `&mut`: nobody reaps meanwhile.
        unsafe { north_disable_notify(self.ring.ring.as_ptr()) }
    }

    /// Asks to be woken; false if something has changed: then disable, and look again.
    #[must_use = "false means that there is work now, and nobody will tell"]
    pub fn enable_notify(&mut self) -> bool {
        // SAFETY: the ring is alive; `&mut`: nobody reaps meanwhile.
        unsafe { north_enable_notify(self.ring.ring.as_ptr()) }
    }

    /// Tells the south; true if it had to be woken.
    pub fn signal(&self) -> bool {
        self.ring.signal()
    }
}

impl Interrupt {
    /// What the kernel does when the interrupt comes: one at a time for each ring.
    pub fn raise(&mut self) {
        // SAFETY: the ring is alive.
        unsafe { vbus_ring_notify_now(self.0.ring.as_ptr()) }
    }
}
