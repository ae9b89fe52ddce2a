// SPDX-License-Identifier: GPL-2.0
/* Shared memory and rings: how they are made and freed. */
#include <linux/gfp.h>
#include <linux/io.h>
#include <linux/log2.h>
#include <linux/mm.h>
#include <linux/slab.h>

#include "vbus.h"

int vbus_shm_alloc(struct vbus_shm *shm, size_t len)
{
	memset(shm, 0, sizeof(*shm));
	if (!len || len > U32_MAX)
		return -EINVAL;
	shm->memory = alloc_pages_exact(len, GFP_KERNEL | __GFP_ZERO | __GFP_NOWARN);
	if (!shm->memory)
		return -ENOMEM;
	shm->len = len;
	return 0;
}
EXPORT_SYMBOL_GPL(vbus_shm_alloc);

void vbus_shm_free(struct vbus_shm *shm)
{
	struct vbus_share *share = shm->share;

	if (!shm->memory)
		return;
	if (share && !completion_done(&share->closed))
		pr_err("vbus: leaking %zu bytes that the host may still use\n", shm->len);
	else
		free_pages_exact(shm->memory, shm->len);
	/* A share that is still in a connection stays with it. */
	if (share && list_empty(&share->node))
		kfree_rcu(share, rcu);
	memset(shm, 0, sizeof(*shm));
}
EXPORT_SYMBOL_GPL(vbus_shm_free);

int vbus_shm_share(struct vbus_device *vdev, struct vbus_shm *shm, u32 id)
{
	return vbus_share_memory(vdev, shm, NULL, NULL, id, 0);
}
EXPORT_SYMBOL_GPL(vbus_shm_share);

/* The doorbell of a ring that is not shared. */
void vbus_no_doorbell(void *context)
{
}

struct vbus_ring *vbus_ring_alloc(u32 num_slots, const char *name, vbus_ring_notify notify,
				  void *context)
{
	struct vbus_ring_header *header;
	struct vbus_full_ring *full;

	if (!is_power_of_2(num_slots) || num_slots > VBUS_RING_MAX_SLOTS)
		return ERR_PTR(-EINVAL);
	full = kzalloc(sizeof(*full), GFP_KERNEL);
	if (!full)
		return ERR_PTR(-ENOMEM);
	full->name = kstrdup(name, GFP_KERNEL);
	if (!full->name)
		goto no_memory;
	if (vbus_shm_alloc(&full->shm, VBUS_RING_SLOTS_OFFSET +
					       num_slots * sizeof(struct vbus_ring_slot)))
		goto no_memory;
	full->notify = notify;
	full->context = context;
	header = full->shm.memory;
	header->magic = cpu_to_le32(VBUS_RING_MAGIC);
	header->version = cpu_to_le32(VBUS_RING_VERSION);
	header->num_slots = cpu_to_le32(num_slots);
	header->slot_bytes = cpu_to_le32(sizeof(struct vbus_ring_slot));
	full->ring.slots = full->shm.memory + VBUS_RING_SLOTS_OFFSET;
	full->ring.flags = &header->signal;
	full->ring.mask = num_slots - 1;
	full->ring.shift = ilog2(num_slots);
	full->ring.doorbell = vbus_no_doorbell;
	return &full->ring;

no_memory:
	kfree(full->name);
	kfree(full);
	return ERR_PTR(-ENOMEM);
}
EXPORT_SYMBOL_GPL(vbus_ring_alloc);

void vbus_ring_free(struct vbus_ring *ring)
{
	struct vbus_full_ring *full;

	if (IS_ERR_OR_NULL(ring))
		return;
	full = to_vbus_full_ring(ring);
	if (full->shm.share && !list_empty(&full->shm.share->node)) {
		pr_err("vbus: %s is freed before vbus_close(), leaking it\n", full->name);
		return;
	}
	vbus_shm_free(&full->shm);
	kfree(full->name);
	kfree(full);
}
EXPORT_SYMBOL_GPL(vbus_ring_free);

int vbus_ring_share(struct vbus_device *vdev, struct vbus_ring *ring, u32 id, u32 priority)
{
	struct vbus_full_ring *full = to_vbus_full_ring(ring);

	return vbus_share_memory(vdev, &full->shm, ring, full->name, id, priority);
}
EXPORT_SYMBOL_GPL(vbus_ring_share);

void vbus_ring_notify_now(struct vbus_ring *ring)
{
	struct vbus_full_ring *full = to_vbus_full_ring(ring);

	if (full->notify)
		full->notify(ring, full->context);
}
EXPORT_SYMBOL_GPL(vbus_ring_notify_now);

phys_addr_t vbus_ring_addr(const struct vbus_ring *ring)
{
	return virt_to_phys(to_vbus_full_ring(ring)->shm.memory);
}
EXPORT_SYMBOL_GPL(vbus_ring_addr);

u32 vbus_ring_bytes(const struct vbus_ring *ring)
{
	return to_vbus_full_ring(ring)->shm.len;
}
EXPORT_SYMBOL_GPL(vbus_ring_bytes);
