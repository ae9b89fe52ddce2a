// SPDX-License-Identifier: GPL-2.0
/*
 * Transmit: one slot for each frame; the parts of a scattered one are listed in the slot's own place
 * in the pool of segments.
 *
 * When slots are reclaimed. The host copies a frame before it returns its slot, mostly within
 * microseconds, and then the frame is to be freed: its socket may be waiting for room in its send
 * buffer, the queue for room in the ring or in its byte limit (BQL). An interrupt for each return
 * would cost more than the frame. To free a frame at once and to account for it later (skb_orphan())
 * would need none, but take the back-pressure from sockets, which then fill the ring. So the host is
 * asked to tell (the ring is armed) only if somebody waits:
 *
 * - the queue is stopped, by us or by BQL, or
 * - the owner of the last frame has half of its send buffer on the way.
 *
 * Without that, slots are reclaimed whenever somebody comes by: the transmitter if many are out,
 * NAPI if something was received (to TCP, acknowledgments), at last a timer at its next tick, so that
 * no frame, and what it refers to, stays here longer than that. The timer is one of the wheel, which
 * needs no programming of the hardware.
 */
#include <linux/if_vlan.h>
#include <linux/io.h>
#include <linux/ipv6.h>
#include <net/sock.h>

#include "venet.h"

/* So many bytes on the way are worth a look by the transmitter: two frames of the largest size. */
#define VENET_TX_RECLAIM_BYTES	(128U << 10)
/* Slots that are published even if more are to come: the host may begin. */
#define VENET_TX_MAX_PENDING	32U

static struct netdev_queue *venet_txq(const struct venet *venet)
{
	return netdev_get_tx_queue(venet->dev, 0);
}

/* Slots that can be filled. */
static u32 venet_tx_room(const struct venet_tx *tx)
{
	return tx->num_slots - tx->outstanding;
}

/* Frees what came back. In NAPI @budget is not 0. */
static void venet_tx_reclaim(struct venet *venet, int budget)
{
	struct venet_tx *tx = &venet->tx;
	unsigned int num_bytes = 0;
	int nth, num_slots;

	if (unlikely(READ_ONCE(venet->is_broken)))
		return;
	num_slots = vbus_ring_returned(tx->ring);
	if (unlikely(num_slots < 0)) {
		venet_fault(venet, "transmit");
		return;
	}
	if (!num_slots)
		return;
	for (nth = 0; nth < num_slots; nth++) {
		u32 idx = vbus_ring_returned_index(tx->ring, nth);
		struct sk_buff *skb = tx->skbs[idx];

		tx->skbs[idx] = NULL;
		num_bytes += skb->len;
		napi_consume_skb(skb, budget);
	}
	vbus_ring_release(tx->ring, num_slots);
	tx->outstanding_bytes -= num_bytes;
	WRITE_ONCE(tx->outstanding, tx->outstanding - num_slots);
	netdev_tx_completed_queue(venet_txq(venet), num_slots, num_bytes);
}

/* Asks the host to tell when it returns slots. */
static void venet_tx_arm(struct venet *venet)
{
	struct venet_tx *tx = &venet->tx;

	if (tx->is_armed)
		return;
	WRITE_ONCE(tx->is_armed, true);
	venet_count(&tx->stats, notify_requests);
	if (!vbus_ring_enable_notify(tx->ring))
		napi_schedule(&venet->napi);
}

/**
 * venet_tx_poll - reclaims what came back; of NAPI
 * @venet: its link is up
 * @budget: of NAPI
 */
void venet_tx_poll(struct venet *venet, int budget)
{
	struct netdev_queue *txq = venet_txq(venet);
	struct venet_tx *tx = &venet->tx;
	bool was_armed;

	if (!READ_ONCE(tx->outstanding))
		return;
	/* Who holds the lock reclaims, or comes back here; but what was asked for has to be done. */
	if (READ_ONCE(tx->is_armed))
		__netif_tx_lock(txq, smp_processor_id());
	else if (!__netif_tx_trylock(txq))
		return;
	was_armed = tx->is_armed;
	if (was_armed) {
		vbus_ring_disable_notify(tx->ring);
		WRITE_ONCE(tx->is_armed, false);
	}
	venet_tx_reclaim(venet, budget);
	if (netif_tx_queue_stopped(txq) && venet->is_link_up &&
	    venet_tx_room(tx) >= tx->num_slots / 4)
		netif_tx_wake_queue(txq);
	if (tx->outstanding && !READ_ONCE(venet->is_broken)) {
		if (was_armed || netif_xmit_stopped(txq))
			venet_tx_arm(venet);
		else
			venet_start_timer(venet);
	}
	__netif_tx_unlock(txq);
}

