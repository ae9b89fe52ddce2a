// SPDX-License-Identifier: GPL-2.0
/* Receive: NAPI, and frames made into skbs. */
#include <linux/etherdevice.h>
#include <linux/skbuff.h>
#include <linux/tcp.h>
#include <linux/udp.h>

#include "venet.h"

/* A frame up to this size is copied: cheaper than to give its part of a buffer away. */
#define VENET_RX_COPY_BYTES	256
/* Room for the headers of a frame whose rest stays in pages. */
#define VENET_RX_HEAD_BYTES	256

/* Checksum and segmentation of a frame whose data begins with its Ethernet header. */
static bool venet_rx_offload(struct sk_buff *skb, const struct venet_frame_meta *meta)
{
	struct skb_shared_info *shinfo = skb_shinfo(skb);
	u16 start = le16_to_cpu(meta->csum_start);
	u16 offset = le16_to_cpu(meta->csum_offset);
	u16 flags = le16_to_cpu(meta->flags);
	u32 needed = start + offset + sizeof(__sum16);
	unsigned int gso_type;

	switch (meta->gso_type) {
	case VENET_GSO_TYPE_NONE:
		gso_type = 0;
		break;
	case VENET_GSO_TYPE_TCP4:
		gso_type = SKB_GSO_TCPV4;
		needed = max_t(u32, needed, start + sizeof(struct tcphdr));
		break;
	case VENET_GSO_TYPE_TCP6:
		gso_type = SKB_GSO_TCPV6;
		needed = max_t(u32, needed, start + sizeof(struct tcphdr));
		break;
	case VENET_GSO_TYPE_UDP:
		gso_type = SKB_GSO_UDP_L4;
		needed = max_t(u32, needed, start + sizeof(struct udphdr));
		break;
	default:
		return false;
	}
	if (flags & VENET_FRAME_FLAG_NEEDS_CSUM) {
		if (!pskb_may_pull(skb, needed) || !skb_partial_csum_set(skb, start, offset))
			return false;
		shinfo = skb_shinfo(skb);
	} else if (gso_type) {
		return false;
	} else if (flags & VENET_FRAME_FLAG_DATA_VALID) {
		skb->ip_summed = CHECKSUM_UNNECESSARY;
	}
	if (!gso_type)
		return true;
	if (!meta->gso_size)
		return false;
	if (flags & VENET_FRAME_FLAG_ECN && meta->gso_type != VENET_GSO_TYPE_UDP)
		gso_type |= SKB_GSO_TCP_ECN;
	shinfo->gso_size = le16_to_cpu(meta->gso_size);
	/* Checked and counted by whoever cuts it, if anybody does. */
	shinfo->gso_type = gso_type | SKB_GSO_DODGY;
	shinfo->gso_segs = 0;
	return true;
}

/* Bytes of the frame in the @nth slot, or -1 if the host claims more than there was room for. */
static int venet_rx_len(struct venet_rx *rx, u32 nth)
{
	const struct vbus_ring_slot *slot = vbus_ring_returned_slot(rx->ring, nth);
	struct venet_rx_buffer *buffer = &rx->buffers[vbus_ring_returned_index(rx->ring, nth)];
	u32 len = le32_to_cpu(READ_ONCE(slot->len));

	return len <= venet_rx_buffer_room(buffer) ? (int)len : -1;
}

/* A frame that is small, or alone in its buffer. */
static struct sk_buff *venet_rx_single(struct venet *venet, u32 nth, u32 len)
{
	struct venet_rx *rx = &venet->rx;
	struct venet_rx_buffer *buffer = &rx->buffers[vbus_ring_returned_index(rx->ring, nth)];
	void *data = venet_rx_buffer_data(buffer);
	struct sk_buff *skb;

	net_prefetch(data);
	if (len > VENET_RX_COPY_BYTES)
		return venet_rx_build(rx, buffer, len);
	skb = napi_alloc_skb(&venet->napi, len);
	if (unlikely(!skb))
		return NULL;
	skb_put_data(skb, data, len);
	venet_count(&rx->stats, copied);
	return skb;
}

/* A frame in @count slots from the @nth on, whose headers are copied. */
static struct sk_buff *venet_rx_merged(struct venet *venet, u32 nth, u32 count, u32 hdr_len)
{
	struct venet_rx *rx = &venet->rx;
	struct venet_rx_buffer *buffer = &rx->buffers[vbus_ring_returned_index(rx->ring, nth)];
	void *data = venet_rx_buffer_data(buffer);
	struct sk_buff *skb;
	u32 skip, end;
	int len;

