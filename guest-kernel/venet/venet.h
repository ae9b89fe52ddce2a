/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Driver of "virtual-ethernet" interfaces of a virtual bus: what its files share.
 *
 * main.c		the interface as the kernel sees it
 * connection.c		the connection to the device: negotiation, rings
 * link.c		the link: whether frames flow
 * tx.c			transmit
 * rx.c, rx_buffer.c	receive
 * ethtool.c		settings and statistics
 *
 * What changes a connection holds the RTNL.
 *
 * The host can be gone for a while. Then verbs fail with -ENODEV, and nothing else fails for that
 * reason: the interface has no carrier, what is set is kept, and a connection that is of no use any
 * more stays, because to close it would be to wait for the host. The bus says when the device is back
 * (venet_returned()) or gone for good (venet_remove()).
 */
#ifndef VENET_H
#define VENET_H

#include <linux/if_ether.h>
#include <linux/netdevice.h>
#include <linux/timer.h>
#include <linux/u64_stats_sync.h>
#include <linux/workqueue.h>

#include <alacrity/vbus.h>
#include <alacrity/vbus_ring.h>

/* Slots of the rings until ethtool -G says otherwise, and its limits. */
#define VENET_DEFAULT_SLOTS	256
#define VENET_MIN_SLOTS		32
/* A slot's segments have a fixed place in the pool, which the ABI limits. */
#define VENET_SEGMENTS_BYTES	(VENET_MAX_SEGMENTS * sizeof(struct venet_segment))
#define VENET_MAX_SLOTS		VBUS_RING_MAX_SLOTS
#define VENET_EVENT_SLOTS	8
/* Frames on the way that make the transmitter look for returns, until ethtool -C says otherwise. */
#define VENET_DEFAULT_RECLAIM_SLOTS	32

/* Bits of VENET_CAP_GROUP_RX that ethtool -K gro-hw switches. */
#define VENET_RX_GSO_CAPS						\
	(VENET_RX_CAP_TSO4 | VENET_RX_CAP_TSO6 | VENET_RX_CAP_ECN | VENET_RX_CAP_USO)

/* The meta of a slot, as words and as fields. */
union venet_meta {
	__le64 words[2];
	struct venet_frame_meta frame;
};

#define venet_add(stats, field, value)				\
	do {							\
		u64_stats_update_begin(&(stats)->syncp);	\
		u64_stats_add(&(stats)->field, value);		\
		u64_stats_update_end(&(stats)->syncp);		\
	} while (0)
#define venet_count(stats, field) venet_add(stats, field, 1)

/**
 * struct venet_tx_stats - counters of transmission
 * @syncp: keeps readers on 32-bit machines consistent
 * @packets: frames given to the device
 * @bytes: in them
 * @dropped: frames that were not
 * @batches: publications to the ring
 * @doorbells: those that the host had to be woken for
 * @scattered: frames with a list of segments
 * @linearized: frames copied because their list was too long
 * @ring_full: times that the queue was stopped for want of a slot
 * @notify_requests: times that the host was asked to tell when it is done
 * @timeouts: times that it did not go on
 */
struct venet_tx_stats {
	struct u64_stats_sync syncp;
	u64_stats_t packets;
	u64_stats_t bytes;
	u64_stats_t dropped;
	u64_stats_t batches;
	u64_stats_t doorbells;
	u64_stats_t scattered;
	u64_stats_t linearized;
	u64_stats_t ring_full;
	u64_stats_t notify_requests;
	u64_stats_t timeouts;
};

/**
 * struct venet_rx_stats - counters of reception
 * @syncp: keeps readers on 32-bit machines consistent
 * @packets: frames given to the stack
 * @bytes: in them
 * @dropped: frames lost for want of memory
 * @errors: frames that made no sense
 * @slots: slots that came back
 * @empty: slots that came back without a frame
 * @copied: frames small enough to be copied
 * @merged: frames in several slots
 * @gso: frames to be segmented, if ever, by us
 * @no_memory: times that there was no memory for a buffer
 * @doorbells: times that the host had to be woken to take buffers
 */
struct venet_rx_stats {
	struct u64_stats_sync syncp;
	u64_stats_t packets;
	u64_stats_t bytes;
	u64_stats_t dropped;
	u64_stats_t errors;
	u64_stats_t slots;
	u64_stats_t empty;
	u64_stats_t copied;
	u64_stats_t merged;
	u64_stats_t gso;
	u64_stats_t no_memory;
	u64_stats_t doorbells;
};

/**
 * struct venet_tx - transmission; all under the lock of the transmit queue
 * @ring: while connected
 * @skbs: by slot: what is out, else NULL
 * @segments: pool for scattered frames, VENET_MAX_SEGMENTS for each slot
 * @pool: its memory, if it was negotiated
 * @num_slots: of the ring, and of the next one
 * @pending: slots that are filled and not published yet
 * @outstanding: slots that are not reclaimed yet, the pending ones included
 * @outstanding_bytes: in them
 * @reclaim_slots: so many outstanding ones are worth a look by the transmitter (tx-frames)
 * @is_armed: the host was asked to tell when it returns slots
 * @num_interrupts: of the ring
 * @stats: counters
 */
