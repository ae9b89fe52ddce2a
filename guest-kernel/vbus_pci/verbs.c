// SPDX-License-Identifier: GPL-2.0
/* The verbs of the bus, as calls of the host. */
#include <linux/interrupt.h>
#include <linux/io.h>

#include "vbus_pci.h"

static int vbus_pci_open(struct vbus_connector *connector, u32 id, u32 version, u64 *handle)
{
	struct vbus_pci_open args = {
		.id = cpu_to_le32(id),
		.version = cpu_to_le32(version),
	};
	int ret;

	ret = vbus_pci_call(to_vbus_pci(connector), VBUS_PCI_FUNC_OPEN, &args, sizeof(args));
	*handle = le64_to_cpu(args.handle);
	return ret;
}

static int vbus_pci_device_call(struct vbus_connector *connector, u64 handle, u32 func, void *data,
				u32 len)
{
	struct vbus_pci_device_call args = {
		.handle = cpu_to_le64(handle),
		.func = cpu_to_le32(func),
		.len = cpu_to_le32(len),
	};

	return vbus_pci_fast_call(to_vbus_pci(connector), &args, data, len);
}

static irqreturn_t vbus_pci_ring_irq(int irq, void *data)
{
	struct vbus_share *share = data;

	vbus_ring_notify_now(share->ring);
	return IRQ_HANDLED;
}

/* Gives @share an interrupt of its own if one is left. */
static void vbus_pci_take_vector(struct vbus_pci *vp, struct vbus_share *share)
{
	u32 vector;
	int irq;

	share->vector = VBUS_PCI_NO_VECTOR;
	if (!share->ring)
		return;
	mutex_lock(&vp->vectors_lock);
	vector = find_first_zero_bit(vp->vectors, vp->num_vectors);
	if (vector < vp->num_vectors) {
		irq = pci_irq_vector(vp->pdev, vector);
		if (!request_irq(irq, vbus_pci_ring_irq, 0, share->name, share)) {
			__set_bit(vector, vp->vectors);
			share->vector = vector;
			share->irq = irq;
		}
	}
	mutex_unlock(&vp->vectors_lock);
}

static void vbus_pci_unshare(struct vbus_connector *connector, struct vbus_share *share)
{
	struct vbus_pci *vp = to_vbus_pci(connector);

	if (share->irq) {
		free_irq(share->irq, share);
		share->irq = 0;
		mutex_lock(&vp->vectors_lock);
		__clear_bit(share->vector, vp->vectors);
		mutex_unlock(&vp->vectors_lock);
	}
	vbus_pci_await_drains(vp);
}

static int vbus_pci_shm(struct vbus_connector *connector, u64 handle, struct vbus_share *share)
{
	struct vbus_pci *vp = to_vbus_pci(connector);
	struct vbus_pci_shm args = {
		.handle = cpu_to_le64(handle),
		.cookie = cpu_to_le64(share->cookie),
		.addr = cpu_to_le64(share->addr),
		.len = cpu_to_le32(share->len),
		.id = cpu_to_le32(share->id),
		.priority = cpu_to_le32(share->priority),
		.signal_offset = cpu_to_le32(share->signal_offset),
	};
	int ret;

	vbus_pci_take_vector(vp, share);
	args.vector = cpu_to_le32(share->vector);
	ret = vbus_pci_call(vp, VBUS_PCI_FUNC_SHM, &args, sizeof(args));
	if (ret >= 0)
		share->signal = le32_to_cpu(args.signal);
	return ret;
}

static int vbus_pci_close(struct vbus_connector *connector, u64 handle)
{
	struct vbus_pci_close args = { .handle = cpu_to_le64(handle) };

	return vbus_pci_call(to_vbus_pci(connector), VBUS_PCI_FUNC_CLOSE, &args, sizeof(args));
}

static bool vbus_pci_is_alive(struct vbus_connector *connector)
{
	struct vbus_pci *vp = to_vbus_pci(connector);

	return readl(&vp->registers->num_resets) == vp->num_resets;
}

static void vbus_pci_share_doorbell(void *context)
{
	struct vbus_share *share = context;

	vbus_pci_ring(to_vbus_pci(share->connector), share->signal);
}

const struct vbus_connector_ops vbus_pci_ops = {
	.open = vbus_pci_open,
	.call = vbus_pci_device_call,
	.shm = vbus_pci_shm,
	.unshare = vbus_pci_unshare,
	.close = vbus_pci_close,
	.is_alive = vbus_pci_is_alive,
	.doorbell = vbus_pci_share_doorbell,
};