static bool venet_add_segment(struct venet_segment *segments, u32 *count, phys_addr_t addr, u32 len)
{
	struct venet_segment *segment = &segments[*count];

	if (!len)
		return true;
	if (*count == VENET_MAX_SEGMENTS)
		return false;
	segment->addr = cpu_to_le64(addr);
	segment->len = cpu_to_le32(len);
	segment->reserved = 0;
	++*count;
	return true;
}

/* Lists the parts of @skb in the place of slot @idx; how many, or 0 if they are too many. */
static u32 venet_list_segments(struct venet_tx *tx, u32 idx, const struct sk_buff *skb)
{
	struct venet_segment *segments = &tx->segments[idx * VENET_MAX_SEGMENTS];
	u32 nth, count = 0;

	if (!venet_add_segment(segments, &count, virt_to_phys(skb->data), skb_headlen(skb)))
		return 0;
	for (nth = 0; nth < skb_shinfo(skb)->nr_frags; nth++) {
		const skb_frag_t *frag = &skb_shinfo(skb)->frags[nth];
		phys_addr_t addr = page_to_phys(skb_frag_page(frag)) + skb_frag_off(frag);

		if (!venet_add_segment(segments, &count, addr, skb_frag_size(frag)))
			return 0;
	}
	return count;
}

static u8 venet_gso_type(const struct sk_buff *skb)
{
	unsigned int type = skb_shinfo(skb)->gso_type;

	if (type & SKB_GSO_TCPV4)
		return VENET_GSO_TYPE_TCP4;
	if (type & SKB_GSO_TCPV6)
		return VENET_GSO_TYPE_TCP6;
	return VENET_GSO_TYPE_UDP;
}

static void venet_fill_meta(union venet_meta *meta, const struct sk_buff *skb, u32 count)
{
	struct venet_frame_meta *frame = &meta->frame;
	u16 flags = 0;

	meta->words[0] = 0;
	meta->words[1] = 0;
	if (skb->ip_summed == CHECKSUM_PARTIAL) {
		flags |= VENET_FRAME_FLAG_NEEDS_CSUM;
		frame->csum_start = cpu_to_le16(skb_checksum_start_offset(skb));
		frame->csum_offset = cpu_to_le16(skb->csum_offset);
	}
	if (skb_is_gso(skb)) {
		frame->gso_type = venet_gso_type(skb);
		frame->gso_size = cpu_to_le16(skb_shinfo(skb)->gso_size);
		frame->hdr_len = cpu_to_le16(min_t(u32, skb_headlen(skb), U16_MAX));
		if (skb_shinfo(skb)->gso_type & SKB_GSO_TCP_ECN)
			flags |= VENET_FRAME_FLAG_ECN;
	}
	if (count) {
		flags |= VENET_FRAME_FLAG_SG;
		frame->count = cpu_to_le16(count);
	}
	frame->flags = cpu_to_le16(flags);
}

/* Fills the next slot with @skb; false if it cannot be sent. There is room. */
static bool venet_tx_fill(struct venet_tx *tx, struct sk_buff *skb)
{
	u32 idx = vbus_ring_free_index(tx->ring, tx->pending);
	struct vbus_ring_slot *slot = vbus_ring_free_slot(tx->ring, tx->pending);
	union venet_meta meta;
	u32 count = 0;

	if (unlikely(skb->len < ETH_HLEN))
		return false;
	if (skb_is_nonlinear(skb)) {
		if (tx->segments)
			count = venet_list_segments(tx, idx, skb);
		if (unlikely(!count)) {
			if (skb_linearize(skb))
				return false;
			venet_count(&tx->stats, linearized);
		} else {
			venet_count(&tx->stats, scattered);
		}
	}
	venet_fill_meta(&meta, skb, count);
	slot->addr = cpu_to_le64(count ? idx * VENET_SEGMENTS_BYTES : virt_to_phys(skb->data));
	slot->meta[0] = meta.words[0];
	slot->meta[1] = meta.words[1];
	slot->len = cpu_to_le32(skb->len);
	tx->skbs[idx] = skb;
	tx->pending++;
	tx->outstanding_bytes += skb->len;
	WRITE_ONCE(tx->outstanding, tx->outstanding + 1);
	return true;
}

