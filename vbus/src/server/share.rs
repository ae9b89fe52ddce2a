//! Memory and descriptors of a `SHM`, checked and made into a request.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::Errno;
use vm_memory::GuestAddress;

use super::CutOff;
use super::outbox::MessageWakeUp;
use super::post::PostedWakeUp;
use super::session::Session;
use super::space::{AddError, PAGE_BYTES};
use crate::abi::wire::shm_flag;
use crate::eventfd;
use crate::memory::{MemoryContext, Region};
use crate::residency::{Residency, SECTIONS_BYTES, map_bytes};
use crate::verbs::{ShmRequest, SignalRequest, WakeUp};
use crate::wire::ShmBody;

impl Session {
    /// The request that `body` stands for, with its descriptors in the order of the flags.
    ///
    /// # Errors
    /// Inside: refused. Outside: the client sent what no client sends by mistake.
    pub(super) fn shm_request(
        &mut self,
        id: (u16, u64),
        body: &ShmBody,
        fds: Vec<OwnedFd>,
    ) -> Result<Result<ShmRequest, Errno>, CutOff> {
        if let Err(errno) = self.membership() {
            return Ok(Err(errno));
        }
        let mut fds = fds.into_iter();
        let mut fd_if = |flag| (body.flags & flag != 0).then(|| fds.next()).flatten();
        let memfd = fd_if(shm_flag::MEMFD);
        let doorbell = fd_if(shm_flag::DOORBELL);
        let wake_up = fd_if(shm_flag::WAKE_UP);

        let region = match self.region(body, memfd) {
            Ok(region) => region,
            Err(AddError::Refused(errno)) => return Ok(Err(errno)),
            Err(AddError::Hostile(source)) => {
                return Err(self.condemn(id, CutOff::Memory { source }));
            }
        };
        let check = |fd| eventfd::check(fd).map_err(|source| CutOff::Eventfd { source });
        let (doorbell, wake_up) = match (doorbell.map(check), wake_up.map(check)) {
            (Some(Err(fault)), _) | (_, Some(Err(fault))) => return Err(self.condemn(id, fault)),
            (doorbell, wake_up) => (doorbell.and_then(Result::ok), wake_up.and_then(Result::ok)),
        };
        let signal = match (doorbell, wake_up) {
            (None, _) => None,
            (Some(doorbell), wake_up) => {
                let wake_up: Arc<dyn WakeUp> = match wake_up {
                    Some(eventfd) => match self.poster() {
                        Ok(poster) => Arc::new(PostedWakeUp { eventfd, poster }),
                        Err(_) => return Ok(Err(Errno::OPNOTSUPP)),
                    },
                    None => Arc::new(MessageWakeUp {
                        outbox: Arc::clone(self.outbox()),
                        cookie: body.cookie,
                    }),
                };
                Some(SignalRequest {
                    offset: body.signal_offset,
                    doorbell,
                    wake_up,
                })
            }
        };
        Ok(Ok(ShmRequest {
            id: body.id,
            priority: body.priority,
            cookie: body.cookie,
            region,
            signal,
        }))
    }

    /// Learns which pages of the client's memory are there.
    ///
    /// # Errors
    /// Inside: refused. Outside: the client sent what no client sends by mistake.
    pub(super) fn add_pages(
        &mut self,
        id: (u16, u64),
        num_pages: u64,
        fds: Vec<OwnedFd>,
    ) -> Result<Result<(), Errno>, CutOff> {
        if let Err(errno) = self.membership() {
            return Ok(Err(errno));
        }
        let Ok(poster) = self.poster() else {
            return Ok(Err(Errno::OPNOTSUPP));
        };
        let Ok([map, sections, asked, served]) = <[OwnedFd; 4]>::try_from(fds) else {
            return Ok(Err(Errno::INVAL));
        };
        let check = |fd| eventfd::check(fd).map_err(|source| CutOff::Eventfd { source });
        let (eventfd, served) = match (check(asked), check(served)) {
            (Ok(asked), Ok(served)) => (asked, served),
            (Err(fault), _) | (_, Err(fault)) => return Err(self.condemn(id, fault)),
        };
        let asked = Arc::new(PostedWakeUp { eventfd, poster });
        let membership = match self.membership() {
            Ok(membership) => membership,
            Err(errno) => return Ok(Err(errno)),
        };
        let bytes = map_bytes(num_pages).unwrap_or(usize::MAX) as u64;
        let bytes = bytes.saturating_add(SECTIONS_BYTES as u64);
        let charge = match membership.member.charge_bytes(bytes) {
            Ok(charge) => charge,
            Err(errno) => return Ok(Err(errno)),
        };
        match Residency::new(num_pages, (map, sections), asked, served).map_err(AddError::from) {
            Ok(residency) => Ok(membership.space.set_residency(residency, charge)),
            Err(AddError::Refused(errno)) => Ok(Err(errno)),
            Err(AddError::Hostile(source)) => Err(self.condemn(id, CutOff::Memory { source })),
        }
    }

    fn region(&self, body: &ShmBody, memfd: Option<OwnedFd>) -> Result<Region, AddError> {
        let invalid = AddError::Refused(Errno::INVAL);
        let Ok(len) = usize::try_from(body.len) else {
            return Err(invalid);
        };
        if let Some(memfd) = memfd {
            if !body.start.is_multiple_of(PAGE_BYTES) {
                return Err(invalid);
            }
            return Region::from_memfd_at(memfd, body.start, len).map_err(AddError::from);
        }
        let membership = self.membership().map_err(AddError::Refused)?;
        let ram = membership.space.snapshot();
        Region::from_ram(&ram, GuestAddress(body.start), len).map_err(AddError::from)
    }
}
