// SPDX-License-Identifier: GPL-2.0
/*
 * The verbs, and the events of shared memory.
 *
 * A share is found by its cookie, under RCU and in any context, from before the host knows of it
 * until the connection has ended. Whoever ends the connection waits for the host's word that it has
 * let go of each, so that memory which a host could still write is never used for anything else.
 */
#include <linux/io.h>
#include <linux/jiffies.h>
#include <linux/slab.h>

#include "vbus.h"

/* How long a host has to let go of memory, and how often we look whether there is one at all. */
#define VBUS_CLOSE_TIMEOUT	(30 * HZ)
#define VBUS_CLOSE_INTERVAL	(HZ / 2)

/* Why a verb on @vdev cannot even be tried, or 0. */
static int vbus_refusal(struct vbus_device *vdev)
{
	struct vbus_bus_device *device = to_vbus_bus_device(vdev);

	if (READ_ONCE(device->is_dropped) || READ_ONCE(device->is_lost) ||
	    READ_ONCE(vdev->connector->is_gone))
		return -ENODEV;
	return 0;
}

int vbus_open(struct vbus_device *vdev, u32 version)
{
	struct vbus_connector *connector = vdev->connector;
	struct vbus_bus_device *device = to_vbus_bus_device(vdev);
	struct vbus_connection *connection;
	int ret;

	connection = kzalloc(sizeof(*connection), GFP_KERNEL);
	if (!connection)
		return -ENOMEM;
	INIT_LIST_HEAD(&connection->shares);
	down_write(&device->verbs);
	ret = vdev->connection ? -EBUSY : vbus_refusal(vdev);
	if (!ret)
		ret = connector->ops->open(connector, vdev->id, version, &connection->handle);
	if (ret >= 0)
		vdev->connection = connection;
	up_write(&device->verbs);
	if (ret < 0)
		kfree(connection);
	return ret < 0 ? ret : 0;
}
EXPORT_SYMBOL_GPL(vbus_open);

int vbus_call(struct vbus_device *vdev, u32 func, void *data, u32 len)
{
	struct vbus_connector *connector = vdev->connector;
	struct vbus_bus_device *device = to_vbus_bus_device(vdev);
	int ret;

	if (len > VBUS_PCI_MAX_CALL_BYTES)
		return -EINVAL;
	down_read(&device->verbs);
	ret = vbus_refusal(vdev);
	if (!ret && !vdev->connection)
		ret = -ENOTCONN;
	if (!ret)
		ret = connector->ops->call(connector, vdev->connection->handle, func, data, len);
	up_read(&device->verbs);
	return ret;
}
EXPORT_SYMBOL_GPL(vbus_call);

/* No event finds @share after this, and no notification of it runs. */
static void vbus_forget_share(struct vbus_share *share)
{
	struct vbus_connector *connector = share->connector;

	xa_erase_irq(&connector->shares, share->cookie);
	connector->ops->unshare(connector, share);
	if (share->ring) {
		share->ring->doorbell = vbus_no_doorbell;
		share->ring = NULL;
	}
}

