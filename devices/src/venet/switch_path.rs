//! The way of a frame through a switch.

use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed};

use super::frame::{Frame, Scratch};
use super::mac_table::Source;
use super::path::Path;
use super::port::Port;
use super::switch::{End, Switch, SwitchPort};

/// What one port's worker knows of the switch.
pub(super) struct SwitchPath {
    switch: Arc<Switch>,
    /// The port that frames come from; `None` if it is gone, and then they go nowhere.
    own: Option<Arc<SwitchPort>>,
    name: String,
    /// All ports by index, as they were at `generation`.
    ports: Vec<Option<Arc<SwitchPort>>>,
    generation: Option<u64>,
    pub(super) now_ms: u64,
    /// Ports that were given a frame since the last flush.
    touched: Vec<u8>,
}

impl SwitchPath {
    pub(super) fn new(switch: Arc<Switch>, own: Arc<SwitchPort>) -> Self {
        let name = own.name().to_owned();
        Self::with(switch, Some(own), name)
    }

    pub(super) fn of_client(switch: Arc<Switch>, client: &Arc<Port>) -> Self {
        let own = switch.port_of(client);
        Self::with(switch, own, client.name().to_owned())
    }

    fn with(switch: Arc<Switch>, own: Option<Arc<SwitchPort>>, name: String) -> Self {
        let mut path = SwitchPath {
            now_ms: 0,
            switch,
            own,
            name,
            ports: Vec::new(),
            generation: None,
            touched: Vec::with_capacity(super::mac_table::MAX_PORTS),
        };
        path.refresh();
        path
    }

    /// The port that this path belongs to.
    pub(super) fn own(&self) -> Option<&Arc<SwitchPort>> {
        self.own.as_ref()
    }

    /// Sends to one port; what that took.
    fn send_to(
        port: &SwitchPort,
        touched: &mut Vec<u8>,
        frame: &Frame<'_>,
        scratch: &mut Scratch,
    ) -> u32 {
        match &port.end {
            End::Client(client) => {
                let cost = client.deliver(frame, scratch);
                // A batch mostly goes to the same port.
                if touched.last() != Some(&port.port_idx) && !touched.contains(&port.port_idx) {
                    touched.push(port.port_idx);
                }
                cost
            }
            End::Uplink { tap, metrics, .. } => {
                if tap.send(frame, scratch) {
                    metrics.rx_packets.add(1);
                    metrics.rx_bytes.add(frame.len().into());
                } else {
                    metrics.rx_dropped.add(1);
                }
                1
            }
        }
    }

    /// Sends to all ports but the frame's own, if there were not too many copies of such frames.
    fn flood(&mut self, frame: &Frame<'_>, scratch: &mut Scratch) -> u32 {
        let Some(own) = &self.own else {
            return 1;
        };
        let rate = self.switch.flood_rate.load(Relaxed);
        if !own.bucket.lock().take(rate, self.now_ms) {
            own.metrics().tx_dropped.add(1);
            return 1;
        }
        let mut cost = 0_u32;
        for port in self.ports.iter().flatten() {
            if port.port_idx != own.port_idx {
                let more = Self::send_to(port, &mut self.touched, frame, scratch);
                cost = cost.saturating_add(more);
            }
        }
        // One large frame can become thousands, segmented for each of many receivers.
        own.bucket.lock().charge(cost.saturating_sub(1));
        cost
    }
}

impl Path for SwitchPath {
    fn name(&self) -> &str {
        &self.name
    }

    fn refresh(&mut self) {
        self.now_ms = self.switch.now_ms();
        let generation = self.switch.generation.load(Acquire);
        if self.generation != Some(generation) {
            self.generation = Some(generation);
            self.ports = self.switch.ports();
        }
    }

    fn send(&mut self, frame: &Frame<'_>, scratch: &mut Scratch) -> u32 {
        // Borrowed, not cloned: workers of other ports count references to the same ports.
        let Some(own) = &self.own else {
            return 1;
        };
        let now = Switch::seconds(self.now_ms);
        let ageing = self.switch.ageing.load(Relaxed);
        let table = &self.switch.table;
        let source = frame.source();
        if !source.is_station() || table.learn(source, own.port_idx, now, ageing) == Source::Forged
        {
            own.metrics().tx_dropped.add(1);
            return 1;
        }
        let destination = frame.destination();
        let known = if destination.is_multicast() {
            None
        } else {
            table.lookup(destination, now, ageing)
        };
        match known.and_then(|port_idx| self.ports.get(usize::from(port_idx))?.as_ref()) {
            // It is where it came from.
            Some(port) if port.port_idx == own.port_idx => 1,
            Some(port) => Self::send_to(port, &mut self.touched, frame, scratch),
            None => self.flood(frame, scratch),
        }
    }

    fn flush(&mut self) {
        for port_idx in &self.touched {
            if let Some(Some(port)) = self.ports.get(usize::from(*port_idx))
                && let End::Client(client) = &port.end
            {
                client.flush();
            }
        }
        self.touched.clear();
    }
}
