// SPDX-License-Identifier: GPL-2.0
/*
 * Buffers to receive into.
 *
 * A buffer is 16 KiB in one piece, so that a frame of 64 KiB takes four slots. A frame that fills only
 * a part of its buffer takes that part along, with room for what build_skb() needs before and behind
 * it, and the rest is posted again: a buffer serves several frames of 1,500 bytes, each of which
 * accounts for what it holds (truesize). What is left at the end and too small is accounted to the
 * frame that left it.
 *
 * Every posted buffer is long enough for MAX_SKB_FRAGS of them to hold any frame.
 */
#include <linux/if_vlan.h>
#include <linux/mm.h>
#include <linux/skbuff.h>

#include "venet.h"

#define VENET_RX_ORDER		2
#define VENET_RX_BYTES		((u32)PAGE_SIZE << VENET_RX_ORDER)
#define VENET_RX_PAD		((u32)(NET_SKB_PAD + NET_IP_ALIGN))
/* References to pages that are taken at once: more than the parts that a buffer can be cut into. */
#define VENET_RX_REFS		(VENET_RX_BYTES / SMP_CACHE_BYTES)
/* Slots that are published at once: whole cache lines, seldom. */
#define VENET_RX_BATCH		32U

/**
 * venet_rx_init - begins a connection
 * @rx: its buffers are empty
 * @rx_caps: what the device leaves to us
 */
void venet_rx_init(struct venet_rx *rx, u32 rx_caps)
{
	BUILD_BUG_ON((PAGE_SIZE - VENET_RX_PAD) * MAX_SKB_FRAGS <
		     VENET_MAX_FRAME_BYTES + VENET_VLAN_TAG_BYTES);
	/* A frame that must fit one buffer gets a whole one. */
	rx->min_bytes = rx_caps & VENET_RX_CAP_MERGED ? PAGE_SIZE : VENET_RX_BYTES;
	rx->batch = min(VENET_RX_BATCH, rx->num_slots / 4);
	rx->is_armed = false;
}

/**
 * venet_rx_max_mtu - the largest MTU whose frames can be received
 * @rx_caps: what the device leaves to us
 */
u32 venet_rx_max_mtu(u32 rx_caps)
{
	if (rx_caps & VENET_RX_CAP_MERGED)
		return VENET_MAX_FRAME_BYTES - ETH_HLEN;
	return VENET_RX_BYTES - VENET_RX_PAD - VLAN_ETH_HLEN;
}

static bool venet_rx_alloc(struct venet_rx *rx, struct venet_rx_buffer *buffer, gfp_t gfp)
{
	u32 size = VENET_RX_BYTES;
	struct page *page;

	page = alloc_pages((gfp & ~__GFP_DIRECT_RECLAIM) | __GFP_COMP | __GFP_NOWARN |
			   __GFP_NORETRY, VENET_RX_ORDER);
	if (!page && rx->min_bytes == PAGE_SIZE) {
		size = PAGE_SIZE;
		page = alloc_page(gfp | __GFP_NOWARN);
	}
	if (!page)
		return false;
	page_ref_add(page, VENET_RX_REFS - 1);
	buffer->page = page;
	buffer->size = size;
	buffer->offset = 0;
	buffer->num_refs = VENET_RX_REFS;
	return true;
}

static void venet_rx_release(struct venet_rx_buffer *buffer)
{
	if (buffer->page)
		__page_frag_cache_drain(buffer->page, buffer->num_refs);
	buffer->page = NULL;
}

/**
 * venet_rx_refill - posts buffers
 * @venet: connected
 * @gfp: how to allocate
 * @is_all: even if that is only a few
 */
