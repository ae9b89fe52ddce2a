/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The north's end of a ring (docs/abi.md, "Ring"): the data path, inlined into drivers.
 *
 * One context at a time publishes and one at a time reaps; the two may be different ones. Positions
 * count slots since the ring was made, modulo 2^32; the slot of a position is position & mask.
 *
 *	for (n = 0; n < vbus_ring_room(ring) && there is more; n++) {
 *		slot = vbus_ring_free_slot(ring, n);	n-th after those published
 *		fill addr, meta, len
 *	}
 *	vbus_ring_publish(ring, n);
 *	vbus_ring_signal(ring);
 *
 *	n = vbus_ring_returned(ring);			-EPROTO: the host broke the rules
 *	for (i = 0; i < n; i++)
 *		slot = vbus_ring_returned_slot(ring, i);
 *	vbus_ring_release(ring, n);
 *
 * Sleeping: enable_notify, and if that says false, disable_notify and look again. The notify
 * function begins with disable_notify, or leaves it to whom it wakes.
 */
#ifndef ALACRITY_VBUS_RING_H
#define ALACRITY_VBUS_RING_H

#include <linux/build_bug.h>
#include <linux/cache.h>
#include <linux/errno.h>
#include <linux/types.h>
#include <asm/barrier.h>
#include <asm/byteorder.h>
#include <asm/cmpxchg.h>

#include <alacrity/vbus.h>

/**
 * struct vbus_ring - the north's end
 * @slots: in shared memory
 * @flags: the shm-signal, in shared memory
 * @mask: number of slots less one
 * @shift: log2 of the number of slots
 * @doorbell: wakes the host
 * @doorbell_context: for @doorbell
 * @published: position after the last slot published; the publisher's
 * @reaped: position after the last slot released; the reaper's
 * @known: position up to which slots are known to be back; the reaper's
 */
struct vbus_ring {
	struct vbus_ring_slot *slots;
	struct vbus_signal_pair *flags;
	u32 mask;
	u32 shift;
	void (*doorbell)(void *context);
	void *doorbell_context;
	u32 published ____cacheline_aligned_in_smp;
	u32 reaped ____cacheline_aligned_in_smp;
	u32 known;
	/* more, of vbus.ko alone, behind it */
};

/* The last 8 bytes of a slot, which change hands as one. */
union vbus_ring_control {
	__le64 word;
	struct {
		__le32 len;
		__le16 batch;
		__le16 turn;
	};
};

static inline __le64 *vbus_ring_control_word(struct vbus_ring_slot *slot)
{
	BUILD_BUG_ON(offsetof(struct vbus_ring_slot, len) != 24);
	BUILD_BUG_ON(sizeof(union vbus_ring_control) != sizeof(__le64));
	return (__le64 *)&slot->len;
}

/* The turn that says "published" in the lap of @position. */
static inline u16 vbus_ring_turn(const struct vbus_ring *ring, u32 position)
{
	return 2 * (position >> ring->shift) + 1;
}

/* Slots that can be published now. For the publisher. */
static inline u32 vbus_ring_room(const struct vbus_ring *ring)
{
	/* Pairs with vbus_ring_release(): what it read is read before we write there again. */
	return ring->mask + 1 - (ring->published - smp_load_acquire(&ring->reaped));
}

/* Index, 0 to mask, of the @nth slot that will be published next: for the driver's own tables. */
static inline u32 vbus_ring_free_index(const struct vbus_ring *ring, u32 nth)
{
	return (ring->published + nth) & ring->mask;
}

/* That slot. @nth is less than vbus_ring_room(). */
static inline struct vbus_ring_slot *vbus_ring_free_slot(struct vbus_ring *ring, u32 nth)
{
	return &ring->slots[vbus_ring_free_index(ring, nth)];
}

/* Publishes the next @num_slots slots, whose addr, meta and len are filled. */
static inline void vbus_ring_publish(struct vbus_ring *ring, u32 num_slots)
{
	u32 first = ring->published;
	u32 position = first + num_slots;
	struct vbus_ring_slot *slot;
	union vbus_ring_control control;

	if (!num_slots)
		return;
	/*
	 * Before any slot, so that the reaper, when it sees one of them come back, finds here that
	 * it is out: the release below orders the two, and the host's own release the rest.
	 */
	WRITE_ONCE(ring->published, position);
	for (;;) {
		slot = &ring->slots[--position & ring->mask];
		control.len = slot->len;
		control.batch = 0;
		control.turn = cpu_to_le16(vbus_ring_turn(ring, position));
		if (position == first)
			break;
		WRITE_ONCE(*vbus_ring_control_word(slot), control.word);
	}
	/* The batch changes hands at its first slot. */
	virt_store_release(vbus_ring_control_word(slot), control.word);
}

