/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * Layouts and numbers that both sides of the virtual bus share, ABI 2, and of the network
 * interface "virtual-ethernet", version 2. Compiles in the kernel and in user space.
 *
 * All fields are little-endian. The rules are in docs/abi.md; the twin of this file is
 * vbus/src/abi.rs with vbus/src/abi/venet.rs, and vbus/tests/abi_layout.rs compares the two.
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

_Static_assert(sizeof(struct vbus_signal_flags) == VBUS_CACHE_LINE_BYTES, "signal flags");
_Static_assert(sizeof(struct vbus_ring_header) == VBUS_RING_SLOTS_OFFSET, "ring header");
_Static_assert(sizeof(struct vbus_ring_slot) == 32, "ring slot");
_Static_assert(sizeof(struct venet_frame_meta) == 16, "frame meta");
_Static_assert(sizeof(struct venet_segment) == 16, "segment");

#endif /* ALACRITY_VBUS_ABI_H */
