/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * Layouts and numbers that both sides of the virtual bus share, ABI 2, and of the network
 * interface "virtual-ethernet", version 2. Compiles in the kernel and in user space.
 *
 * All fields are little-endian. The rules are in docs/abi.md; the twin of this file is
 * vbus/src/abi.rs with its modules, and vbus/tests/abi_layout.rs compares the two.
 */
#ifndef ALACRITY_VBUS_ABI_H
#define ALACRITY_VBUS_ABI_H

#include <linux/types.h>

/* Bytes of a cache line: what is written by different sides never shares one. */
#define VBUS_CACHE_LINE_BYTES		64
/* Version of this ABI: rings, signals, verbs and events. */
#define VBUS_ABI_VERSION		2
/* Priorities of signals: 0, the lowest, to 7. */
#define VBUS_NUM_PRIORITIES		8

/* First field of a ring: "VBR2". */
#define VBUS_RING_MAGIC			0x32524256
#define VBUS_RING_VERSION		2
/* Most slots of a ring; their number is a power of two. */
#define VBUS_RING_MAX_SLOTS		4096
/* Byte offset of the struct vbus_signal_pair in a ring. */
#define VBUS_RING_SIGNAL_OFFSET		128
/* Byte offset of the first slot in a ring. */
#define VBUS_RING_SLOTS_OFFSET		256

/**
 * struct vbus_signal_flags - one direction of a shm-signal, in a cache line of its own
 * @enabled: not 0: the receiver wants to be woken; written by the receiver only
 * @dirty: not 0: something changed; set by the sender, cleared by the receiver
 * @reserved: zero
 */
struct vbus_signal_flags {
	__le64 enabled;
	__le64 dirty;
	__u8 reserved[48];
} __attribute__((aligned(8)));

/**
 * struct vbus_signal_pair - a shm-signal
 * @to_south: the north sends, the south receives
 * @to_north: the south sends, the north receives
 */
struct vbus_signal_pair {
	struct vbus_signal_flags to_south;
	struct vbus_signal_flags to_north;
} __attribute__((aligned(8)));

/**
 * struct vbus_ring_header - start of a ring; the north writes it before it shares the ring
 * @magic: VBUS_RING_MAGIC
 * @version: VBUS_RING_VERSION
 * @num_slots: a power of two up to VBUS_RING_MAX_SLOTS
 * @slot_bytes: sizeof(struct vbus_ring_slot)
 * @reserved: zero
 * @signal: wakes either side
 */
struct vbus_ring_header {
	__le32 magic;
	__le32 version;
	__le32 num_slots;
	__le32 slot_bytes;
	__u8 reserved[112];
	struct vbus_signal_pair signal;
} __attribute__((aligned(8)));

/**
 * struct vbus_ring_slot - one slot; its last 8 bytes are written and read as one
 * @addr: where the buffer is, in the memory context of the connection
 * @meta: defined by the device class
 * @len: bytes in the buffer, or its capacity
 * @batch: on return: slots that come back with this one, itself included; else 0
 * @turn: 2 * lap + 1 from the north, 2 * lap + 2 from the south, modulo 2^16
 */
struct vbus_ring_slot {
	__le64 addr;
	__le64 meta[2];
	__le32 len;
	__le16 batch;
	__le16 turn;
} __attribute__((aligned(8)));

/*
 * The PCI connector: the function through which a guest reaches its bus.
 */

