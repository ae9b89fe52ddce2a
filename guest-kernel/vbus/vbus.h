/* SPDX-License-Identifier: GPL-2.0 */
/* Between the files of vbus.ko. */
#ifndef VBUS_H
#define VBUS_H

#include <linux/device.h>
#include <linux/list.h>
#include <linux/rwsem.h>

#include <alacrity/vbus.h>
#include <alacrity/vbus_connector.h>
#include <alacrity/vbus_ring.h>

/**
 * struct vbus_bus_device - a device, with what its driver does not see
 * @vdev: what its driver sees
 * @node: in the connector's list
 * @verbs: read by those that use the connection, written by those that open or end it
 * @is_dropped: the interface left the bus: all verbs but close fail
 * @is_lost: the host's end is gone: likewise, until it returns
 */
struct vbus_bus_device {
	struct vbus_device vdev;
	struct list_head node;
	struct rw_semaphore verbs;
	bool is_dropped;
	bool is_lost;
};

static inline struct vbus_bus_device *to_vbus_bus_device(struct vbus_device *vdev)
{
	return container_of(vdev, struct vbus_bus_device, vdev);
}

/**
 * struct vbus_connection - an open interface
 * @handle: names it to the connector
 * @shares: its shared memory
 */
struct vbus_connection {
	u64 handle;
	struct list_head shares;
};

/**
 * struct vbus_full_ring - a ring, with what the data path does not need
 * @ring: what the data path needs
 * @shm: where it is
 * @notify: the driver's, or NULL
 * @context: for @notify
 * @name: of its interrupt
 */
struct vbus_full_ring {
	struct vbus_ring ring;
	struct vbus_shm shm;
	vbus_ring_notify notify;
	void *context;
	char *name;
};

static inline struct vbus_full_ring *to_vbus_full_ring(const struct vbus_ring *ring)
{
	return container_of(ring, struct vbus_full_ring, ring);
}

void vbus_no_doorbell(void *context);
int vbus_share_memory(struct vbus_device *vdev, struct vbus_shm *shm, struct vbus_ring *ring,
		      const char *name, u32 id, u32 priority);

#endif /* VBUS_H */
