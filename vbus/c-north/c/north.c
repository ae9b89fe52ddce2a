// SPDX-License-Identifier: GPL-2.0
/* The data path as functions: what a driver does with the inline ones. */
#include <alacrity/vbus_connector.h>
#include <alacrity/vbus_ring.h>

struct north_slot {
	u64 addr;
	u64 meta[2];
	u32 len;
};

/* In the kernel this needs a connection, which a ring under test has not. */
int vbus_share_memory(struct vbus_device *vdev, struct vbus_shm *shm, struct vbus_ring *ring,
		      const char *name, u32 id, u32 priority);

int vbus_share_memory(struct vbus_device *vdev, struct vbus_shm *shm, struct vbus_ring *ring,
		      const char *name, u32 id, u32 priority)
{
	__builtin_trap();
}

struct vbus_ring *north_new(u32 num_slots, u32 position, vbus_ring_notify notify,
			    void (*doorbell)(void *context), void *context)
{
	struct vbus_ring *ring = vbus_ring_alloc(num_slots, "north", notify, context);

	if (IS_ERR(ring))
		return NULL;
	ring->doorbell = doorbell;
	ring->doorbell_context = context;
	ring->published = position;
	ring->reaped = position;
	ring->known = position;
	return ring;
}

/* Publishes the first of @slots, as many as there is room for; returns how many. */
u32 north_publish(struct vbus_ring *ring, const struct north_slot *slots, u32 num_slots)
{
	struct vbus_ring_slot *slot;
	u32 n;

	for (n = 0; n < num_slots && n < vbus_ring_room(ring); n++) {
		slot = vbus_ring_free_slot(ring, n);
		slot->addr = cpu_to_le64(slots[n].addr);
		slot->meta[0] = cpu_to_le64(slots[n].meta[0]);
		slot->meta[1] = cpu_to_le64(slots[n].meta[1]);
		slot->len = cpu_to_le32(slots[n].len);
	}
	vbus_ring_publish(ring, n);
	return n;
}

u32 north_room(const struct vbus_ring *ring)
{
	return vbus_ring_room(ring);
}

u32 north_free_index(const struct vbus_ring *ring)
{
	return vbus_ring_free_index(ring, 0);
}

bool north_signal(struct vbus_ring *ring)
{
	return vbus_ring_signal(ring);
}

int north_returned(struct vbus_ring *ring)
{
	return vbus_ring_returned(ring);
}

/* The @nth slot that is back; returns its index. */
u32 north_read(const struct vbus_ring *ring, u32 nth, struct north_slot *copy)
{
	const struct vbus_ring_slot *slot = vbus_ring_returned_slot(ring, nth);

	copy->addr = le64_to_cpu(READ_ONCE(slot->addr));
	copy->meta[0] = le64_to_cpu(READ_ONCE(slot->meta[0]));
	copy->meta[1] = le64_to_cpu(READ_ONCE(slot->meta[1]));
	copy->len = le32_to_cpu(READ_ONCE(slot->len));
	return vbus_ring_returned_index(ring, nth);
}

void north_release(struct vbus_ring *ring, u32 num_slots)
{
	vbus_ring_release(ring, num_slots);
}

void north_disable_notify(struct vbus_ring *ring)
{
	vbus_ring_disable_notify(ring);
}

bool north_enable_notify(struct vbus_ring *ring)
{
	return vbus_ring_enable_notify(ring);
}
