//! Commands as a driver sends them.

use std::os::unix::net::UnixDatagram;

use vm_memory::GuestAddress;

use super::super::backend::Backend;
use super::super::fake_driver::{FakeQueue, ram};
use super::super::filter::MacFilter;
use super::super::metrics::NetMetrics;
use super::super::state::SharedMac;
use super::*;
use crate::GuestRam;
use crate::test_utils::fake_interrupt;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 2];
const COMMAND_GPA: u64 = 0x4000;
const ACK_GPA: u64 = 0x8000;

struct Setup {
    ram: GuestRam,
    driver: FakeQueue,
    control: ControlQueue,
    shared: Arc<Shared>,
}

fn setup(features: u64) -> Setup {
    let ram = ram();
    let driver = FakeQueue::new(&ram, 2);
    let interrupt = fake_interrupt(3);
    let metrics = Arc::new(NetMetrics::new(1));
    let queue = driver.net_queue(&interrupt, &metrics, true);
    let sockets = (0..2).map(|_| UnixDatagram::unbound().unwrap()).collect();
    let shared = Shared::new(
        Arc::new(Backend::Datagram(sockets)),
        interrupt,
        Arc::new(SharedMac::new(MAC)),
        features,
        2,
    );
    let shared = Arc::new(shared.unwrap());
    Setup {
        ram,
        driver,
        control: ControlQueue::new(queue, Arc::clone(&shared)),
        shared,
    }
}

impl Setup {
    /// Sends `class`, `number` and `data`; answers the device's acknowledgement.
    fn command(&mut self, class: u32, number: u32, data: &[u8]) -> u32 {
        let mut bytes = vec![class as u8, number as u8];
        bytes.extend(data);
        self.ram
            .write_slice(&bytes, GuestAddress(COMMAND_GPA))
            .unwrap();
        self.ram.write_obj(0xaa_u8, GuestAddress(ACK_GPA)).unwrap();
        self.driver.offer(&[
            (COMMAND_GPA, 2, false),
            (COMMAND_GPA + 2, data.len() as u32, false),
            (ACK_GPA, 1, true),
        ]);
        self.control.serve().unwrap();
        self.ram
            .read_obj::<u8>(GuestAddress(ACK_GPA))
            .unwrap()
            .into()
    }

    fn filter(&self) -> MacFilter {
        self.shared.filter.read().clone()
    }
}

#[test]
fn promiscuous_mode_is_switched() {
    let mut s = setup(u64::MAX);

    let ack = s.command(VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_PROMISC, &[0]);

    assert_eq!(ack, VIRTIO_NET_OK);
    assert!(!s.filter().accepts(&OTHER));
    assert_eq!(s.driver.used(0), (0, 1));
}

#[test]
fn flag_other_than_zero_and_one_is_refused() {
    let mut s = setup(u64::MAX);

    let ack = s.command(VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_ALLMULTI, &[2]);

    assert_eq!(ack, VIRTIO_NET_ERR);
}

#[test]
fn address_is_changed_in_configuration_and_filter() {
    let mut s = setup(u64::MAX);

    let ack = s.command(VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, &OTHER);

    assert_eq!(ack, VIRTIO_NET_OK);
    assert_eq!(s.shared.mac.get(), OTHER);
    assert_eq!(s.filter().mac, OTHER);
}

#[test]
fn address_tables_are_stored() {
    let mut s = setup(u64::MAX);
    s.command(VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_PROMISC, &[0]);
    let mut data = 1_u32.to_le_bytes().to_vec();
    data.extend(OTHER);
    data.extend(0_u32.to_le_bytes());

    let ack = s.command(VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET, &data);

    assert_eq!(ack, VIRTIO_NET_OK);
    assert!(s.filter().accepts(&OTHER));
}

#[test]
fn address_table_with_a_count_beyond_its_data_is_refused() {
    let mut s = setup(u64::MAX);
    let data = [0xff; 16];

    let ack = s.command(VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET, &data);

    assert_eq!(ack, VIRTIO_NET_ERR);
}

#[test]
fn queue_pairs_are_switched_on_and_kicked() {
    let mut s = setup(u64::MAX);

    let ack = s.command(VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, &[2, 0]);

    assert_eq!(ack, VIRTIO_NET_OK);
    assert!(s.shared.is_active(1));
    assert_eq!(s.shared.kick(1).unwrap().read().unwrap(), 1);
}

#[test]
fn more_queue_pairs_than_there_are_is_refused() {
    let mut s = setup(u64::MAX);

    let ack = s.command(VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, &[3, 0]);

    assert_eq!(ack, VIRTIO_NET_ERR);
    assert!(!s.shared.is_active(1));
}

#[test]
fn offloads_that_were_not_negotiated_are_refused() {
    let mut s = setup(1 << VIRTIO_NET_F_CTRL_GUEST_OFFLOADS);

    let ack = s.command(
        VIRTIO_NET_CTRL_GUEST_OFFLOADS,
        VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET,
        &[0x80, 0, 0, 0, 0, 0, 0, 0],
    );

    assert_eq!(ack, VIRTIO_NET_ERR);
}

#[test]
fn command_of_a_feature_that_was_not_negotiated_is_refused() {
    let mut s = setup(0);

    let ack = s.command(VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_PROMISC, &[0]);

    assert_eq!(ack, VIRTIO_NET_ERR);
    assert!(s.filter().is_promiscuous);
}

#[test]
fn unknown_command_is_refused() {
    let mut s = setup(u64::MAX);

    assert_eq!(s.command(99, 0, &[]), VIRTIO_NET_ERR);
}

#[test]
fn overlong_command_is_refused_without_being_read() {
    let mut s = setup(u64::MAX);
    s.driver
        .offer(&[(0, u32::MAX / 2, false), (ACK_GPA, 1, true)]);

    s.control.serve().unwrap();

    let ack: u8 = s.ram.read_obj(GuestAddress(ACK_GPA)).unwrap();
    assert_eq!(u32::from(ack), VIRTIO_NET_ERR);
}

#[test]
fn command_without_room_for_the_answer_is_a_fault() {
    let mut s = setup(u64::MAX);
    s.driver.offer(&[(COMMAND_GPA, 3, false)]);

    let fault = s.control.serve().unwrap_err();

    assert!(matches!(fault, QueueFault::ShortChain { .. }), "{fault}");
}

#[test]
fn readable_buffer_after_the_answer_is_a_fault() {
    let mut s = setup(u64::MAX);
    s.driver
        .offer(&[(ACK_GPA, 1, true), (COMMAND_GPA, 3, false)]);

    let fault = s.control.serve().unwrap_err();

    assert!(matches!(fault, QueueFault::Direction { .. }), "{fault}");
}