	len = venet_rx_len(rx, nth);
	if (len < ETH_HLEN || count > MAX_SKB_FRAGS)
		return NULL;
	skb = napi_alloc_skb(&venet->napi, VENET_RX_HEAD_BYTES);
	if (unlikely(!skb))
		return NULL;
	skip = min(len, VENET_RX_HEAD_BYTES);
	if (hdr_len)
		skip = clamp_t(u32, hdr_len, ETH_HLEN, skip);
	else
		skip = eth_get_headlen(venet->dev, data, skip);
	skb_put_data(skb, data, skip);
	for (end = nth + count; nth < end; nth++, skip = 0) {
		len = venet_rx_len(rx, nth);
		if (unlikely(len < 0)) {
			/* What was added goes with the skb. */
			napi_consume_skb(skb, 1);
			return NULL;
		}
		buffer = &rx->buffers[vbus_ring_returned_index(rx->ring, nth)];
		if (len > skip)
			venet_rx_add_frag(rx, skb, buffer, skip, len - skip);
	}
	return skb;
}

/* Makes an skb of the frame in @count slots from the @nth on. */
static void venet_rx_frame(struct venet *venet, u32 nth, const struct venet_frame_meta *meta)
{
	u32 count = le16_to_cpu(meta->count);
	struct venet_rx *rx = &venet->rx;
	int len = venet_rx_len(rx, nth);
	struct sk_buff *skb = NULL;

	if (unlikely(len < ETH_HLEN)) {
		venet_count(&rx->stats, errors);
		return;
	}
	if (count == 1)
		skb = venet_rx_single(venet, nth, len);
	else
		venet_count(&rx->stats, merged);
	if (!skb)
		skb = venet_rx_merged(venet, nth, count,
				      meta->gso_type ? le16_to_cpu(meta->hdr_len) : 0);
	if (unlikely(!skb)) {
		venet_count(&rx->stats, dropped);
		return;
	}
	if (unlikely(!venet_rx_offload(skb, meta))) {
		venet_count(&rx->stats, errors);
		napi_consume_skb(skb, 1);
		return;
	}
	venet_count(&rx->stats, packets);
	venet_add(&rx->stats, bytes, skb->len);
	if (meta->gso_type)
		venet_count(&rx->stats, gso);
	skb->protocol = eth_type_trans(skb, venet->dev);
	napi_gro_receive(&venet->napi, skb);
}

/* Receives up to @budget frames; how many. */
static int venet_rx_poll(struct venet *venet, int budget)
{
	struct venet_rx *rx = &venet->rx;
	int num_frames = 0, num_slots;
	u32 nth = 0;

	num_slots = vbus_ring_returned(rx->ring);
	if (unlikely(num_slots < 0)) {
		venet_fault(venet, "receive");
		return 0;
	}
	while (nth < num_slots && num_frames < budget) {
		const struct vbus_ring_slot *slot = vbus_ring_returned_slot(rx->ring, nth);
		union venet_meta meta;
		u32 count;

		meta.words[0] = slot->meta[0];
		meta.words[1] = slot->meta[1];
		count = le16_to_cpu(meta.frame.count);
		if (unlikely(!count)) {
			venet_count(&rx->stats, empty);
			nth++;
			continue;
		}
		if (unlikely(count > num_slots - nth)) {
			/* The rest of the frame is still to come; unless it never can. */
			if (count > rx->num_slots)
				venet_fault(venet, "receive");
			break;
		}
		venet_rx_frame(venet, nth, &meta.frame);
		nth += count;
		num_frames++;
	}
	venet_add(&rx->stats, slots, nth);
	if (nth)
		vbus_ring_release(rx->ring, nth);
	venet_rx_refill(venet, GFP_ATOMIC, false);
	return num_frames;
}

/**
 * venet_start_timer - sees to it that NAPI runs within a tick or two
 * @venet: its link is up
 */
void venet_start_timer(struct venet *venet)
{
	if (!timer_pending(&venet->timer))
		mod_timer(&venet->timer, jiffies + 1);
}

int venet_poll(struct napi_struct *napi, int budget)
{
	struct venet *venet = container_of(napi, struct venet, napi);
	struct venet_rx *rx = &venet->rx;
	int num_frames;

	venet_tx_poll(venet, budget);
	if (!budget)
		return 0;
	if (unlikely(READ_ONCE(venet->is_broken))) {
		napi_complete(napi);
		return 0;
	}
	if (rx->is_armed) {
		vbus_ring_disable_notify(rx->ring);
		rx->is_armed = false;
	}
	num_frames = venet_rx_poll(venet, budget);
	if (num_frames == budget)
		return budget;
	/* There was no memory; the host may be out of buffers, and tell us nothing more. */
	if (unlikely(vbus_ring_room(rx->ring) >= rx->batch))
		venet_start_timer(venet);
	/*
	 * Before NAPI is complete, while nobody else polls. A notification in between makes
	 * napi_complete_done() schedule anew.
	 */
	rx->is_armed = true;
	if (!vbus_ring_enable_notify(rx->ring))
		return budget;
	napi_complete_done(napi, num_frames);
	return num_frames;
}

/**
 * venet_rx_discard - drops what was received
 * @venet: NAPI and its link are down
 */
void venet_rx_discard(struct venet *venet)
{
	struct venet_rx *rx = &venet->rx;
	int num_slots = vbus_ring_returned(rx->ring);

	if (num_slots > 0)
		vbus_ring_release(rx->ring, num_slots);
}