void venet_rx_refill(struct venet *venet, gfp_t gfp, bool is_all)
{
	struct venet_rx *rx = &venet->rx;
	u32 nth, room = vbus_ring_room(rx->ring);

	if (room < rx->batch && !is_all)
		return;
	for (nth = 0; nth < room; nth++) {
		struct venet_rx_buffer *buffer =
			&rx->buffers[vbus_ring_free_index(rx->ring, nth)];
		struct vbus_ring_slot *slot = vbus_ring_free_slot(rx->ring, nth);

		if (!buffer->page && unlikely(!venet_rx_alloc(rx, buffer, gfp))) {
			venet_count(&rx->stats, no_memory);
			break;
		}
		slot->addr = cpu_to_le64(page_to_phys(buffer->page) + buffer->offset + VENET_RX_PAD);
		slot->meta[0] = 0;
		slot->meta[1] = 0;
		slot->len = cpu_to_le32(venet_rx_buffer_room(buffer));
	}
	if (nth) {
		vbus_ring_publish(rx->ring, nth);
		if (vbus_ring_signal(rx->ring))
			venet_count(&rx->stats, doorbells);
	}
}

/**
 * venet_rx_free - frees all buffers
 * @rx: not connected any more
 */
void venet_rx_free(struct venet_rx *rx)
{
	u32 idx;

	for (idx = 0; rx->buffers && idx < rx->num_slots; idx++)
		venet_rx_release(&rx->buffers[idx]);
}

/**
 * venet_rx_buffer_room - bytes that can be received into it
 * @buffer: with a page
 */
u32 venet_rx_buffer_room(const struct venet_rx_buffer *buffer)
{
	return buffer->size - buffer->offset - VENET_RX_PAD;
}

/**
 * venet_rx_buffer_data - where they are received
 * @buffer: with a page
 */
void *venet_rx_buffer_data(const struct venet_rx_buffer *buffer)
{
	return page_address(buffer->page) + buffer->offset + VENET_RX_PAD;
}

/* Gives away the first @used bytes with a reference; what to account for them. */
static u32 venet_rx_cut(struct venet_rx *rx, struct venet_rx_buffer *buffer, u32 used)
{
	u32 left;

	used = min(ALIGN(used, SMP_CACHE_BYTES), buffer->size - buffer->offset);
	buffer->offset += used;
	buffer->num_refs--;
	left = buffer->size - buffer->offset;
	if (left >= rx->min_bytes)
		return used;
	venet_rx_release(buffer);
	return used + left;
}

/**
 * venet_rx_build - makes an skb around a frame, without copying it
 * @rx: reception
 * @buffer: where all of the frame is
 * @len: bytes of it
 *
 * Return: NULL if there is no room behind the frame, or no memory; nothing has happened then
 */
struct sk_buff *venet_rx_build(struct venet_rx *rx, struct venet_rx_buffer *buffer, u32 len)
{
	void *start = page_address(buffer->page) + buffer->offset;
	u32 used = SKB_DATA_ALIGN(VENET_RX_PAD + len) +
		   SKB_DATA_ALIGN(sizeof(struct skb_shared_info));
	struct sk_buff *skb;

	if (used > buffer->size - buffer->offset)
		return NULL;
	skb = napi_build_skb(start, used);
	if (unlikely(!skb))
		return NULL;
	skb_reserve(skb, VENET_RX_PAD);
	__skb_put(skb, len);
	skb->truesize += venet_rx_cut(rx, buffer, used) - used;
	return skb;
}

/**
 * venet_rx_add_frag - adds a part of a frame to an skb, without copying it
 * @rx: reception
 * @skb: has room for one
 * @buffer: where the part is
 * @skip: bytes at its start that are in the skb already
 * @len: bytes behind those, not 0
 */
void venet_rx_add_frag(struct venet_rx *rx, struct sk_buff *skb, struct venet_rx_buffer *buffer,
		       u32 skip, u32 len)
{
	struct page *page = buffer->page;
	u32 offset = buffer->offset + VENET_RX_PAD + skip;
	u32 truesize = venet_rx_cut(rx, buffer, VENET_RX_PAD + skip + len);

	skb_add_rx_frag(skb, skb_shinfo(skb)->nr_frags, page, offset, len, truesize);
}