/* PCI vendor: that of AlacrityVM's bridge. */
#define VBUS_PCI_VENDOR_ID	0x11da
/* PCI device: that of AlacrityVM's bridge. */
#define VBUS_PCI_DEVICE_ID	0x2000
/* PCI revision. AlacrityVM's is 2, and its drivers refuse any other. */
#define VBUS_PCI_REVISION	3
/* PCI class: bridge, other. */
#define VBUS_PCI_CLASS	0x068000
/* BAR of Registers: memory. */
#define VBUS_PCI_REGISTERS_BAR	0
/* BAR of the doorbells: ports. */
#define VBUS_PCI_PORTS_BAR	2
/* BAR of the MSI-X table and its pending bits: memory. */
#define VBUS_PCI_MSIX_BAR	4
/* Bytes of BAR REGISTERS_BAR. */
#define VBUS_PCI_REGISTERS_BAR_BYTES	4096
/* Bytes of BAR PORTS_BAR. */
#define VBUS_PCI_PORTS_BAR_BYTES	256
/* First register: VBPC as text. */
#define VBUS_PCI_MAGIC	0x43504256
/* Version of the connector, negotiated by NEGOTIATE. */
#define VBUS_PCI_VERSION	3
/* Event queues, each for a range of priorities, 0 the least urgent. */
#define VBUS_PCI_NUM_EVENT_QUEUES	4
/* Doorbells: numbers of signals. The first NUM_EVENT_QUEUES are those of the event queues. */
#define VBUS_PCI_NUM_SIGNALS	128
/* MSI-X vectors. */
#define VBUS_PCI_NUM_VECTORS	64
/* Channels for fast calls, one for each vCPU. */
#define VBUS_PCI_NUM_CHANNELS	32
/* "No signal": in Shm::signal_offset and Shm::signal. */
#define VBUS_PCI_NO_SIGNAL	0xffffffffU
/* "No vector of its own": the signal comes as SIGNAL. */
#define VBUS_PCI_NO_VECTOR	0xffffffffU
/* Call::status before the call: what a guest finds there afterwards was not answered. */
#define VBUS_PCI_STATUS_PENDING	0x80000000U
/* Bytes of DeviceInfo::kind. */
#define VBUS_PCI_KIND_BYTES	64
/* Most bytes of DeviceCall::len. */
#define VBUS_PCI_MAX_CALL_BYTES	(64U << 10)

/* Bits of Registers::capabilities and Negotiate::capabilities. */
/*
 * An interface whose host is gone is DEVICE_LOST and keeps its id if it returns. Else it is
 * DEVICE_DROPPED, and what comes later has another id.
 */
#define VBUS_PCI_CAP_DEVICE_LOST	(1ULL << 0)
/* Each signal has a port of its own: PORT_SIGNALS. */
#define VBUS_PCI_CAP_SIGNAL_PORTS	(1ULL << 1)

/**
 * struct vbus_pci_registers - BAR 0. All registers but the last two are read-only.
 * @magic: MAGIC.
 * @version: VERSION.
 * @capabilities: Capabilities offered: VBUS_PCI_CAP_*.
 * @num_event_queues: NUM_EVENT_QUEUES.
 * @num_signals: NUM_SIGNALS.
 * @num_vectors: NUM_VECTORS.
 * @num_channels: NUM_CHANNELS.
 * @num_resets: Resets so far, by whatever cause.
 * @reset: Any write: back to the initial state, all connections closed, before the write returns.
 *	The end of bus mastering does the same.
 * @call: Write: address of a Call, as 8 bytes, or as low then high word. The call is done when the write (of the high word) returns.
 */
struct vbus_pci_registers {
	__le32 magic;
	__le32 version;
	__le64 capabilities;
	__le32 num_event_queues;
	__le32 num_signals;
	__le32 num_vectors;
	__le32 num_channels;
	__le32 num_resets;
	__le32 reset;
	__le64 call;
} __attribute__((aligned(8)));

/* Ports of BAR 2: byte offsets. 32-bit writes, but for PORT_SIGNALS. */
/* The data is the number of a signal: wakes the host's end of that shm-signal. */
#define VBUS_PCI_PORT_DOORBELL	0
/* The data is a channel: does the Call of that channel before the write returns. */
#define VBUS_PCI_PORT_FAST_CALL	4
/*
 * The first of NUM_SIGNALS ports: a write of any width and data to the one of a signal does what its
 * number does at DOORBELL. Only with VBUS_PCI_CAP_SIGNAL_PORTS.
 */
#define VBUS_PCI_PORT_SIGNALS	128

