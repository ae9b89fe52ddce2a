//! One queue pair on its worker: what is ready, what to serve, what to watch.
//!
//! The port is watched edge-triggered: an event tells that something changed, and serving goes on
//! until the port says "empty". So a port nobody can serve for now (the guest has no buffers, the
//! queue pair is off) costs nothing, and no event has to be switched off in time.

use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use super::backend::SharedPort;
use super::batch::Progress;
use super::control::ControlQueue;
use super::queue::{NetQueue, QueueFault};
use super::rx::RxQueue;
use super::state::Shared;
use super::tx::TxQueue;

const RX_DOORBELL: u32 = 0;
const TX_DOORBELL: u32 = 1;
const CONTROL_DOORBELL: u32 = 2;
const PORT: u32 = 3;
const KICK: u32 = 4;

/// Serves one queue pair, and the control queue in the case of the first pair.
#[derive(Debug)]
pub(super) struct PairHandler {
    shared: Arc<Shared>,
    pair_idx: u16,
    rx: RxQueue,
    tx: TxQueue,
    control: Option<ControlQueue>,
    port: SharedPort,
    /// What the port is watched for; `None` if it is not watched at all.
    watched: Option<EventSet>,
    is_rx_starved: bool,
    is_tx_blocked: bool,
}

impl PairHandler {
    pub(super) fn new(
        shared: Arc<Shared>,
        pair_idx: u16,
        rx: RxQueue,
        tx: TxQueue,
        control: Option<ControlQueue>,
        port: SharedPort,
    ) -> Self {
        PairHandler {
            shared,
            pair_idx,
            rx,
            tx,
            control,
            port,
            watched: None,
            is_rx_starved: false,
            is_tx_blocked: false,
        }
    }

    /// Serves what the event `source` with `event_set` is about.
    fn serve(&mut self, source: u32, event_set: EventSet) -> Result<(), QueueFault> {
        match source {
            RX_DOORBELL => {
                self.rx.queue.clear_doorbell();
                self.serve_rx()
            }
            TX_DOORBELL => {
                self.tx.queue.clear_doorbell();
                self.serve_tx()
            }
            CONTROL_DOORBELL => {
                if let Some(control) = &self.control {
                    control.queue.clear_doorbell();
                }
                self.serve_control()
            }
            PORT => {
                if self.is_tx_blocked && event_set.contains(EventSet::OUT) {
                    self.serve_tx()?;
                }
                if self.is_rx_starved {
                    return Ok(());
                }
                self.serve_rx()
            }
            KICK => {
                if let Some(kick) = self.shared.kick(self.pair_idx) {
                    // An error means that it was not written to.
                    let _ = kick.read();
                }
                self.serve_control()?;
                self.serve_tx()?;
                self.serve_rx()
            }
            _ => Ok(()),
        }
    }

    fn serve_rx(&mut self) -> Result<(), QueueFault> {
        if !self.shared.is_active(self.pair_idx) {
            return Ok(());
        }
        let filter = self.shared.filter.read();
        let progress = self.rx.serve(&mut *self.port.lock(), &filter)?;
        drop(filter);
        self.is_rx_starved = matches!(progress, Progress::Blocked);
        self.go_on(progress);
        Ok(())
    }

    fn serve_tx(&mut self) -> Result<(), QueueFault> {
        if !self.shared.is_active(self.pair_idx) {
            return Ok(());
        }
        let progress = self.tx.serve(&mut *self.port.lock())?;
        self.is_tx_blocked = matches!(progress, Progress::Blocked);
        self.go_on(progress);
        Ok(())
    }

    fn serve_control(&mut self) -> Result<(), QueueFault> {
        if let Some(control) = &mut self.control {
            let progress = control.serve()?;
            self.go_on(progress);
        }
        Ok(())
    }

    fn go_on(&self, progress: Progress) {
        match progress {
            Progress::Idle | Progress::Blocked => {}
            Progress::More => {
                if let Some(kick) = self.shared.kick(self.pair_idx) {
                    // It fails only when the counter is full, and then we wake up anyway.
                    let _ = kick.write(1);
                }
            }
            Progress::Gone(error) => {
                let metrics = self.rx.queue.metrics();
                if metrics.rx_errors.count_sparsely() {
                    let name = self.shared.interrupt.name();
                    tracing::error!(
                        "{name}: the backend of pair {} failed: {error}",
                        self.pair_idx
                    );
                }
            }
        }
    }

    /// Watches the port for what can be served now.
    fn watch_port(&mut self, ops: &mut EventOps<'_>) -> event_manager::Result<()> {
        let mut wanted = EventSet::EDGE_TRIGGERED;
        wanted.set(EventSet::IN, !self.is_rx_starved);
        wanted.set(EventSet::OUT, self.is_tx_blocked);
        if self.watched == Some(wanted) {
            return Ok(());
        }
        let fd = self.port.lock().fd();
        let events = Events::with_data_raw(fd, PORT, wanted);
        match self.watched {
            None => ops.add(events)?,
            Some(_) => ops.modify(events)?,
        }
        self.watched = Some(wanted);
        Ok(())
    }

    fn watch_all(&mut self, ops: &mut EventOps<'_>) -> event_manager::Result<()> {
        for (queue, data) in self.queues() {
            ops.add(Events::with_data(queue.doorbell(), data, EventSet::IN))?;
        }
        if let Some(kick) = self.shared.kick(self.pair_idx) {
            ops.add(Events::with_data(kick, KICK, EventSet::IN))?;
        }
        self.watch_port(ops)
    }

    /// Watches nothing any more, until the device is reset.
    fn stop(&mut self, ops: &mut EventOps<'_>) {
        // Errors mean that it was not watched.
        for (queue, _) in self.queues() {
            let _ = ops.remove(Events::empty(queue.doorbell()));
        }
        if let Some(kick) = self.shared.kick(self.pair_idx) {
            let _ = ops.remove(Events::empty(kick));
        }
        if self.watched.take().is_some() {
            let fd = self.port.lock().fd();
            let _ = ops.remove(Events::empty_raw(fd));
        }
    }

    fn queues(&self) -> impl Iterator<Item = (&NetQueue, u32)> {
        let control = self.control.as_ref();
        [(&self.rx.queue, RX_DOORBELL), (&self.tx.queue, TX_DOORBELL)]
            .into_iter()
            .chain(control.map(|control| (&control.queue, CONTROL_DOORBELL)))
    }
}

impl MutEventSubscriber for PairHandler {
    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        if !self.shared.is_broken()
            && let Err(fault) = self.serve(events.data(), events.event_set())
        {
            self.shared.fail(&fault);
        }
        if self.shared.is_broken() {
            self.stop(ops);
        } else if let Err(error) = self.watch_port(ops) {
            let name = self.shared.interrupt.name();
            tracing::error!("{name}: cannot watch the backend: {error}");
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = self.watch_all(ops) {
            let name = self.shared.interrupt.name();
            tracing::error!("{name}: cannot watch the queues: {error}");
        }
        // The driver may have filled its queues before anybody listened to the doorbells.
        self.go_on(Progress::More);
    }
}
