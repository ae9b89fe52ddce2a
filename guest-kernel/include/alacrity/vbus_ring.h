/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The north's end of a ring (docs/abi.md, "Ring"): the data path, inlined into drivers.
 *
 * One context at a time publishes and one at a time reaps; the two may be different ones. Positions
 * count slots since the ring was made; the slot of a position is position & mask.
 *
 *	while (vbus_ring_room(ring)) {
 *		slot = vbus_ring_free_slot(ring, n);	n-th after those published
 *		fill addr, meta, len
 *		n++;
 *	}
 *	vbus_ring_publish(ring, n);
 *	vbus_ring_signal(ring);
 *
 *	n = vbus_ring_returned(ring);			-EPROTO: the host broke the rules
 *	for (i = 0; i < n; i++)
 *		slot = vbus_ring_returned_slot(ring, i);
 *	vbus_ring_release(ring, n);
 */
#ifndef ALACRITY_VBUS_RING_H
#define ALACRITY_VBUS_RING_H

#include <linux/types.h>

#include <alacrity/vbus.h>

/**
 * struct vbus_ring - the north's end
 * @slots: in shared memory
 * @flags: the shm-signal, in shared memory
 * @mask: number of slots less one
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
	void (*doorbell)(void *context);
	void *doorbell_context;
	u32 published ____cacheline_aligned_in_smp;
	u32 reaped ____cacheline_aligned_in_smp;
	u32 known;
	/* more, of vbus.ko alone, behind it */
};

/* Slots that can be published now. */
static inline u32 vbus_ring_room(const struct vbus_ring *ring);

/* Index, 0 to mask, of the @nth slot that will be published next: for the driver's own tables. */
static inline u32 vbus_ring_free_index(const struct vbus_ring *ring, u32 nth);
static inline struct vbus_ring_slot *vbus_ring_free_slot(struct vbus_ring *ring, u32 nth);

/* Publishes the next @num_slots slots, whose addr, meta and len are filled. */
static inline void vbus_ring_publish(struct vbus_ring *ring, u32 num_slots);

/* Tells the host, with a doorbell only if it sleeps: once for any number of slots. */
static inline void vbus_ring_signal(struct vbus_ring *ring);

/* Slots that have come back and are not released yet, 0 or more, or -EPROTO. */
static inline int vbus_ring_returned(struct vbus_ring *ring);
static inline u32 vbus_ring_returned_index(const struct vbus_ring *ring, u32 nth);
static inline const struct vbus_ring_slot *vbus_ring_returned_slot(const struct vbus_ring *ring,
								   u32 nth);

/* Makes the first @num_slots of those room for publishing. */
static inline void vbus_ring_release(struct vbus_ring *ring, u32 num_slots);

/* From now on the host does not wake us. What is underway may still come. */
static inline void vbus_ring_disable_notify(struct vbus_ring *ring);

/* From now on it does; false if it has changed something meanwhile: disable and look again. */
static inline bool vbus_ring_enable_notify(struct vbus_ring *ring);

#endif /* ALACRITY_VBUS_RING_H */