/* Publishes the next @num_slots slots, empty, for a host that fills them. */
static inline void vbus_ring_publish_empty(struct vbus_ring *ring, u32 num_slots)
{
	u32 nth;

	for (nth = 0; nth < num_slots; nth++) {
		struct vbus_ring_slot *slot = vbus_ring_free_slot(ring, nth);

		slot->addr = 0;
		slot->meta[0] = 0;
		slot->meta[1] = 0;
		slot->len = 0;
	}
	vbus_ring_publish(ring, num_slots);
}

/*
 * Tells the host, with a doorbell only if it sleeps: once for any number of slots. True if the
 * doorbell was needed.
 */
static inline bool vbus_ring_signal(struct vbus_ring *ring)
{
	struct vbus_signal_flags *flags = &ring->flags->to_south;

	virt_mb(); /* F1: the slots before the look at dirty */
	if (READ_ONCE(flags->dirty))
		return false; /* it is told already, and has not begun to look */
	if (xchg(&flags->dirty, cpu_to_le64(1)))
		return false; /* somebody else was faster */
	virt_mb(); /* F3: dirty before the look at enabled */
	if (!READ_ONCE(flags->enabled))
		return false;
	ring->doorbell(ring->doorbell_context);
	return true;
}

/* Slots that have come back and are not released yet, 0 or more, or -EPROTO. For the reaper. */
static inline int vbus_ring_returned(struct vbus_ring *ring)
{
	union vbus_ring_control control;
	struct vbus_ring_slot *slot;
	u16 published, turn, batch;

	while (ring->known != READ_ONCE(ring->published)) {
		slot = &ring->slots[ring->known & ring->mask];
		/* Pairs with the host's release: the other slots of the batch are there. */
		control.word = virt_load_acquire(vbus_ring_control_word(slot));
		published = vbus_ring_turn(ring, ring->known);
		turn = le16_to_cpu(control.turn);
		/* The last two: the publisher is on its way, and has not stored the turn yet. */
		if (turn == published || turn == (u16)(published - 1) ||
		    turn == (u16)(published - 2))
			break;
		if (unlikely(turn != (u16)(published + 1)))
			return -EPROTO;
		batch = le16_to_cpu(control.batch);
		if (unlikely(!batch || batch > READ_ONCE(ring->published) - ring->known))
			return -EPROTO;
		ring->known += batch;
	}
	return ring->known - ring->reaped;
}

/* Index, 0 to mask, of the @nth slot that is back, oldest first. */
static inline u32 vbus_ring_returned_index(const struct vbus_ring *ring, u32 nth)
{
	return (ring->reaped + nth) & ring->mask;
}

/*
 * That slot. @nth is less than vbus_ring_returned(). Only a device that fills slots writes more than
 * the last word of the first slot of a batch: see the device's rules.
 */
static inline const struct vbus_ring_slot *vbus_ring_returned_slot(const struct vbus_ring *ring,
								   u32 nth)
{
	return &ring->slots[vbus_ring_returned_index(ring, nth)];
}

/* Makes the first @num_slots of those room for publishing. */
static inline void vbus_ring_release(struct vbus_ring *ring, u32 num_slots)
{
	/* Pairs with vbus_ring_room(). */
	smp_store_release(&ring->reaped, ring->reaped + num_slots);
}

/* From now on the host does not wake us. What is underway may still come. */
static inline void vbus_ring_disable_notify(struct vbus_ring *ring)
{
	struct vbus_signal_flags *flags = &ring->flags->to_north;

	WRITE_ONCE(flags->enabled, 0);
	/* Whoever finds dirty clear finds enabled clear as well. */
	virt_store_release(&flags->dirty, 0);
	virt_mb(); /* F2: dirty before the look at the slots */
}

/* From now on it does; false if it has changed something meanwhile: disable and look again. */
static inline bool vbus_ring_enable_notify(struct vbus_ring *ring)
{
	struct vbus_signal_flags *flags = &ring->flags->to_north;

	WRITE_ONCE(flags->enabled, cpu_to_le64(1));
	virt_mb(); /* F4: enabled before the look at dirty */
	return !virt_load_acquire(&flags->dirty);
}

#endif /* ALACRITY_VBUS_RING_H */