/* Call::func. */
/* Negotiate. First of all; EBUSY the second time until a reset. */
#define VBUS_PCI_FUNC_NEGOTIATE	0
/* EventQueue. Each queue once. */
#define VBUS_PCI_FUNC_EVENT_QUEUE	1
/* No arguments. Attaches to the bus: events begin. Needs all event queues. */
#define VBUS_PCI_FUNC_START	2
/* Channel. Each channel once. */
#define VBUS_PCI_FUNC_CHANNEL	3
/* DeviceInfo. */
#define VBUS_PCI_FUNC_DEVICE_INFO	4
/* Open. */
#define VBUS_PCI_FUNC_OPEN	5
/* DeviceCall. The status is the device's. */
#define VBUS_PCI_FUNC_DEVICE_CALL	6
/* Shm. */
#define VBUS_PCI_FUNC_SHM	7
/* Close. */
#define VBUS_PCI_FUNC_CLOSE	8

/* What a slot of an event queue returns in meta[0]; its addr is the id or cookie. */
/*
 * An interface is on the bus, for the first time or again after DEVICE_LOST: addr is its id.
 */
#define VBUS_PCI_EVENT_DEVICE_ADDED	0
/* An interface left the bus, or this guest was cut off from it: addr is its id. */
#define VBUS_PCI_EVENT_DEVICE_DROPPED	1
/* A signal without a vector of its own: addr is the cookie. */
#define VBUS_PCI_EVENT_SIGNAL	2
/* The host will not touch this shared memory again: addr is the cookie. */
#define VBUS_PCI_EVENT_SHM_CLOSED	3
/*
 * The host's end of an interface is gone, and with it all connections: addr is its id. It comes back
 * with DEVICE_ADDED, or ends with DEVICE_DROPPED. Only with VBUS_PCI_CAP_DEVICE_LOST.
 */
#define VBUS_PCI_EVENT_DEVICE_LOST	4

/**
 * struct vbus_pci_call - A call: in guest memory, at a multiple of 64, inside one page.
 * @func: One of func.
 * @status: In: STATUS_PENDING. Out: a negated errno or a result of at least 0. Written last.
 * @args: The arguments of func, from the first byte on; the rest is zero. Results go to their places.
 */
struct vbus_pci_call {
	__le32 func;
	__le32 status;
	__u8 args[120];
} __attribute__((aligned(8)));

/**
 * struct vbus_pci_negotiate - Arguments of NEGOTIATE.
 * @version: VERSION, else EINVAL.
 * @reserved: Zero.
 * @capabilities: In: wanted. Out: given. VBUS_PCI_CAP_*.
 */
struct vbus_pci_negotiate {
	__le32 version;
	__le32 reserved;
	__le64 capabilities;
} __attribute__((aligned(8)));

/**
 * struct vbus_pci_event_queue - Arguments of EVENT_QUEUE.
 * @queue: Which one: 0 to NUM_EVENT_QUEUES - 1. Events of interfaces use the last, events of
 *	shared memory that of its priority.
 * @vector: MSI-X vector; several queues may share one.
 * @addr: Address of its ring, whose empty slots the guest has published or will publish.
 * @len: Bytes of the ring.
 * @reserved: Zero.
 */
struct vbus_pci_event_queue {
	__le32 queue;
	__le32 vector;
	__le64 addr;
	__le32 len;
	__le32 reserved;
} __attribute__((aligned(8)));

/**
 * struct vbus_pci_channel - Arguments of CHANNEL.
 * @channel: 0 to NUM_CHANNELS - 1.
 * @reserved: Zero.
 * @addr: Address of its Call, which stays there until the reset.
 */
struct vbus_pci_channel {
	__le32 channel;
	__le32 reserved;
	__le64 addr;
} __attribute__((aligned(8)));

/**
 * struct vbus_pci_device_info - Arguments of DEVICE_INFO.
 * @id: Id of an interface on the bus, else ENOENT.
 * @reserved: Zero.
 * @kind: Out: what it speaks, e.g. virtual-ethernet, and zeros, at least one.
 */
struct vbus_pci_device_info {
	__le32 id;
	__le32 reserved;
	__u8 kind[VBUS_PCI_KIND_BYTES];
} __attribute__((aligned(8)));