static void venet_tx_publish(struct venet_tx *tx)
{
	if (!tx->pending)
		return;
	vbus_ring_publish(tx->ring, tx->pending);
	tx->pending = 0;
	venet_count(&tx->stats, batches);
	if (vbus_ring_signal(tx->ring))
		venet_count(&tx->stats, doorbells);
}

/* Whether the owner of @skb is about to wait for its frames to be freed. */
static bool venet_owner_waits(const struct sk_buff *skb)
{
	const struct sock *sk = skb->sk;

	return sk && sk_fullsock(sk) &&
	       refcount_read(&sk->sk_wmem_alloc) > (READ_ONCE(sk->sk_sndbuf) >> 1);
}

netdev_tx_t venet_start_xmit(struct sk_buff *skb, struct net_device *dev)
{
	struct venet *venet = netdev_priv(dev);
	struct netdev_queue *txq = venet_txq(venet);
	struct venet_tx *tx = &venet->tx;
	bool is_last, owner_waits = false;
	u32 len = skb->len;

	if (tx->outstanding >= tx->reclaim_slots || tx->outstanding_bytes >= VENET_TX_RECLAIM_BYTES)
		venet_tx_reclaim(venet, 0);
	if (unlikely(!venet_tx_room(tx) || READ_ONCE(venet->is_broken))) {
		netif_tx_stop_queue(txq);
		if (!READ_ONCE(venet->is_broken))
			venet_tx_arm(venet);
		return NETDEV_TX_BUSY;
	}

	skb_tx_timestamp(skb);
	if (likely(venet_tx_fill(tx, skb))) {
		venet_count(&tx->stats, packets);
		venet_add(&tx->stats, bytes, len);
		owner_waits = venet_owner_waits(skb);
		is_last = __netdev_tx_sent_queue(txq, len, netdev_xmit_more());
	} else {
		venet_count(&tx->stats, dropped);
		dev_kfree_skb_any(skb);
		is_last = !netdev_xmit_more();
	}
	if (is_last || tx->pending >= VENET_TX_MAX_PENDING || !venet_tx_room(tx))
		venet_tx_publish(tx);

	if (unlikely(!venet_tx_room(tx))) {
		venet_tx_reclaim(venet, 0);
		if (!venet_tx_room(tx)) {
			netif_tx_stop_queue(txq);
			venet_count(&tx->stats, ring_full);
		}
	}
	if (tx->outstanding > tx->pending && !READ_ONCE(venet->is_broken)) {
		if (owner_waits || netif_xmit_stopped(txq))
			venet_tx_arm(venet);
		else
			venet_start_timer(venet);
	}
	return NETDEV_TX_OK;
}

netdev_features_t venet_features_check(struct sk_buff *skb, struct net_device *dev,
				       netdev_features_t features)
{
	features = vlan_features_check(skb, features);
	/* The device finds TCP and UDP only right behind the IPv6 header. */
	if (skb_is_gso(skb) && vlan_get_protocol(skb) == htons(ETH_P_IPV6)) {
		u8 next = ipv6_hdr(skb)->nexthdr;

		if (next != IPPROTO_TCP && next != IPPROTO_UDP)
			features &= ~NETIF_F_GSO_MASK;
	}
	return features;
}

/**
 * venet_tx_drain - waits for the host to take what is on the way
 * @venet: connected; nobody transmits
 * @most_us: the longest that it is waited for
 *
 * Return: true if nothing is on the way any more
 */
bool venet_tx_drain(struct venet *venet, u32 most_us)
{
	struct netdev_queue *txq = venet_txq(venet);
	ktime_t end = ktime_add_us(ktime_get(), most_us);

	for (;;) {
		bool is_empty, is_late = ktime_after(ktime_get(), end);

		__netif_tx_lock_bh(txq);
		venet_tx_reclaim(venet, 0);
		is_empty = !venet->tx.outstanding;
		__netif_tx_unlock_bh(txq);
		if (is_empty || is_late || READ_ONCE(venet->is_broken))
			return is_empty;
		usleep_range(100, 500);
	}
}

/**
 * venet_tx_free - drops what is on the way
 * @venet: not connected any more
 * @is_leaked: the host may still read the frames
 */
void venet_tx_free(struct venet *venet, bool is_leaked)
{
	struct venet_tx *tx = &venet->tx;
	u32 idx;

	for (idx = 0; tx->skbs && !is_leaked && idx < tx->num_slots; idx++)
		dev_kfree_skb(tx->skbs[idx]);
	tx->pending = 0;
	tx->outstanding = 0;
	tx->outstanding_bytes = 0;
	tx->is_armed = false;
	netdev_tx_reset_queue(venet_txq(venet));
}
