//! The ring of vbus as a transport.

use std::mem::offset_of;

use vbus::abi::{RING_SIGNAL_OFFSET, RingHeader};
use vbus::memory::{GuestRam, Region};
use vbus::ring::{Geometry, North, Slot, South};
use vbus::signal::{Side, SignalReceiver, SignalSender, attach};
use vm_memory::GuestAddress;

use super::BenchError;
use super::harness::{NUM_SLOTS, NorthEnd, Sent, SouthEnd, Transport};

const _: () = assert!(offset_of!(RingHeader, signal) == RING_SIGNAL_OFFSET);

/// One ring with its shm-signal.
#[derive(Debug)]
pub struct Ring;

/// The driver's end. It polls for what comes back, so it never asks to be woken.
#[derive(Debug)]
pub struct RingNorth {
    ring: North,
    to_south: SignalSender<Region>,
}

/// The device's end.
#[derive(Debug)]
pub struct RingSouth {
    ring: South,
    to_north: SignalSender<Region>,
    from_north: SignalReceiver<Region>,
    /// North wake-ups that were due; none, as the north polls.
    num_due: u64,
}

impl Transport for Ring {
    type North = RingNorth;
    type South = RingSouth;

    fn connect(ram: &GuestRam) -> Result<(RingNorth, RingSouth), BenchError> {
        let geometry =
            Geometry::new(NUM_SLOTS.into()).map_err(|source| BenchError::Ring { source })?;
        let region = Region::from_ram(ram, GuestAddress(0), geometry.len_bytes())
            .map_err(|source| BenchError::Region { source })?;
        let ends =
            |side| attach(region.clone(), RING_SIGNAL_OFFSET, side).ok_or(BenchError::Signal);
        let (to_south, _) = ends(Side::North)?;
        let (to_north, from_north) = ends(Side::South)?;
        let north = North::create(region.clone(), geometry)
            .map_err(|source| BenchError::Ring { source })?;
        let south = South::attach(region).map_err(|source| BenchError::Ring { source })?;
        let north = RingNorth {
            ring: north,
            to_south,
        };
        let south = RingSouth {
            ring: south,
            to_north,
            from_north,
            num_due: 0,
        };
        Ok((north, south))
    }
}

impl NorthEnd for RingNorth {
    #[inline]
    fn send(&mut self, slots: &[Slot]) -> Result<Sent, BenchError> {
        if (self.ring.room() as usize) < slots.len() {
            return Ok(Sent::default());
        }
        Ok(Sent {
            count: self.ring.publish(slots),
            is_wake_up_due: self.to_south.inject(),
        })
    }

    #[inline]
    fn reclaim(&mut self) -> Result<usize, BenchError> {
        match self.ring.reclaim() {
            Ok(count) => Ok(count as usize),
            Err(source) => Err(BenchError::RingFault { source }),
        }
    }
}

impl SouthEnd for RingSouth {
    #[inline]
    fn take(&mut self, slots: &mut [Slot]) -> Result<usize, BenchError> {
        self.ring
            .take(slots)
            .map_err(|source| BenchError::RingFault { source })
    }

    #[inline]
    fn give_back(&mut self) -> Result<(), BenchError> {
        self.ring.give_back(self.ring.outstanding());
        self.num_due += u64::from(self.to_north.inject());
        Ok(())
    }

    fn stay_awake(&mut self) -> Result<(), BenchError> {
        self.from_north.disable();
        Ok(())
    }

    fn fall_asleep(&mut self) -> Result<bool, BenchError> {
        Ok(self.from_north.enable())
    }
}