/**
 * struct vbus_pci_open - Arguments of OPEN.
 * @id: Id of an interface.
 * @version: Version of the device's ABI.
 * @handle: Out: never 0, never used again until the reset.
 */
struct vbus_pci_open {
	__le32 id;
	__le32 version;
	__le64 handle;
} __attribute__((aligned(8)));

/**
 * struct vbus_pci_device_call - Arguments of DEVICE_CALL.
 * @handle: Of the connection.
 * @func: Defined by the device class.
 * @len: Bytes of data, at most MAX_CALL_BYTES.
 * @addr: Address of the data, which the device may change unless it fails.
 */
struct vbus_pci_device_call {
	__le64 handle;
	__le32 func;
	__le32 len;
	__le64 addr;
} __attribute__((aligned(8)));

/**
 * struct vbus_pci_shm - Arguments of SHM.
 * @handle: Of the connection.
 * @cookie: The guest's own number for the memory; comes back in events.
 * @addr: Address of the memory: one range of RAM.
 * @len: Bytes of the memory.
 * @id: Which one: defined by the device class.
 * @priority: 0, the lowest, to 7: picks the event queue.
 * @signal_offset: Byte offset of the signal pair in the memory, or NO_SIGNAL.
 * @vector: MSI-X vector of the signal, or NO_VECTOR; several signals may share one.
 * @signal: Out: what to write to DOORBELL, or NO_SIGNAL.
 */
struct vbus_pci_shm {
	__le64 handle;
	__le64 cookie;
	__le64 addr;
	__le32 len;
	__le32 id;
	__le32 priority;
	__le32 signal_offset;
	__le32 vector;
	__le32 signal;
} __attribute__((aligned(8)));

/**
 * struct vbus_pci_close - Arguments of CLOSE.
 * @handle: Of the connection.
 */
struct vbus_pci_close {
	__le64 handle;
} __attribute__((aligned(8)));

#define VENET_KIND			"virtual-ethernet"
#define VENET_VERSION			2

/* Shared memory of a connection, by its id. */
#define VENET_SHM_ID_RX_RING		0
#define VENET_SHM_ID_TX_RING		1
#define VENET_SHM_ID_TX_SEGMENTS	2
#define VENET_SHM_ID_EVENT_RING		3

/* Functions of call. */
#define VENET_FUNC_LINK_UP		0
#define VENET_FUNC_LINK_DOWN		1
#define VENET_FUNC_MAC_QUERY		2
#define VENET_FUNC_NEGOTIATE		3
#define VENET_FUNC_FLUSH_RX		4
#define VENET_FUNC_LINK_QUERY		5

/* Groups of capabilities. */
#define VENET_CAP_GROUP_TX		0
#define VENET_CAP_GROUP_EVENTS		1
#define VENET_CAP_GROUP_RX		2

/* Bits of VENET_CAP_GROUP_TX: what the driver may leave to the device. */
#define VENET_TX_CAP_SG			(1U << 0)
#define VENET_TX_CAP_TSO4		(1U << 1)
#define VENET_TX_CAP_TSO6		(1U << 2)
#define VENET_TX_CAP_ECN		(1U << 3)
#define VENET_TX_CAP_USO		(1U << 4)
#define VENET_TX_CAP_CSUM		(1U << 5)

/* Bits of VENET_CAP_GROUP_EVENTS. */
#define VENET_EVENT_CAP_LINK_STATE	(1U << 0)

/* Bits of VENET_CAP_GROUP_RX: what the device may leave to the driver. */
#define VENET_RX_CAP_MERGED		(1U << 0)
#define VENET_RX_CAP_TSO4		(1U << 1)
#define VENET_RX_CAP_TSO6		(1U << 2)
#define VENET_RX_CAP_ECN		(1U << 3)
#define VENET_RX_CAP_USO		(1U << 4)
#define VENET_RX_CAP_CSUM		(1U << 5)

/* Events in meta[0] of a slot of the event ring; meta[1] is the argument. */
#define VENET_EVENT_LINK_STATE		0