struct venet_tx {
	struct vbus_ring *ring;
	struct sk_buff **skbs;
	struct venet_segment *segments;
	struct vbus_shm pool;
	u32 num_slots;
	u32 pending;
	u32 outstanding;
	u32 outstanding_bytes;
	u32 reclaim_slots;
	bool is_armed;
	u64 num_interrupts;
	struct venet_tx_stats stats;
};

/**
 * struct venet_rx_buffer - pages that one slot receives into
 * @page: the first of them, or NULL
 * @size: bytes of all of them
 * @offset: first byte that is not in use yet
 * @num_refs: references to @page that we hold and no skb does
 */
struct venet_rx_buffer {
	struct page *page;
	u32 size;
	u32 offset;
	u32 num_refs;
};

/**
 * struct venet_rx - reception; all of NAPI, or of whoever has disabled it
 * @ring: while connected
 * @buffers: by slot
 * @num_slots: of the ring, and of the next one
 * @min_bytes: what is left of a buffer is not used again if it is less
 * @batch: slots that are published at once
 * @is_armed: the host was asked to tell when it returns slots
 * @num_interrupts: of the ring
 * @stats: counters
 */
struct venet_rx {
	struct vbus_ring *ring;
	struct venet_rx_buffer *buffers;
	u32 num_slots;
	u32 min_bytes;
	u32 batch;
	bool is_armed;
	u64 num_interrupts;
	struct venet_rx_stats stats;
};

/**
 * struct venet - an interface
 * @dev: the kernel's side
 * @vdev: the bus's side
 * @mac: what the device says is its address
 * @napi: receives, and reclaims what was transmitted
 * @timer: schedules @napi for what nobody else does
 * @tx: transmission
 * @rx: reception
 * @events: ring of events, if they were negotiated
 * @event_work: looks at it
 * @reset_work: connects anew after a fault
 * @tx_caps: what the device does for us
 * @rx_caps: what it leaves to us now
 * @is_connected: the rings are shared
 * @is_link_up: frames flow
 * @is_broken: the device broke the rules of a ring; until the next connection
 * @num_event_interrupts: of the event ring
 * @num_resets: connections after the first
 */
struct venet {
	struct net_device *dev;
	struct vbus_device *vdev;
	u8 mac[ETH_ALEN];
	struct napi_struct napi;
	struct timer_list timer;
	struct venet_tx tx;
	struct venet_rx rx;
	struct vbus_ring *events;
	struct work_struct event_work;
	struct delayed_work reset_work;
	u32 tx_caps;
	u32 rx_caps;
	bool is_connected;
	bool is_link_up;
	bool is_broken;
	u64 num_event_interrupts;
	u64 num_resets;
};

/* connection.c */
int venet_connect(struct venet *venet, u32 rx_caps);
void venet_disconnect(struct venet *venet);
int venet_reconnect(struct venet *venet);
int venet_resize(struct venet *venet, u32 rx_slots, u32 tx_slots);
int venet_renegotiate_rx(struct venet *venet, u32 rx_caps);
void venet_fault(struct venet *venet, const char *what);

/* link.c */
int venet_link_up(struct venet *venet);
int venet_link_down(struct venet *venet);
int venet_query_link(struct venet *venet, struct venet_link_info *info);
void venet_post_events(struct venet *venet, u32 num_slots);
void venet_event_work(struct work_struct *work);

/* main.c */
u32 venet_rx_caps_of(netdev_features_t features);

/* tx.c */
netdev_tx_t venet_start_xmit(struct sk_buff *skb, struct net_device *dev);
netdev_features_t venet_features_check(struct sk_buff *skb, struct net_device *dev,
				       netdev_features_t features);
void venet_tx_poll(struct venet *venet, int budget);
bool venet_tx_drain(struct venet *venet, u32 most_us);
void venet_tx_free(struct venet *venet, bool is_leaked);

/* rx.c */
int venet_poll(struct napi_struct *napi, int budget);
void venet_start_timer(struct venet *venet);
void venet_rx_discard(struct venet *venet);

/* rx_buffer.c */
void venet_rx_init(struct venet_rx *rx, u32 rx_caps);
void venet_rx_refill(struct venet *venet, gfp_t gfp, bool is_all);
void venet_rx_free(struct venet_rx *rx);
u32 venet_rx_max_mtu(u32 rx_caps);
u32 venet_rx_buffer_room(const struct venet_rx_buffer *buffer);
void *venet_rx_buffer_data(const struct venet_rx_buffer *buffer);
struct sk_buff *venet_rx_build(struct venet_rx *rx, struct venet_rx_buffer *buffer, u32 len);
void venet_rx_add_frag(struct venet_rx *rx, struct sk_buff *skb, struct venet_rx_buffer *buffer,
		       u32 skip, u32 len);

/* ethtool.c */
extern const struct ethtool_ops venet_ethtool_ops;

#endif /* VENET_H */