int vbus_share_memory(struct vbus_device *vdev, struct vbus_shm *shm, struct vbus_ring *ring,
		      const char *name, u32 id, u32 priority)
{
	struct vbus_connector *connector = vdev->connector;
	struct vbus_bus_device *device = to_vbus_bus_device(vdev);
	struct vbus_share *share;
	int ret;

	if (!shm->memory || priority >= VBUS_NUM_PRIORITIES)
		return -EINVAL;
	if (shm->share)
		return -EEXIST;
	share = kzalloc(sizeof(*share), GFP_KERNEL);
	if (!share)
		return -ENOMEM;
	share->connector = connector;
	share->addr = virt_to_phys(shm->memory);
	share->len = shm->len;
	share->id = id;
	share->priority = priority;
	share->signal_offset = ring ? VBUS_RING_SIGNAL_OFFSET : VBUS_PCI_NO_SIGNAL;
	share->ring = ring;
	share->name = name;
	share->signal = VBUS_PCI_NO_SIGNAL;
	init_completion(&share->closed);
	INIT_LIST_HEAD(&share->node);

	down_write(&device->verbs);
	ret = vbus_refusal(vdev);
	if (!ret && !vdev->connection)
		ret = -ENOTCONN;
	if (ret)
		goto error;
	/* A late event of memory that was given up on must not mean other memory. */
	ret = xa_alloc_cyclic_irq(&connector->shares, &share->cookie, share, xa_limit_31b,
				  &connector->next_cookie, GFP_KERNEL);
	if (ret < 0)
		goto error;
	ret = connector->ops->shm(connector, vdev->connection->handle, share);
	if (ret < 0) {
		vbus_forget_share(share);
		goto error;
	}
	if (ring && share->signal != VBUS_PCI_NO_SIGNAL) {
		ring->doorbell_context = share;
		ring->doorbell = connector->ops->doorbell;
	}
	shm->share = share;
	list_add_tail(&share->node, &vdev->connection->shares);
	up_write(&device->verbs);
	return 0;

error:
	up_write(&device->verbs);
	kfree_rcu(share, rcu);
	return ret;
}

/* Waits until the host has let go of @share; false if it does not until @deadline. */
static bool vbus_await_closed(struct vbus_share *share, unsigned long deadline)
{
	struct vbus_connector *connector = share->connector;

	while (!wait_for_completion_timeout(&share->closed, VBUS_CLOSE_INTERVAL)) {
		if (READ_ONCE(connector->is_gone) || !connector->ops->is_alive(connector)) {
			complete_all(&share->closed);
			return true;
		}
		if (time_after(jiffies, deadline))
			return completion_done(&share->closed);
	}
	return true;
}

int vbus_close(struct vbus_device *vdev)
{
	struct vbus_connector *connector = vdev->connector;
	struct vbus_bus_device *device = to_vbus_bus_device(vdev);
	unsigned long deadline = jiffies + VBUS_CLOSE_TIMEOUT;
	struct vbus_connection *connection;
	struct vbus_share *share, *next;
	int ret = 0, status;

	down_write(&device->verbs);
	connection = vdev->connection;
	vdev->connection = NULL;
	up_write(&device->verbs);
	if (!connection)
		return 0;

	if (!READ_ONCE(connector->is_gone)) {
		status = connector->ops->close(connector, connection->handle);
		if (status < 0)
			dev_err(&vdev->dev, "closing failed: %d\n", status);
	}
	list_for_each_entry_safe(share, next, &connection->shares, node) {
		if (!vbus_await_closed(share, deadline)) {
			ret = -ETIMEDOUT;
			dev_err(&vdev->dev, "the host does not let go of memory %u, leaking it\n",
				share->id);
		}
		list_del_init(&share->node);
		vbus_forget_share(share);
	}
	kfree(connection);
	return ret;
}
EXPORT_SYMBOL_GPL(vbus_close);

void vbus_connector_signal(struct vbus_connector *connector, u64 cookie)
{
	struct vbus_share *share;

	rcu_read_lock();
	share = xa_load(&connector->shares, cookie);
	if (share && share->ring)
		vbus_ring_notify_now(share->ring);
	rcu_read_unlock();
}
EXPORT_SYMBOL_GPL(vbus_connector_signal);

void vbus_connector_shm_closed(struct vbus_connector *connector, u64 cookie)
{
	struct vbus_share *share;

	rcu_read_lock();
	share = xa_load(&connector->shares, cookie);
	if (share)
		complete_all(&share->closed);
	rcu_read_unlock();
}
EXPORT_SYMBOL_GPL(vbus_connector_shm_closed);

void vbus_connector_gone(struct vbus_connector *connector)
{
	struct vbus_share *share;
	unsigned long cookie;

	WRITE_ONCE(connector->is_gone, true);
	rcu_read_lock();
	xa_for_each(&connector->shares, cookie, share)
		complete_all(&share->closed);
	rcu_read_unlock();
}
EXPORT_SYMBOL_GPL(vbus_connector_gone);