/* Flags of struct venet_frame_meta. */
#define VENET_FRAME_FLAG_NEEDS_CSUM	(1U << 0)
#define VENET_FRAME_FLAG_DATA_VALID	(1U << 1)
#define VENET_FRAME_FLAG_SG		(1U << 2)
#define VENET_FRAME_FLAG_ECN		(1U << 3)

/* gso_type of struct venet_frame_meta. */
#define VENET_GSO_TYPE_NONE		0
#define VENET_GSO_TYPE_TCP4		1
#define VENET_GSO_TYPE_TCP6		2
#define VENET_GSO_TYPE_UDP		3

#define VENET_ETHERNET_HEADER_BYTES	14
/* What a frame may have more than its MTU and header if it has a VLAN tag. */
#define VENET_VLAN_TAG_BYTES		4
/* Most segments that a frame to be segmented makes; one that makes more is dropped. */
#define VENET_MAX_GSO_SEGMENTS		1024
/* Most bytes of a frame, header included, segmented or not. */
#define VENET_MAX_FRAME_BYTES		(65535 + VENET_ETHERNET_HEADER_BYTES)
/* Most segments of a scattered frame. */
#define VENET_MAX_SEGMENTS		32
/* Most bytes of the pool of segments. */
#define VENET_MAX_SEGMENT_POOL_BYTES	(2U << 20)

/**
 * struct venet_frame_meta - meta of a slot that carries a frame
 * @csum_start: byte of the frame where the checksum starts
 * @csum_offset: where to store it, from csum_start on
 * @gso_size: payload bytes of each segment
 * @hdr_len: bytes of all headers, Ethernet to TCP or UDP
 * @flags: VENET_FRAME_FLAG_*
 * @gso_type: VENET_GSO_TYPE_*
 * @reserved0: zero
 * @count: to transmit, with SG: segments; received: slots of the frame, in the first of them
 * @reserved1: zero
 */
struct venet_frame_meta {
	__le16 csum_start;
	__le16 csum_offset;
	__le16 gso_size;
	__le16 hdr_len;
	__le16 flags;
	__u8 gso_type;
	__u8 reserved0;
	__le16 count;
	__le16 reserved1;
} __attribute__((aligned(8)));

/**
 * struct venet_segment - a part of a scattered frame
 * @addr: address in the memory context of the connection
 * @len: bytes
 * @reserved: zero
 */
struct venet_segment {
	__le64 addr;
	__le32 len;
	__le32 reserved;
} __attribute__((aligned(8)));

/**
 * struct venet_capabilities - data of VENET_FUNC_NEGOTIATE
 * @group: VENET_CAP_GROUP_*
 * @bits: in: what the driver wants; out: what it gets
 */
struct venet_capabilities {
	__le32 group;
	__le32 bits;
};

/**
 * struct venet_link_info - data of VENET_FUNC_LINK_QUERY
 * @mtu: bytes of payload that a frame has at most, unless it is segmented later
 * @is_up: 1 while the backend has a link
 */
struct venet_link_info {
	__le32 mtu;
	__le32 is_up;
};

/* --- The memory interface "page-hints" --------------------------------------------------- */

#define HINTS_KIND			"page-hints"
#define HINTS_VERSION			1

/* Bytes of a page, whatever the guest's own are. */
#define HINTS_PAGE_BYTES		4096
/* Pages that a table has the words of. */
#define HINTS_TABLE_PAGES		(1U << 17)
/* Most bytes of a block that is released. */
#define HINTS_MAX_RELEASE_BYTES		(4U << 20)

/* Ids of shared memory. */
#define HINTS_SHM_ID_RELEASE_RING	0
#define HINTS_SHM_ID_EVENT_RING		1
#define HINTS_SHM_ID_TABLE		16

/* Functions of a call. */
#define HINTS_FUNC_HELLO		0
#define HINTS_FUNC_DISK			1
#define HINTS_FUNC_START		2
#define HINTS_FUNC_STOP			3
#define HINTS_FUNC_RELEASED		4

/* Bits of struct hints_hello_data. */
#define HINTS_FEATURE_RELEASE		(1U << 0)
#define HINTS_FEATURE_TABLE		(1U << 1)
#define HINTS_FEATURE_DROPPED		(1U << 2)

/* Bytes of the serial number of a disk. */
#define HINTS_SERIAL_BYTES		20

/* Values of struct hints_release_meta. */
#define HINTS_RELEASE_KIND_FREE		0
#define HINTS_RELEASE_KIND_EVICTED	1
#define HINTS_RELEASE_RESULT_TAKEN	0
#define HINTS_RELEASE_RESULT_KEPT	1

/* Events in the first word of meta of a slot of the event ring. */
#define HINTS_EVENT_RELEASE_NOW		0
#define HINTS_EVENT_DROPPED		1
#define HINTS_EVENT_SCAN_RATE		2

/* A word of a table: bits and fields from bit 0 on. */
#define HINTS_WORD_STATE_MASK		0x3
#define HINTS_WORD_AGE_SHIFT		2
#define HINTS_WORD_AGE_MAX		7
#define HINTS_WORD_DISK_SHIFT		5
#define HINTS_WORD_DISK_MAX		7
#define HINTS_WORD_SECTOR_SHIFT		8
#define HINTS_WORD_SECTOR_MAX		((1ULL << 40) - 1)
#define HINTS_WORD_SEQUENCE_SHIFT	48

/* States of a page in its word. */
#define HINTS_PAGE_STATE_STABLE		0
#define HINTS_PAGE_STATE_UNUSED		1
#define HINTS_PAGE_STATE_VOLATILE	2
#define HINTS_PAGE_STATE_MAYBE_VOLATILE	3

/**
 * struct hints_hello_data - data of HINTS_FUNC_HELLO
 * @features: HINTS_FEATURE_*; in: what the driver wants; out: what it gets
 * @release_bytes: out: bytes of the smallest block that is worth releasing
 * @num_pages: out: pages from address 0 to the end of RAM
 */
struct hints_hello_data {
	__le32 features;
	__le32 release_bytes;
	__le64 num_pages;
} __attribute__((aligned(8)));

/**
 * struct hints_disk_data - data of HINTS_FUNC_DISK
 * @slot: 1 to 7: how words name it
 * @reserved: zero
 * @serial: serial number of the disk, filled up with zeros
 * @num_sectors: out: sectors of 512 bytes
 */
struct hints_disk_data {
	__u8 slot;
	__u8 reserved[3];
	__u8 serial[HINTS_SERIAL_BYTES];
	__le64 num_sectors;
} __attribute__((aligned(8)));

/**
 * struct hints_release_meta - meta of a slot of the release ring
 * @kind: HINTS_RELEASE_KIND_*
 * @result: when it returns: HINTS_RELEASE_RESULT_*
 * @reserved0: zero
 * @reserved1: zero
 * @num_freed: when it returns: bytes of memory that the host has freed
 */
struct hints_release_meta {
	__u8 kind;
	__u8 result;
	__le16 reserved0;
	__le32 reserved1;
	__le64 num_freed;
} __attribute__((aligned(8)));

_Static_assert(sizeof(struct vbus_signal_flags) == VBUS_CACHE_LINE_BYTES, "signal flags");
_Static_assert(sizeof(struct vbus_ring_header) == VBUS_RING_SLOTS_OFFSET, "ring header");
_Static_assert(sizeof(struct vbus_ring_slot) == 32, "ring slot");
_Static_assert(sizeof(struct vbus_pci_registers) == 48, "connector registers");
_Static_assert(sizeof(struct vbus_pci_call) == 128, "connector call");
_Static_assert(sizeof(struct venet_frame_meta) == 16, "frame meta");
_Static_assert(sizeof(struct venet_segment) == 16, "segment");
_Static_assert(sizeof(struct hints_hello_data) == 16, "hello of hints");
_Static_assert(sizeof(struct hints_disk_data) == 32, "disk of hints");
_Static_assert(sizeof(struct hints_release_meta) == 16, "released block");

#endif /* ALACRITY_VBUS_ABI_H */
